"""Bytes of a shard by offset, wherever it is: in a file, behind a web server, in an object store.

A source tells the shard's `Identity` and reads ranges of it. A remote one notices when the shard
is replaced while it is being read, and asks again after failures that may pass.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from .location import BUCKETS, Identity, Location, SourceError, Url, redact
from .patience import Patience, TransientError
from .transport import Reply, Transport, raise_for

_T = TypeVar("_T")
SCHEMES = ("http", "https", *BUCKETS)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_HINTS = {
    "pipe": "commands are never run",
    "file": "name the file itself",
}


class Source(Protocol):
    """What the index and the cache need of a shard."""

    location: Location

    @property
    def identity(self) -> Identity:
        """Its size and tag, asked for once. Raises OSError."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """The bytes `[offset, offset + size)`; fewer only where the shard ends. Raises OSError."""
        ...


class NoRangesError(SourceError):
    """The server sends all of a shard or nothing."""


class Local:
    """A shard in a file; open until nobody refers to it: never closed under a reading thread."""

    def __init__(self, path: Path) -> None:
        self.location = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    @cached_property
    def identity(self) -> Identity:
        """Size and time of modification, in nanoseconds."""
        stat = os.fstat(self._descriptor)
        return Identity(stat.st_size, stat.st_mtime_ns)

    def read(self, offset: int, size: int) -> bytes:
        """As in `Source`."""
        return os.pread(self._descriptor, size, offset)

    def expect(self, offset: int, size: int) -> None:
        """Has the system begin to fetch `[offset, offset + size)`, if it can. Raises OSError."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, offset, size, os.POSIX_FADV_WILLNEED)


class Http:
    """A shard behind a web server.

    Args:
        url: its address.
        transport: shared with other shards.
        identity: if it is known already.
    """

    def __init__(self, url: Url, transport: Transport, *, identity: Identity | None = None) -> None:
        self.location, self._transport = url, transport
        self.ranges = True
        self._identity = identity

    @property
    def identity(self) -> Identity:
        """Size and tag. One request, of one byte: not every server answers a HEAD.

        Raises:
            SourceError: if it is missing, may not be read, or its size is not told.
        """
        # No cached_property: up to Python 3.11 all its instances wait for each other.
        if self._identity is None:
            self._identity = self._persist(0, self._ask_identity)
        return self._identity

    def read(self, offset: int, size: int) -> bytes:
        """As in `Source`.

        Raises:
            NoRangesError: if the server can send the whole only: see `read_whole`.
            SourceError: if the shard cannot be read or is no longer what it was.
        """
        size = min(size, self.identity.size - offset)
        if size <= 0:
            return b""

        def attempt(within: float) -> bytes:
            if not self.ranges and size < self.identity.size:
                raise NoRangesError(f"{self.location}: the server ignores Range", "no ranges")
            with self._get(f"bytes={offset}-{offset + size - 1}", within) as reply:
                self._check(reply, offset, size)
                return _exactly(reply, size)

        return self._persist(offset, attempt)

    def read_whole(self, block: int, take: Callable[[int, bytes], None]) -> None:
        """Hands `take` the number and the bytes of each block of the shard, from one request.

        Raises:
            SourceError: if the shard cannot be read or is no longer what it was.
        """
        size, taken = self.identity.size, 0

        def attempt(within: float) -> None:
            nonlocal taken
            with self._get(None, within) as reply:
                self._check(reply, 0, size)
                for number, begin in enumerate(range(0, size, block)):
                    data = _exactly(reply, min(block, size - begin))
                    if number == taken:  # else it was handed over before the answer broke off
                        take(number, data)
                        taken += 1

        self._persist(0, attempt)

    def _ask_identity(self, within: float) -> Identity:
        with self._get("bytes=0-0", within) as reply:
            tag = _tag(reply)
            if reply.status == 206 and (found := _RANGE.fullmatch(_content_range(reply))):
                return Identity(int(found[3]), tag)
            if reply.status == 200 and reply.length is not None:
                self.ranges = False
                return Identity(reply.length, tag)
            if reply.status == 416:  # there is no first byte
                return Identity(0, tag)
            self._accept(reply)
        raise SourceError(f"{self.location}: the server does not tell its size", "no size")

    def _check(self, reply: Reply, offset: int, size: int) -> None:
        """Raises unless `reply` holds `[offset, offset + size)` of the shard we know."""
        known, whole = self.identity, size == self.identity.size
        if reply.status == 416:
            raise self._changed()
        self._accept(reply)
        if known.tag and (tag := _tag(reply)) and tag != known.tag:
            raise self._changed()
        if reply.status == 200:
            if reply.length is not None and reply.length > known.size:
                raise self._changed()
            self.ranges = self.ranges and whole
            if not whole:
                raise NoRangesError(f"{self.location}: the server ignores Range", "no ranges")
        elif not (found := _RANGE.fullmatch(_content_range(reply))):
            raise TransientError(f"an answer of HTTP {reply.status} without a valid range")
        elif int(found[3]) != known.size:
            raise self._changed()
        elif int(found[1]) != offset:
            raise TransientError(f"byte {found[1]} came instead of byte {offset}")

    def _accept(self, reply: Reply) -> None:
        raise_for(reply, str(self.location))

    def _changed(self) -> SourceError:
        return SourceError(f"{self.location}: it was replaced while it was read", "changed")

    def _persist(self, offset: int, attempt: Callable[[float], _T]) -> _T:
        return self._transport.persist(f"{self.location} at byte {offset:,}", attempt)

    def _get(self, wanted: str | None, within: float) -> AbstractContextManager[Reply]:
        headers = {} if wanted is None else {"Range": wanted}
        return self._transport.get(self.location.address, headers, within)


class Opener:
    """Opens sources that share connections and credentials."""

    def __init__(self, patience: Patience | None = None) -> None:
        self.transport = Transport(patience)
        self._accounts: dict[str, Any] = {}

    def __reduce__(self) -> tuple[type[Opener], tuple[Patience]]:
        return Opener, (self.transport.patience,)

    def open(self, url: Url, identity: Identity | None = None) -> Http:
        """The source for `url`, whose `identity` may be known already.

        Raises:
            ValueError: if its scheme is not known, or what reads it is not installed.
        """
        if url.in_bucket:
            from .s3 import S3

            return S3(url, self.transport, self._account(url.scheme), identity=identity)
        if url.scheme not in SCHEMES:
            raise refuse(url.address)
        return Http(url, self.transport, identity=identity)

    def expand(self, url: Url) -> list[Url]:
        """The shards that `url` names: itself, or the keys of a bucket that match its `*`.

        Raises:
            SourceError: if the bucket cannot be listed.
            ValueError: if the scheme is not known.
        """
        if url.scheme not in SCHEMES:
            raise refuse(url.address)
        if url.in_bucket:
            from .s3 import is_pattern, split

            split(url)
            return self._account(url.scheme).list(url) if is_pattern(url) else [url]
        parts = urlsplit(url.address)
        if not parts.hostname or parts.port == 0:  # a port that is no number raises
            raise ValueError(f"{url} names no host")
        return [url]

    def close(self) -> None:
        """Closes connections; they are opened again if they are needed again."""
        self.transport.close()

    def _account(self, scheme: str) -> Any:
        if scheme not in self._accounts:
            from .s3 import Account

            self._accounts[scheme] = Account(self.transport.patience, scheme)
        return self._accounts[scheme]


def refuse(text: str) -> ValueError:
    """The error for an address of a scheme that is not read."""
    scheme = text.partition(":")[0].lower()
    hint = f" ({_HINTS[scheme]})" if scheme in _HINTS else ""
    known = ", ".join(SCHEMES)
    shown = f"{scheme}:…" if scheme == "pipe" else redact(text)
    return ValueError(f"{shown!r}: shards are files or {known} addresses, not {scheme}:{hint}")


def _content_range(reply: Reply) -> str:
    return reply.headers.get("Content-Range") or ""


def _tag(reply: Reply) -> str:
    return reply.headers.get("ETag") or reply.headers.get("Last-Modified") or ""


def _exactly(reply: Reply, size: int) -> bytes:
    data = reply.read(size)
    if len(data) < size:
        raise TransientError(f"the answer ended after {len(data):,} of {size:,} bytes")
    return data
