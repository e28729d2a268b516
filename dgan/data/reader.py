"""Filling a batch's rows, and what is shown instead of a sample that does not decode."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .batch import Batch, Encoded
from .dataset import ShardDataset
from .decode import DecodeError
from .images import DRAWN, View
from .mixture import Mixture
from .order import Order, crops, flips
from .remote import UnreadableError

_MAX_ATTEMPTS = 16
_MIN_SKIPPED = 10  # one per cent of a tiny data set is no sample at all
_REMEMBERED = 1_000
# Reading is Python, decoding is not: each runs faster while it has the processor's cache to itself.
_READ_TOGETHER = 64


class Skipped(NamedTuple):
    """A sample that did not decode, and why."""

    shard: str
    key: str
    reason: str


@dataclass(frozen=True)
class Reader:
    """Decodes rows of batches; shared by the workers, which must not keep a stream alive."""

    dataset: ShardDataset
    order: Order | Mixture
    flip: bool

    def rows(
        self, batch: Batch, samples: NDArray[np.int64], position: int, begin: int, end: int
    ) -> list[Skipped]:
        """Fills rows `[begin, end)`; row `i` shows `samples[i]` and stands at `position + i`.

        Returns what was skipped on the way.

        Raises:
            DecodeError: if one sample after another does not decode.
            SizeMismatchError: if an image is of a size that the data set does not take.
        """
        skipped: list[Skipped] = []
        views = self._views(np.arange(position + begin, position + end))
        for first in range(begin, end, _READ_TOGETHER):
            rows = range(first, min(first + _READ_TOGETHER, end))
            for row, encoded in zip(rows, [self._read(int(samples[row])) for row in rows]):
                view = views[row - begin]
                try:
                    if isinstance(encoded, Encoded):
                        batch.decode(row, encoded, view)
                        continue
                except DecodeError:
                    encoded = None
                skipped += self._row(batch, row, int(samples[row]), position + row, view, encoded)
        return skipped

    def _read(self, sample: int) -> Encoded | UnreadableError | None:
        """The bytes of a sample; None if something is wrong with it that a closer look may mend."""
        try:
            return self.dataset.read(sample)
        except UnreadableError as error:
            return error
        except DecodeError:
            return None

    def _views(self, positions: NDArray[np.int64]) -> list[View]:
        """How the sample at each of `positions` is seen: by position alone, whoever shows it."""
        seed, count = self.order.seed, len(positions)
        mirrored = flips(seed, positions).tolist() if self.flip else [False] * count
        if self.dataset.crop not in DRAWN:
            return [View(mirror) for mirror in mirrored]
        places = crops(seed, positions).tolist()
        return [View(mirror, (x, y)) for mirror, (x, y) in zip(mirrored, places)]

    def _row(
        self,
        batch: Batch,
        row: int,
        sample: int,
        position: int,
        view: View,
        error: DecodeError | None,
    ) -> list[Skipped]:
        """Fills a row whose sample did not decode at once; `error`: what it is known to raise."""
        skipped: list[Skipped] = []
        while len(skipped) < _MAX_ATTEMPTS:
            try:
                if error is not None:
                    raise error
                self.dataset.decode_into(sample, batch, row, view)
                return skipped
            except DecodeError as found:
                table = self.dataset.table
                shard, key = str(table.shard_of(sample)), table.key(sample)
                skipped.append(Skipped(shard, key, found.reason))
            sample, error = self.order.replacement(position, len(skipped)), None
        last = skipped[-1]
        raise DecodeError(
            f"{_MAX_ATTEMPTS} samples in a row do not decode, the last of them {last.key!r} of "
            f"{last.shard} ({last.reason})"
        )


class SkipLedger:
    """Counts skipped samples, and stops the run when they are too many to be an accident."""

    def __init__(self, num_samples: int, max_skipped: float) -> None:
        self.reasons: Counter[str] = Counter()
        self._recent: deque[Skipped] = deque(maxlen=_REMEMBERED)
        self._damaged: set[Skipped] = set()
        self._num_samples = num_samples
        self._limit = max(_MIN_SKIPPED, math.ceil(max_skipped * num_samples))

    def add(self, skipped: Sequence[Skipped]) -> None:
        """Records what was skipped.

        Raises:
            DecodeError: if more different samples are damaged than allowed.
        """
        self.reasons.update(skip.reason for skip in skipped)
        self._recent.extend(skipped)
        # The same bad sample returns in every epoch: only different ones speak against the data.
        self._damaged.update(skipped)
        if len(self._damaged) > self._limit:
            some = sorted(self._damaged)[:5]
            raise DecodeError(
                f"{len(self._damaged)} of {self._num_samples} samples do not decode, more than the "
                f"{self._limit} allowed (max_skipped), such as "
                + ", ".join(f"{s.key!r} of {s.shard} ({s.reason})" for s in some)
            )

    def drain(self) -> list[Skipped]:
        """What was recorded since the last call, at most the latest 1,000."""
        recent = list(self._recent)
        self._recent.clear()
        return recent
