"""Toy distributions of points, drawn without end, exactly the same ones at every world size.

A point is a pure function of (seed, position), as an image of `ShardStream` is: four words of a
counter-based generator (Philox, Salmon et al. 2011) whose counter is the position. Nothing is read
and nothing is kept, so a stream resumes anywhere, on any number of ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""`[N, dimension]`."""

_STREAM, _REFERENCE = range(2)  # what a draw is for: part of every key
_WORDS = 4  # that one step of Philox's counter gives


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A curve or a set of modes, and normal noise around it.

    Attributes:
        name: as in `TOYS`.
        sigma: standard deviation of the noise along each axis.
        place: uniform numbers `[N]` in [0, 1) → where the noise is centred, `[N, dimension]`.
        modes: how many there are; of a curve, equally likely stretches that count as such.
        along: points of a mode that tell how far something is from it: 1, or many of a stretch.
        scale: half the side of the square around the origin that the centres lie in.
    """

    name: str
    sigma: float
    place: Callable[[NDArray[np.float64]], Points]
    modes: int
    along: int = 1
    scale: float = 1.0

    @property
    def dimension(self) -> int:
        """Numbers of a point."""
        return self.place(np.zeros(1)).shape[1]

    def centres(self) -> Points:
        """Where the noise is centred, mode by mode: `[modes, along, dimension]`."""
        count = self.modes * self.along
        places = self.place((np.arange(count, dtype=np.float64) + 0.5) / count)
        return places.reshape(self.modes, self.along, -1)

    def points(self, seed: int, position: int, count: int, purpose: int = _STREAM) -> Points:
        """The points at `[position, position + count)` under `seed`."""
        (key,) = np.random.SeedSequence((seed, purpose)).generate_state(1, np.uint64)
        philox = np.random.Philox(key=key, counter=position)
        bits = np.asarray(philox.random_raw(_WORDS * count), np.uint64).reshape(count, _WORDS)
        # Middles of 2⁵² equal parts of (0, 1), exactly: never 0, and never rounded to 1.
        uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52
        centres = self.place(uniform[:, 0])
        # Box and Muller 1958.
        radius = self.sigma * np.sqrt(-2 * np.log(uniform[:, 1]))
        angle = 2 * np.pi * uniform[:, 2]
        noise = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        return centres + noise[:, : centres.shape[1]]


def _one_of(centres: Points) -> Callable[[NDArray[np.float64]], Points]:
    return lambda uniform: centres[(uniform * len(centres)).astype(np.int64)]


def _spiral(uniform: NDArray[np.float64]) -> Points:
    """Two turns, from a third of the unit circle's radius outwards; uniform in the angle."""
    angle = 1.5 * np.pi * (1 + 2 * uniform)
    return (angle / (4.5 * np.pi))[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


_EIGHTHS = np.arange(8) * np.pi / 4
_FIVE = np.arange(-4.0, 5.0, 2.0)

TOYS = {
    toy.name: toy
    for toy in (
        # Lin et al. 2018 (PacGAN), section 4.1: the distributions of Srivastava et al. 2017.
        Toy(
            name="ring",
            sigma=0.01,
            place=_one_of(np.stack([np.cos(_EIGHTHS), np.sin(_EIGHTHS)], axis=1)),
            modes=8,
        ),
        Toy(
            name="grid",
            sigma=0.05,
            place=_one_of(np.stack(np.meshgrid(_FIVE, _FIVE), axis=-1).reshape(-1, 2)),
            modes=25,
            scale=4.0,
        ),
        Toy(name="swissroll", sigma=0.01, place=_spiral, modes=30, along=40),
        # Mescheder et al. 2018, definition 2.1: all of the data is one point of the line.
        Toy(name="dirac", sigma=0.0, place=_one_of(np.zeros((1, 1))), modes=1),
    )
}


def find_toy(name: str) -> Toy:
    """The toy of this name; `ValueError` if there is none."""
    if name not in TOYS:
        raise ValueError(f"there is no toy {name!r}: choose from {', '.join(TOYS)}")
    return TOYS[name]


class ToyDataset:
    """`size` points over `toy.scale`, always the same, and not a stream's of the same seed."""

    def __init__(self, toy: Toy, *, size: int = 10_000, seed: int = 0) -> None:
        self.toy, self.size, self.seed = toy, size, seed

    def __len__(self) -> int:
        return self.size

    def __str__(self) -> str:
        return f"toy {self.toy.name}"

    def batches(
        self,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        stop: int | None = None,
        skip_corrupt: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Points `[0, stop)` once, `batch_size` at a time over all ranks, as in `ShardDataset`."""
        stop = self.size if stop is None else min(stop, self.size)
        for begin in range(0, stop, batch_size):
            n = min(batch_size, stop - begin)
            first, last = begin + n * rank // world_size, begin + n * (rank + 1) // world_size
            points = self.toy.points(self.seed, first, last - first, _REFERENCE)
            yield _batch(points / self.toy.scale, first)


class ToyStream:
    """Points of a toy without end; rank `r` of `world_size` yields its rows of each global batch.

    Each item is a dict: `"__key__"` (positions, a list of n str) and `"sample"` (points over
    `toy.scale`, float32 `[n, dimension]`), where n = batch_size / world_size. What else it has is
    what a training loop asks of a `ShardStream`.

    Args:
        toy: the distribution, or its name in `TOYS`.
        batch_size: points of one batch over all ranks.
        seed: of the points.
        rank: which rows of each batch are drawn here.
        world_size: into how many equal parts each batch is divided.

    Raises:
        ValueError: if there is no such toy, or an argument does not fit.
    """

    num_classes = 0
    has_labels = False

    def __init__(
        self,
        toy: Toy | str,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or world_size < 1 or batch_size % world_size:
            raise ValueError(
                f"batch_size {batch_size} (over all ranks) cannot be divided into {world_size} "
                "ranks: take a positive multiple of it"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 to world_size - 1 = {world_size - 1}: {rank}")
        self.toy = find_toy(toy) if isinstance(toy, str) else toy
        self.batch_size, self.seed = batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.dataset = ToyDataset(self.toy, seed=seed)
        self.skipped: Counter[str] = Counter()
        self._position = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        n = self.batch_size // self.world_size
        mine = self._position + self.rank * n
        batch = _batch(self.toy.points(self.seed, mine, n) / self.toy.scale, mine)
        self._position += self.batch_size
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is open."""

    def state_dict(self) -> dict[str, Any]:
        """What it takes to go on after the last batch handed out; the same on every rank."""
        return {"toy": self.toy.name, "seed": self.seed, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken, at any world size and batch size; its seed is taken too.

        Raises:
            ValueError: if the state is of another toy, or of no toy.
        """
        if state.get("toy") != self.toy.name:
            raise ValueError(
                f"the state was taken on {state.get('toy', 'shards')!r}, and this is the toy "
                f"{self.toy.name!r}: open the same data, or start a new run"
            )
        self.seed, self._position = int(state["seed"]), int(state["position"])

    @property
    def num_samples(self) -> int:
        """Of the points to compare with: a stream's have no number, nor epochs."""
        return len(self.dataset)

    def drain_skipped(self) -> list[Any]:
        """Nothing is ever skipped."""
        return []

    @property
    def position(self) -> int:
        """Points handed out over all ranks since the run began."""
        return self._position


def _batch(points: Points, first: int) -> dict[str, Any]:
    return {
        "__key__": list(map(str, range(first, first + len(points)))),
        "sample": torch.from_numpy(points.astype(np.float32)),
    }
