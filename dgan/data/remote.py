"""Shards that are not files: their indexes, and their bytes by way of the cache.

Shards are read in blocks of `BLOCK` bytes: one request brings what a window of the order shows
soon, the samples beside it. Blocks and indexes are kept under the shard's size and tag.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from .cache import Cache
from .decode import DecodeError
from .index import ShardError, ShardIndex, dump_index, parse_index
from .location import Identity, SourceError, Url
from .remote_index import read_sidecar, scan_source
from .sources import Http, NoRangesError, Opener

BLOCK = 1 << 20
_CONNECTIONS = 16  # requests under way at once: what hides the latency of each


class UnreadableError(DecodeError):
    """A sample whose bytes cannot be had, whatever is tried again."""


class Remote:
    """Reads shards behind addresses; safe to use from many threads.

    Args:
        opener: opens them.
        cache: keeps blocks and indexes; None: every read is a request of its own.
    """

    def __init__(self, opener: Opener, cache: Cache | None) -> None:
        self.opener, self._cache = opener, cache
        self._sources: dict[Url, Http] = {}
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._coming: dict[tuple[Url, int], Future[None]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        known = {url: source.identity for url, source in self._sources.items()}
        return _reopen, (self.opener, self._cache, known)

    def indexes(self, urls: Sequence[Url]) -> list[ShardIndex]:
        """The index of each shard, made side by side.

        Raises:
            OSError: if a shard is missing or cannot be read.
            ShardError: if one is truncated, compressed, no tar, or holds a member that is refused.
        """
        pool = ThreadPoolExecutor(min(_CONNECTIONS, len(urls)), "dgan-index")
        try:
            return list(pool.map(self._index, urls))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def read(self, url: Url, size: int, offset: int) -> bytes:
        """As `os.pread` of the shard.

        Raises:
            UnreadableError: if that cannot be had.
        """
        source = self._source(url)
        try:
            if self._cache is None:
                return source.read(offset, size)
            return b"".join(
                self._block(source, number, begin, end)
                for number, begin, end in _pieces(offset, min(size, source.identity.size - offset))
            )
        except SourceError as error:
            raise UnreadableError(str(error), error.reason) from error

    def forget(self, url: Url, size: int, offset: int) -> None:
        """Has these bytes fetched anew when they are next read."""
        if self._cache is not None:
            for number, *_ in _pieces(offset, size):
                self._cache.forget(_block_name(self._source(url), number))

    def prefetch(self, ranges: Iterable[tuple[Url, int, int]]) -> None:
        """Begins to fetch the blocks of (shard, size, offset) that the cache does not hold."""
        if self._cache is None:
            return
        wanted = {
            (url, number): None for url, size, at in ranges for number, *_ in _pieces(at, size)
        }
        for url, number in wanted:
            source = self._source(url)
            with self._lock:
                if (url, number) in self._coming or not source.ranges:
                    continue
                if self._cache.has(_block_name(source, number), _block_size(source, number)):
                    continue
                self._pool = self._pool or ThreadPoolExecutor(_CONNECTIONS, "dgan-fetch")
                self._coming[url, number] = self._pool.submit(self._fetch, source, number)

    def close(self) -> None:
        """Ends what is under way and closes connections; they are opened again if need be."""
        with self._lock:
            pool, self._pool = self._pool, None
            self._coming.clear()
        self.opener.close()
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _source(self, url: Url) -> Http:
        with self._lock:
            if url not in self._sources:
                self._sources[url] = self.opener.open(url)
            return self._sources[url]

    def _fetch(self, source: Http, number: int) -> None:
        try:
            # What cannot be had is told by whoever reads it; at the end of the program nobody does.
            if threading.main_thread().is_alive():
                with suppress(OSError):
                    self._block(source, number, 0, 1)
        finally:
            with self._lock:
                self._coming.pop((source.location, number), None)

    def _block(self, source: Http, number: int, begin: int, end: int) -> bytes:
        assert self._cache is not None, "blocks are of the cache"
        size = _block_size(source, number)

        def make() -> bytes:
            if source.ranges:
                with suppress(NoRangesError):
                    return source.read(number * BLOCK, size)
            return self._whole(source, number)

        return self._cache.read(_block_name(source, number), size, make, begin, end)

    def _whole(self, source: Http, wanted: int) -> bytes:
        """Block `wanted` of a shard that comes as a whole only, whose other blocks are kept too."""
        cache = self._cache
        assert cache is not None, "blocks are of the cache"
        if source.identity.size > cache.limit:
            raise NoRangesError(
                f"{source.location}: the server sends it as a whole only, and its "
                f"{source.identity.size:,} bytes are more than the cache may hold",
                "no ranges",
            )
        size = _block_size(source, wanted)
        with cache.alone(f"whole\n{_block_name(source, 0)}"):
            if (data := cache.find(_block_name(source, wanted), size)) is not None:
                return data
            found: list[bytes] = []

            def take(number: int, block: bytes) -> None:
                if number == wanted:
                    found.append(block)
                cache.put(_block_name(source, number), block)

            source.read_whole(BLOCK, take)
            return found[0]

    def _index(self, url: Url) -> ShardIndex:
        source = self._source(url)
        identity = source.identity
        if self._cache is None:
            if not source.ranges:
                raise NoRangesError(
                    f"{url}: the server ignores Range, so a shard has to be kept as a whole: set "
                    "cache_gigabytes above 0",
                    "no ranges",
                )
            return self._read_index(source)
        name = f"index\n{url.key}\n{identity.size}\n{identity.tag}"
        made: list[ShardIndex] = []

        def make() -> bytes:
            made.append(self._read_index(source))
            return dump_index(made[0], identity, made[0].labels)

        def valid(data: bytes) -> bool:
            return parse_index(url, identity, data) is not None

        data = self._cache.read_text(name, make, valid)
        index = made[0] if made else parse_index(url, identity, data)
        assert index is not None, "what was made or found valid is an index"
        return index

    def _read_index(self, source: Http) -> ShardIndex:
        beside = self.opener.open(source.location.sidecar)
        if (index := read_sidecar(source, beside)) is not None:
            return index
        if self._cache is None:
            return scan_source(source, None, BLOCK)

        def block(number: int) -> bytes:
            return self._block(source, number, 0, _block_size(source, number))

        try:
            return scan_source(source, block, BLOCK)
        except ShardError:  # once more, past the cache: perhaps it is not the shard's fault
            self.forget(source.location, source.identity.size, 0)
            return scan_source(source, block, BLOCK)


def _pieces(offset: int, size: int) -> Iterable[tuple[int, int, int]]:
    """The blocks that `[offset, offset + size)` touches: number, and begin and end inside it."""
    end = offset + size
    while offset < end:
        number, begin = divmod(offset, BLOCK)
        taken = min(end - offset, BLOCK - begin)
        yield number, begin, begin + taken
        offset += taken


def _block_size(source: Http, number: int) -> int:
    return min(BLOCK, source.identity.size - number * BLOCK)


def _block_name(source: Http, number: int) -> str:
    size, tag = source.identity
    return f"block\n{source.location.key}\n{size}\n{tag}\n{BLOCK}\n{number}"


def _reopen(opener: Opener, cache: Cache | None, known: dict[Url, Identity]) -> Remote:
    remote = Remote(opener, cache)
    remote._sources = {url: opener.open(url, identity) for url, identity in known.items()}
    return remote
