"""Several data sets mixed by weight: again a pure function of (seed, position).

Source `k`, whose share of the weights is `w_k`, shows its sample number `j` (of its own endless
order) at the time `(j + u) / w_k`, where `u` is uniform in [0, 1) and drawn for `(seed, k, j)`; the
mixture is all of them sorted by time. So of the first `p` samples `p · w_k` are of source `k`, to
within `1 + (K − 2) · w_k` of `K` sources (of two: to within one sample), however large `p` is and
whatever the weights. Any position can be reached at once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .dataset import ShardDataset
from .order import Order

# What a draw is for; the first purposes are order.py's.
_SOURCE, _TIME = 16, 17
_NAMED = 4  # parts that a message names
_STRETCH = 1024  # of time, which is a sample a unit, times the sources: what is sorted at once


class _Stretch(NamedTuple):
    """The positions from `first` on: of each the source, and the number of its sample there.

    `before` counts each source's samples that come before it.
    """

    first: int
    before: NDArray[np.int64]
    sources: NDArray[np.int64]
    numbers: NDArray[np.int64]


class Mixture:
    """The endless order of samples numbered through several sources, mixed by weight.

    Each source has an `Order` of its own, and so shows each of its samples exactly once in each of
    its own epochs.

    Args:
        sizes: samples of each source; those of the first are numbered first.
        weights: of each source, in proportion.
        seed: of the mixture and of its sources' orders.

    Raises:
        ValueError: if there are not as many weights as sources, one is not positive, or a source
            is empty.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int = 0) -> None:
        if len(weights) != len(sizes) or not weights:
            raise ValueError(
                f"{len(weights)} weights for {len(sizes)} entries of `shards`: each entry is a "
                "data set, and each needs one"
            )
        if 0 in sizes:
            raise ValueError(f"entry {list(sizes).index(0)} of `shards` holds no sample")
        if not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise ValueError(f"weights must be positive numbers, got {list(weights)}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        total = math.fsum(weights)
        self.seed, self.sizes = seed, tuple(sizes)
        self.shares = tuple(weight / total for weight in weights)
        self._starts: list[int] = np.cumsum([0, *sizes]).tolist()
        self._orders = [Order(n, self._seed_of(k)) for k, n in enumerate(sizes)]
        self._span = _STRETCH * len(sizes)
        self._stretch = self._sort(0)

    def take(self, position: int, count: int) -> NDArray[np.int64]:
        """The samples at `[position, position + count)`, int64 `[count]`.

        Raises:
            ValueError: if `position` or `count` is negative.
        """
        if position < 0 or count < 0:
            raise ValueError(f"position and count must be at least 0, got {position} and {count}")
        out = np.empty(count, np.int64)
        done = 0
        while done < count:
            stretch = self._find(position + done)
            begin = position + done - stretch.first
            sources = stretch.sources[begin : begin + count - done]
            part = out[done : done + len(sources)]
            for k in np.unique(sources).tolist():
                (rows,) = np.nonzero(sources == k)
                # The samples of one source follow each other, wherever others come between.
                first = int(stretch.numbers[begin + rows[0]])
                part[rows] = self._starts[k] + self._orders[k].take(first, len(rows))
            done += len(sources)
        return out

    def replacement(self, position: int, attempt: int) -> int:
        """As in `Order`, from the source whose sample stands at `position`."""
        stretch = self._find(position)
        k = int(stretch.sources[position - stretch.first])
        return self._starts[k] + self._orders[k].replacement(position, attempt)

    @property
    def parts(self) -> list[list[float]]:
        """The size and the share of each source."""
        return [[n, share] for n, share in zip(self.sizes, self.shares)]

    def epochs(self, position: int) -> list[float]:
        """Passes over each source before `position`."""
        return [shown / n for shown, n in zip(self.shown(position), self.sizes)]

    def shown(self, position: int) -> list[int]:
        """How many samples of each source come before `position`."""
        stretch = self._find(position)
        offset = position - stretch.first
        counts = np.bincount(stretch.sources[:offset], minlength=len(self.sizes))
        return (stretch.before + counts).tolist()

    def _find(self, position: int) -> _Stretch:
        """The stretch of time that holds `position`."""
        stretch = self._stretch  # read once: workers ask for replacements meanwhile
        if not 0 <= position - stretch.first < len(stretch.sources):
            number = position // self._span
            # As many samples as units of time have passed, but for one of each source.
            while self._before(number + 1).sum() <= position:
                number += 1
            while self._before(number).sum() > position:
                number -= 1
            stretch = self._stretch = self._sort(number)
        return stretch

    def _sort(self, number: int) -> _Stretch:
        begin, end = self._before(number), self._before(number + 1)
        numbers = [np.arange(a, b) for a, b in zip(begin.tolist(), end.tolist())]
        times = [
            (n + self._uniform(k, int(begin[k]), len(n))) / self.shares[k]
            for k, n in enumerate(numbers)
        ]
        order = np.argsort(np.concatenate(times), kind="stable")
        sources = np.repeat(np.arange(len(numbers)), end - begin)
        return _Stretch(int(begin.sum()), begin, sources[order], np.concatenate(numbers)[order])

    def _before(self, number: int) -> NDArray[np.int64]:
        """How many samples of each source come before stretch `number` begins."""
        due = [share * number * self._span for share in self.shares]
        return np.array(
            [int(x) + (self._uniform(k, int(x), 1)[0] < x % 1) for k, x in enumerate(due)]
        )

    def _uniform(self, source: int, first: int, count: int) -> NDArray[np.float64]:
        """`u` of the source's samples from `first` on: any part of a stream can be had alone."""
        bits = np.random.PCG64(np.random.SeedSequence((self.seed, _TIME, source)))
        return np.random.Generator(bits.advance(first)).random(count)

    def _seed_of(self, source: int) -> int:
        # Sources of equal size must not be walked through alike.
        entropy = np.random.SeedSequence((self.seed, _SOURCE, source))
        return int(entropy.generate_state(1, np.uint64)[0])


class Parts(NamedTuple):
    """What tells the parts of an order from others, no longer if they are many."""

    words: str
    digest: str

    @classmethod
    def of(cls, parts: Sequence[Sequence[float]]) -> Parts:
        """Of each part its size and its share."""
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
        if len(parts) == 1:
            return cls(f"one data set of {parts[0][0]} samples", digest)
        named = " + ".join(f"{share:.4g} × {n} samples" for n, share in parts[:_NAMED])
        if len(parts) > _NAMED:
            named += f" + {len(parts) - _NAMED} more ({digest[:8]} in all)"
        return cls(f"a mixture of {named}", digest)


def order_of(dataset: ShardDataset, weights: Sequence[float], seed: int) -> Order | Mixture:
    """The order of all of `dataset`, or of its entries mixed by `weights` if there are any.

    Raises:
        ValueError: as `Order`, `Mixture` and `ShardDataset.check_alike` do.
    """
    if not weights:
        return Order(len(dataset), seed)
    dataset.check_alike()
    mixture = Mixture([end - begin for begin, end in pairwise(dataset.starts)], weights, seed)
    # One data set is shown as it is without a weight.
    return mixture if len(weights) > 1 else Order(len(dataset), seed)
