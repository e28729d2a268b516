"""Filling a batch's rows, and what is shown instead of a sample that does not decode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .batch import Batch, Encoded
from .dataset import ShardDataset
from .decode import DecodeError
from .images import View
from .mixture import Mixture
from .order import Order, crops, flips
from .remote import UnreadableError
from .skips import Skipped

_MAX_ATTEMPTS = 16
# Reading is Python, decoding is not: each runs faster while it has the processor's cache to itself.
_READ_TOGETHER = 64


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
            some = samples[first : min(first + _READ_TOGETHER, end)]
            seen = views[first - begin : first - begin + len(some)]
            try:
                found = self.dataset.read_each(some)
                left = batch.decode_each(first, found, seen)
            except DecodeError:
                found = [self._read_one(sample) for sample in some.tolist()]
                left = range(len(some))
            for i in left:
                row, sample = first + i, int(some[i])
                skipped += self._row(batch, row, sample, position + row, seen[i], found[i])
        return skipped

    def _read_one(self, sample: int) -> Encoded | UnreadableError | None:
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
        if not self.dataset.draws_places:
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
        found: Encoded | UnreadableError | None,
    ) -> list[Skipped]:
        """Fills a row; `found`: the bytes of its sample, or why there are none."""
        if isinstance(found, Encoded):
            try:
                self.dataset.decode(sample, found, batch, row, view)
                return []
            except DecodeError:
                found = None
        skipped: list[Skipped] = []
        while len(skipped) < _MAX_ATTEMPTS:
            try:
                if found is not None:
                    raise found
                self.dataset.decode_into(sample, batch, row, view)
                return skipped
            except DecodeError as error:
                table = self.dataset.table
                shard, key = str(table.shard_of(sample)), table.key(sample)
                skipped.append(Skipped(shard, key, error.reason))
            sample, found = self.order.replacement(position, len(skipped)), None
        last = skipped[-1]
        raise DecodeError(
            f"{_MAX_ATTEMPTS} samples in a row do not decode, the last of them {last.key!r} of "
            f"{last.shard} ({last.reason})"
        )
