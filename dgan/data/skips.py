"""What is left out because it does not decode: counted by reason, and when it is too much."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple

from .errors import DecodeError

_MIN_SKIPPED = 10  # one per cent of a tiny data set is no sample at all
_REMEMBERED = 1_000


class Skipped(NamedTuple):
    """A sample that did not decode, and why."""

    shard: str
    key: str
    reason: str


class SkipLimit:
    """Stops a run that leaves out more than can be an accident.

    The same bad sample returns in every epoch, so an epoch's worth of them is what counts.

    Args:
        num_samples: of the data, shown in an epoch.
        max_skipped: how many may be skipped in an epoch, as a fraction of it; 10 always may.

    Raises:
        ValueError: if `max_skipped` is no fraction.
    """

    def __init__(self, num_samples: int, max_skipped: float) -> None:
        if not 0 <= max_skipped <= 1:
            raise ValueError(f"max_skipped is a fraction, from 0 to 1; got {max_skipped}")
        self._num_samples = num_samples
        self._an_epoch = max(_MIN_SKIPPED, math.ceil(max_skipped * num_samples))
        self._epoch = self.before = 0

    def restart(self, before: int, position: int) -> None:
        """Goes on at `position`, in whose epoch `before` is the count of earlier epochs."""
        self.before, self._epoch = before, position // self._num_samples

    def check(self, total: int, position: int, latest: Sequence[Skipped]) -> None:
        """Checks that `total` skipped ones are not too many by `position`.

        Raises:
            DecodeError: if they are; names some of `latest`.
        """
        shown, skipped = position - self._epoch * self._num_samples, total - self.before
        # Who asks seldom asks about several epochs.
        allowed = round(self._an_epoch * max(1.0, shown / self._num_samples))
        if skipped > allowed:
            names = (f"{key!r} of {shard} ({reason})" for shard, key, reason in latest[-5:])
            raise DecodeError(
                f"{skipped:,} samples do not decode where {shown:,} were shown, more than the "
                f"{allowed:,} allowed (max_skipped), such as {', '.join(names)}"
            )
        if position // self._num_samples > self._epoch:
            self.restart(total, position)


class SkipLedger:
    """Counts what one stream skips, and stops it when that is too much.

    Arguments are as of `SkipLimit`.
    """

    def __init__(self, num_samples: int, max_skipped: float) -> None:
        self.reasons: Counter[str] = Counter()
        self._recent: deque[Skipped] = deque(maxlen=_REMEMBERED)
        self._limit = SkipLimit(num_samples, max_skipped)

    def add(self, skipped: Sequence[Skipped], position: int) -> None:
        """Records what was skipped to come to `position`.

        Raises:
            DecodeError: if it is more than allowed.
        """
        if skipped:
            self.reasons.update(skip.reason for skip in skipped)
            self._recent.extend(skipped)
        self._limit.check(self.reasons.total(), position, skipped)

    def restart(self, position: int) -> None:
        """Goes on at another position."""
        self._limit.restart(self.reasons.total(), position)

    def drain(self) -> list[Skipped]:
        """What was recorded since the last call, at most the latest 1,000."""
        recent = list(self._recent)
        self._recent.clear()
        return recent
