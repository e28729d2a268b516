"""Endless shuffled batches from shards, exactly the same samples at every world size.

Every rank reads its rows of each global batch, by offset, straight from the tars. A stream is told
by (seed, position), so it resumes with exactly the next batch, on any number of ranks.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from .batch import Batch
from .buffers import Buffers, open_upload
from .cache import CACHE_GIGABYTES
from .crew import Crew, result_within
from .dataset import ShardDataset
from .mixture import order_of
from .reader import Reader
from .skips import SkipLedger, Skipped
from .state import check_state, state_of

# Arguments that belong to a data set, as they are if not given.
_OF_DATASET = (None, None, None, (), "none", 0, None)
# Seconds. What can be noticed to fail does so sooner (`patience`); a read of a network file system
# whose server is gone just does not return.
_STUCK, _CLOSING = 900.0, 10.0


class _Pending(NamedTuple):
    """A batch on its way: its buffers, and what fills them."""

    batch: Batch
    parts: list[Future[list[Skipped]]]


class ShardStream:
    """Shuffled batches without end; rank `r` of `world_size` yields its rows of each global batch.

    Each item is a dict: `"__key__"` (list of n str), `"image"` (uint8 tensor `[n, C, H, W]`; of
    pairs `"a"` and `"b"`), `"label"` (int64 tensor `[n]`, if there are labels) and a list for each
    of the extra `fields`, where n = batch_size / world_size. An epoch shows each sample exactly
    once; a batch may straddle two epochs, so that nothing is dropped. The order depends on the data
    and `seed` alone: not on ranks, workers or batch size.

    With `weights`, each entry of `shards` is a data set of its own that is shown in that
    proportion, exactly (see `mixture`), and has its own epochs: `epochs`. All of them have the same
    fields, image size and classes; there are labels if every sample of every one has one. Without,
    all entries are one data set.

    A sample that does not decode is replaced by another one (by rule: the same on every rank),
    counted in `skipped` and told by `drain_skipped`.

    Args:
        shards: a brace or glob pattern, a path or an address, a list of these (whose entries may
            be lists again), or an open `ShardDataset`.
        batch_size: samples of one batch over all ranks.
        weights: as many positive numbers as `shards` has entries.
        seed: of the order and of the flips.
        rank: which rows of each batch are read here.
        world_size: into how many equal parts each batch is divided.
        resolution: as in `ShardDataset`, like `channels`, `labels`, `fields`, `crop`, `resize`,
            `cache` and `cache_gigabytes`; random and window crops are drawn by a position.
        flip: mirror each sample, left to right, with probability ½, drawn likewise.
        workers: threads that decode ahead; 0 decodes in the caller's. A loop that stays in Python
            for long, rather than in operators, lets them run too seldom to keep a core busy.
        prefetch: batches decoded ahead.
        device: a CUDA device on which tensors are handed out: from pinned memory, the next batch
            copied while the one before is in use. None: on the CPU, in memory that is used again
            once nothing refers to a batch.
        max_skipped: the stream stops when this rank skips more than this fraction of an epoch's
            samples (but at least 10) in an epoch.

    Raises:
        FileNotFoundError: if a shard is missing.
        ValueError: if an argument does not fit; the message says what would.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path | Sequence[str | Path]] | ShardDataset,
        *,
        batch_size: int,
        weights: Sequence[float] = (),
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        resolution: int | None = None,
        channels: int | None = None,
        labels: bool | None = None,
        fields: Sequence[str] = (),
        crop: str = "none",
        resize: int = 0,
        cache: str | Path | None = None,
        cache_gigabytes: float = CACHE_GIGABYTES,
        flip: bool = False,
        workers: int = 1,
        prefetch: int = 2,
        device: torch.device | str | None = None,
        max_skipped: float = 0.01,
    ) -> None:
        _check_division(batch_size, rank, world_size)
        if workers < 0 or prefetch < 1:
            raise ValueError(f"workers ≥ 0 and prefetch ≥ 1, got {workers} and {prefetch}")
        if not isinstance(shards, ShardDataset):
            shards = ShardDataset(
                shards,
                resolution=resolution,
                channels=channels,
                labels=labels,
                fields=fields,
                crop=crop,
                resize=resize,
                cache=cache,
                cache_gigabytes=cache_gigabytes,
            )
        elif (resolution, channels, labels, tuple(fields), crop, resize, cache) != _OF_DATASET:
            raise ValueError(
                "resolution, channels, labels, fields, crop, resize and cache: ask the "
                "ShardDataset for them"
            )
        self.dataset = shards
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self._ledger = SkipLedger(len(shards), max_skipped)
        self._weights = tuple(weights)
        self._reader = Reader(shards, order_of(shards, self._weights, seed), flip)
        self._upload = open_upload(device)
        self._buffers = Buffers(keep=prefetch + 2, pinned=self._upload is not None)
        self._workers, self._prefetch = workers, prefetch
        self._crew: Crew | None = None
        self._queue: deque[_Pending] = deque()
        self._position = self._submitted = 0
        self._closed = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._closed:
            raise RuntimeError("this stream is closed")
        try:
            batch, skipped = self._read_here() if self._workers == 0 else self._read_ahead()
            self._ledger.add(skipped, self._position + self.batch_size)
        except BaseException:
            self._forget_prefetched()  # asked again, the same batch is tried again
            raise
        self._position += self.batch_size
        if self._upload is None:
            return batch.as_dict()
        return self._upload(batch, self._queue[0].batch if self._next_is_ready() else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the workers and closes the files. `state_dict` still answers."""
        self._closed = True
        self._forget_prefetched()
        if self._crew is not None:
            self._crew.close(_CLOSING)
            self._crew = None
        self.dataset.close()

    def state_dict(self) -> dict[str, Any]:
        """What it takes to go on after the last batch handed out; the same on every rank."""
        return state_of(self.dataset, self._reader.order, self._position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken, at any world size and batch size.

        The state's seed is taken over: the order goes on, it does not begin anew.

        Raises:
            ValueError: if the state is of other data or other weights, or of a version that is not
                known.
        """
        check_state(state, self.dataset, self._reader.order)
        self._forget_prefetched()
        order = order_of(self.dataset, self._weights, int(state["seed"]))
        self._reader = Reader(self.dataset, order, self._reader.flip)
        self._position = self._submitted = int(state["position"])
        self._ledger.restart(self._position)

    @property
    def skipped(self) -> Counter[str]:
        """How often a sample was skipped on this rank, by reason; `.total()` of it is the sum."""
        return self._ledger.reasons

    def drain_skipped(self) -> list[Skipped]:
        """(shard, key, reason) of what was skipped here since the last call: the latest 1,000."""
        return self._ledger.drain()

    @property
    def seed(self) -> int:
        """The seed of the order and of the flips."""
        return self._reader.order.seed

    @property
    def position(self) -> int:
        """Samples handed out over all ranks since the run began."""
        return self._position

    @property
    def epoch(self) -> float:
        """Passes over the data so far; of a mixture, how often a sample was shown on average."""
        return self._position / self.num_samples

    @property
    def epochs(self) -> list[float]:
        """Passes over each data set of a mixture; else over the one that there is."""
        return self._reader.order.epochs(self._position)

    @property
    def num_samples(self) -> int:
        """Samples in the shards: the length of an epoch, unless it is a mixture."""
        return len(self.dataset)

    @property
    def num_classes(self) -> int:
        """The largest label and one; 0 without labels."""
        return self.dataset.num_classes

    @property
    def has_labels(self) -> bool:
        """Whether batches have `"label"`."""
        return self.dataset.has_labels

    @property
    def resolution(self) -> int:
        """Height and width of the images. Raises ValueError if they are not square."""
        return self.dataset.resolution

    @property
    def channels(self) -> int:
        """Channels of the images: 1 or 3."""
        return self.dataset.channels

    def _begin(self, position: int) -> tuple[Batch, NDArray[np.int64], int]:
        """This rank's share of the batch at `position`: room, samples and its own position."""
        n = self.batch_size // self.world_size
        mine = position + self.rank * n
        samples = self._reader.order.take(mine, n)
        self.dataset.table.prefetch(samples)
        return self.dataset.batch(n, self._buffers), samples, mine

    def _read_here(self) -> tuple[Batch, list[Skipped]]:
        batch, samples, mine = self._begin(self._position)
        return batch, self._reader.rows(batch, samples, mine, 0, len(samples))

    def _read_ahead(self) -> tuple[Batch, list[Skipped]]:
        while len(self._queue) <= self._prefetch:  # the one that is wanted now, and those ahead
            self._queue.append(self._submit())
        pending = self._queue.popleft()
        table = self.dataset.table
        parts = (result_within(_STUCK, part, f"reading {table}") for part in pending.parts)
        return pending.batch, [skip for part in parts for skip in part]

    def _next_is_ready(self) -> bool:
        parts = self._queue[0].parts if self._queue else []
        return bool(parts) and all(part.done() and not part.exception() for part in parts)

    def _submit(self) -> _Pending:
        if self._crew is None:
            self._crew = Crew(self._workers, "dgan-data")
        batch, samples, mine = self._begin(self._submitted)
        self._submitted += self.batch_size
        # As few tasks as keep all workers busy with the batches ahead: beginning one costs as much
        # as decoding a small image.
        n = len(samples)
        tasks = min(-(-self._workers // (self._prefetch + 1)), n)
        parts = [
            self._crew.submit(self._reader.rows, batch, samples, mine, begin, end)
            for begin, end in pairwise(n * task // tasks for task in range(tasks + 1))
        ]
        return _Pending(batch, parts)

    def _forget_prefetched(self) -> None:
        for pending in self._queue:
            for part in pending.parts:
                part.cancel()
        self._queue.clear()
        self._submitted = self._position


def _check_division(batch_size: int, rank: int, world_size: int) -> None:
    if batch_size < 1 or world_size < 1:
        raise ValueError(
            f"batch_size and world_size must be at least 1, got {batch_size}, {world_size}"
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to world_size - 1 = {world_size - 1}, got {rank}")
    if batch_size % world_size:
        below = batch_size // world_size * world_size
        choices = f"{below} or {below + world_size}" if below else f"{world_size}"
        raise ValueError(
            f"batch_size {batch_size} (over all ranks) is not divisible by world_size "
            f"{world_size}: {choices} would be"
        )
