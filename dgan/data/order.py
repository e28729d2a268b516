"""Who is seen when: a pure function of (seed, epoch, position), the same at every world size.

A *position* counts samples handed out by the whole run since it began. Epoch `e` is positions
`[e·n, (e+1)·n)` and holds each of the `n` samples exactly once. Nothing here knows ranks, workers
or batches, so none of them can change the order: rank `r` merely reads its slice of each batch.

An epoch is cut into blocks of consecutive samples (one read of an object store). A *window* takes
one block of each stretch of the data, the stretches being as long as there are windows, and its
samples are permuted. What fits into one window is thereby a plain full permutation.

Of 1.28 million samples in 1,281 shards sorted by class, the number of samples of a class in a batch
of 256 varies 1.07 times as much as under a full permutation (1.3 times of 1,024), and the batch
comes from 222 shards (232). `benchmarks/data/shuffle.py` has more, and what others do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# What a draw is for: part of every seed, so that two purposes never share a stream.
_EPOCH, _WINDOW, _REPLACEMENT, _FLIP, _CROP = range(5)

BLOCK = 64
WINDOW = 1024  # 1,024 · 64 = 65,536 samples are mixed at once, from as many shards as there are


def _generator(*entropy: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


class Order:
    """The endless order of `n` samples under `seed`.

    Pure: two instances with equal arguments agree at every position. An instance caches the
    current epoch's blocks (8 bytes a block) and the current window, so walking forward is cheap
    and a jump costs one permutation of the blocks and one of a window.

    Args:
        n: samples of the data set.
        seed: of the permutations.
        block: consecutive samples that stay in one window.
        window: blocks that are mixed.

    Raises:
        ValueError: if `n` is not positive or `seed` is negative.
    """

    def __init__(self, n: int, seed: int = 0, *, block: int = BLOCK, window: int = WINDOW) -> None:
        if n < 1:
            raise ValueError(f"an order needs at least one sample, got {n}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        if block < 1 or window < 1:
            raise ValueError(f"block and window must be at least 1, got {block} and {window}")
        self.n, self.seed, self.block = n, seed, block
        count = -(-n // block)
        self._windows = -(-count // window)
        self._stretches = -(-count // self._windows)
        self._epoch = self._window = -1  # which are cached below
        self._samples: NDArray[np.int64] = np.empty(0, np.int64)

    def index(self, position: int) -> int:
        """The sample at `position`, counted over all epochs."""
        return int(self.take(position, 1)[0])

    @property
    def parts(self) -> list[list[float]]:
        """Its size and share, as `Mixture` has one of each for every source."""
        return [[self.n, 1.0]]

    def epochs(self, position: int) -> list[float]:
        """Passes over the data before `position`, in a list as of `Mixture`."""
        return [position / self.n]

    def take(self, position: int, count: int) -> NDArray[np.int64]:
        """The samples at `[position, position + count)`, int64 `[count]`; may straddle epochs.

        Raises:
            ValueError: if `position` or `count` is negative.
        """
        if position < 0 or count < 0:
            raise ValueError(f"position and count must be at least 0, got {position} and {count}")
        out = np.empty(count, np.int64)
        done = 0
        while done < count:
            epoch, offset = divmod(position + done, self.n)
            samples = self._from(epoch, offset)[: count - done]
            out[done : done + len(samples)] = samples
            done += len(samples)
        return out

    def replacement(self, position: int, attempt: int) -> int:
        """The sample to show at `position` when `attempt` samples (1, 2, …) did not decode there.

        Drawn from all samples, so that it too is the same on every rank and at every world size.
        """
        generator = _generator(self.seed, _REPLACEMENT, position, attempt)
        return int(generator.integers(self.n))

    def _from(self, epoch: int, offset: int) -> NDArray[np.int64]:
        """The rest of the window that holds `offset` of `epoch`, from `offset` on."""
        if epoch != self._epoch:
            self._start_epoch(epoch)
        window = int(np.searchsorted(self._starts, offset, side="right")) - 1
        if window != self._window:
            self._samples, self._window = self._permute(epoch, window), window
        return self._samples[offset - int(self._starts[window]) :]

    def _start_epoch(self, epoch: int) -> None:
        generator = _generator(self.seed, _EPOCH, epoch)
        # The blocks start elsewhere in each epoch, so that neighbours are not neighbours for ever.
        self._phase = int(generator.integers(self.n))
        stretches = np.arange(self._stretches * self._windows).reshape(self._stretches, -1)
        # [windows, stretches]; the last stretch may name blocks that there are not: they are empty.
        self._blocks = generator.permuted(stretches, axis=1).T
        lengths = (self.n - self._blocks * self.block).clip(0, self.block).sum(axis=1)
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._epoch, self._window = epoch, -1

    def _permute(self, epoch: int, window: int) -> NDArray[np.int64]:
        samples = (self._blocks[window][:, None] * self.block + np.arange(self.block)).ravel()
        samples = (samples[samples < self.n] + self._phase) % self.n
        return _generator(self.seed, _WINDOW, epoch, window).permutation(samples)


def flips(seed: int, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the sample at each of `positions` is mirrored: a fair coin, bool `[...]`."""
    return (_hash(seed, _FLIP, positions) & np.uint64(1)).astype(np.bool_)


def crops(seed: int, positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Where the crop of the sample at each of `positions` lies: uniform in [0, 1), `[..., 2]`."""
    bits = _hash(seed, _CROP, positions)
    halves = np.stack([bits >> np.uint64(32), bits & np.uint64(0xFFFFFFFF)], axis=-1)
    return halves / 2.0**32


def _hash(seed: int, purpose: int, positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64 random bits for each of `positions`.

    A hash (splitmix64) rather than a generator: one vectorised expression for a whole batch, and
    any position can be asked for alone.
    """
    (key,) = np.random.SeedSequence((seed, purpose)).generate_state(1, np.uint64)
    x = key + positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
