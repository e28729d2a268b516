"""Writing the index beside shards that have none, or an old one."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .decode import DecodeError, decode_label
from .index import ShardIndex, scan, write_index
from .workers import count_workers

_LONGEST_LABEL = 32


class Indexed(NamedTuple):
    """A shard whose index was written.

    Attributes:
        path: the tar.
        samples: in it.
        bytes: its length, of which only headers and labels were read.
        seconds: that it took.
        labelled: whether the index holds labels.
    """

    path: Path
    samples: int
    bytes: int
    seconds: float
    labelled: bool


def index_shards(shards: Sequence[Path], *, workers: int | None = None) -> Iterator[Indexed]:
    """Writes the index of each of `shards` beside it, and tells of each as it is done, in order.

    Processes share the work: parsing headers is all Python's own.

    Raises:
        ShardError: at a shard that is damaged; those before it have their index.
    """
    count = min(count_workers(workers), len(shards))
    if count == 1 or sys.platform != "linux":
        return map(index_shard, shards)
    # They are forked here and now, before the caller starts a thread, which would not be safe, and
    # not spawned, which would cost each of them the imports.
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("fork"))
    return _drain(pool, pool.map(index_shard, shards))


def _drain(pool: ProcessPoolExecutor, results: Iterator[Indexed]) -> Iterator[Indexed]:
    try:
        yield from results
    finally:
        pool.shutdown(cancel_futures=True)


def index_shard(shard: Path) -> Indexed:
    """Writes the index of one shard, with its labels if every sample has one.

    Raises:
        ShardError: if it is damaged.
    """
    begin = time.perf_counter()
    index = scan(shard)
    labels = read_labels(index)
    write_index(index, labels)
    seconds = time.perf_counter() - begin
    return Indexed(shard, len(index), index.size, seconds, labels is not None)


def read_labels(index: ShardIndex) -> NDArray[np.int64] | None:
    """The `.cls` of every sample, −1 where it is damaged; None if some have none."""
    if "cls" not in index.fields:
        return None
    column = index.fields.index("cls")
    offsets, sizes = index.offsets[:, column].tolist(), index.sizes[:, column].tolist()
    if min(offsets, default=-1) < 0:
        return None
    labels = np.full(len(index), -1, np.int64)
    file = os.open(index.path, os.O_RDONLY)
    try:
        for row, (offset, size) in enumerate(zip(offsets, sizes)):
            try:
                labels[row] = decode_label(os.pread(file, min(size, _LONGEST_LABEL), offset))
            except DecodeError:
                continue  # whoever shows the sample counts and reports it
    finally:
        os.close(file)
    return labels
