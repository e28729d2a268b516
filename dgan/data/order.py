"""Who is seen when: a pure function of (seed, epoch, position), the same at every world size.

A *position* counts samples handed out by the whole run since it began. Epoch `e` is positions
`[e·n, (e+1)·n)` and holds each of the `n` samples exactly once. Nothing here knows ranks, workers
or batches, so none of them can change the order: rank `r` merely reads its slice of each batch.

An epoch is cut into blocks of consecutive samples (one read of a disk or an object store), the
blocks are permuted over all shards, and the samples of `window` neighbouring blocks are permuted
together. A data set of up to `full` samples is a single window: a plain full permutation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# What a draw is for: part of every seed, so that two purposes never share a stream.
_EPOCH, _WINDOW, _REPLACEMENT, _FLIP = range(4)

BLOCK = 64
WINDOW = 256  # 256 · 64 = 16,384 samples are mixed at once, from about as many shards as blocks
FULL = 65_536


def _generator(*entropy: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


class Order:
    """The endless order of `n` samples under `seed`.

    Pure: two instances with equal arguments agree at every position. An instance caches the
    current epoch's blocks (8 bytes a block) and the current window, so walking forward is cheap
    and a jump costs one permutation of the blocks and one of a window.

    Raises:
        ValueError: if `n` is not positive or `seed` is negative.
    """

    def __init__(
        self, n: int, seed: int = 0, *, block: int = BLOCK, window: int = WINDOW, full: int = FULL
    ) -> None:
        if n < 1:
            raise ValueError(f"an order needs at least one sample, got {n}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        if block < 1 or window < 1:
            raise ValueError(f"block and window must be at least 1, got {block} and {window}")
        self.n, self.seed = n, seed
        # All samples in one window are a full permutation: small data needs no code of its own.
        self.block, self.window = (n, 1) if n <= full else (block, window)
        self._epoch = self._cached = -1
        self._first = 0  # the cached window covers [first, first + len) of its epoch
        self._samples: NDArray[np.int64] = np.empty(0, np.int64)

    def index(self, position: int) -> int:
        """The sample at `position`, counted over all epochs."""
        return int(self.take(position, 1)[0])

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
        self._start_epoch(epoch)
        span = self.block * self.window
        # Every block is full but one, which is `_missing` samples short and may be anywhere:
        # windows after the one that holds it start that much earlier.
        short_window = self._short // self.window
        if offset < (short_window + 1) * span - self._missing:
            number, first = offset // span, offset // span * span
        else:
            number = (offset + self._missing) // span
            first = number * span - self._missing
        if self._cached != number:
            self._samples = self._permute_window(epoch, number)
            self._cached, self._first = number, first
        return self._samples[offset - self._first :]

    def _start_epoch(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        generator = _generator(self.seed, _EPOCH, epoch)
        count = -(-self.n // self.block)
        # The blocks start elsewhere in each epoch, so that neighbours are not neighbours for ever.
        self._phase = int(generator.integers(self.n))
        self._blocks = generator.permutation(count)
        self._missing = count * self.block - self.n
        self._short = int(np.flatnonzero(self._blocks == count - 1)[0])
        self._epoch, self._cached = epoch, -1

    def _permute_window(self, epoch: int, number: int) -> NDArray[np.int64]:
        blocks = self._blocks[number * self.window : (number + 1) * self.window]
        samples = (blocks[:, None] * self.block + np.arange(self.block)).ravel()
        samples = (samples[samples < self.n] + self._phase) % self.n
        return _generator(self.seed, _WINDOW, epoch, number).permutation(samples)


def flips(seed: int, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the sample at each of `positions` is mirrored: a fair coin, bool of the same shape.

    A hash (splitmix64) rather than a generator: one vectorised expression for a whole batch, and
    any position can be asked for alone.
    """
    (key,) = np.random.SeedSequence((seed, _FLIP)).generate_state(1, np.uint64)
    x = key + positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) & np.uint64(1)).astype(np.bool_)
