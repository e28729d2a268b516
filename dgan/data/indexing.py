"""Writing the index beside shards that have none, or an old one."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from .aside import written_aside
from .index import ShardIndex, dump_index, scan, scan_tar, sidecar_path
from .location import Identity, Location, Url
from .remote_index import scan_source
from .sources import NoRangesError, Opener
from .whole import open_whole, sha256
from .workers import count_workers, ordered_map


class Indexed(NamedTuple):
    """A shard whose index was written.

    Attributes:
        shard: the tar.
        samples: in it.
        bytes: its length, of which only headers and labels were read, but for a checksum.
        seconds: that it took.
        labelled: whether the index holds labels.
    """

    shard: Location
    samples: int
    bytes: int
    seconds: float
    labelled: bool


@dataclass(frozen=True)
class Indexer:
    """Writes the index of a shard, with its labels if every sample has one.

    Attributes:
        out: the folder for indexes; None: each beside its shard, which must be a file then.
        checksums: take the sha256 of each shard as well, for which all of it is read.
        opener: opens those shards that are not files.
    """

    out: Path | None = None
    checksums: bool = False
    opener: Opener = field(default_factory=Opener)

    def __call__(self, shard: Location) -> Indexed:
        """Writes the index of `shard`.

        Raises:
            OSError: if it cannot be read.
            ShardError: if it is damaged.
        """
        begin = time.perf_counter()
        identity, index = self._scan(shard)
        with written_aside(self.target(shard)) as file:
            file.write(dump_index(index, identity, index.labels))
        seconds = time.perf_counter() - begin
        return Indexed(shard, len(index), index.size, seconds, index.labels is not None)

    def _scan(self, shard: Location) -> tuple[Identity, ShardIndex]:
        if isinstance(shard, Url) and not self.checksums:
            remote = self.opener.open(shard)
            with suppress(NoRangesError):
                return remote.identity, scan_source(remote, None, 0)
        source = open_whole(shard, self.opener)
        checksum = sha256(source)[1] if self.checksums else None  # and the headers are at hand
        if isinstance(shard, Url):
            index = scan_tar(source.read, shard, source.identity.size, labels=True)
        else:
            index = scan(shard, labels=True)
        return source.identity, replace(index, sha256=checksum)

    def target(self, shard: Location) -> Path:
        """Where the index of `shard` is to lie.

        Raises:
            ValueError: if `shard` is no file and there is no folder for its index.
        """
        if self.out is not None:
            return self.out / f"{shard.name}.index.json"
        if isinstance(shard, Url):
            raise ValueError(
                f"the index of {shard} cannot be written beside it: name a folder with --out, and "
                "upload what is written there to where the shards are"
            )
        return sidecar_path(shard)


def index_shards(
    shards: Sequence[Location], indexer: Indexer | None = None, *, workers: int | None = None
) -> Iterator[Indexed]:
    """Writes the index of each of `shards`, and tells of each as it is done, in order.

    Processes share the work: parsing headers is all Python's own. Threads do where a server is
    waited for.

    Raises:
        OSError: at a shard that cannot be read.
        ShardError: at a shard that is damaged; those before it have their index.
        ValueError: if two indexes would have the same name, or one no place.
    """
    indexer = indexer or Indexer()
    targets = [indexer.target(shard) for shard in shards]
    if len(set(targets)) < len(targets):
        twice = next(target for target in targets if targets.count(target) > 1)
        raise ValueError(f"two of the shards would have the index {twice}: index them apart")
    count = min(count_workers(workers), len(shards))
    if any(isinstance(shard, Url) for shard in shards):
        return ordered_map(indexer, shards, count, chunk=1)
    if count == 1 or sys.platform != "linux":
        return map(indexer, shards)
    # They are forked here and now, before the caller starts a thread, which would not be safe, and
    # not spawned, which would cost each of them the imports.
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("fork"))
    return _drain(pool, pool.map(indexer, shards))


def _drain(pool: ProcessPoolExecutor, results: Iterator[Indexed]) -> Iterator[Indexed]:
    try:
        yield from results
    finally:
        pool.shutdown(cancel_futures=True)
