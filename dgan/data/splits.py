"""Which split a sample belongs to: one for all, or by a hash of its key, fixed as data grows."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

HASH_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class OneSplit:
    """Every sample belongs to `name`.

    Raises:
        ValueError: if `name` is not fit to begin a shard's name.
    """

    name: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise ValueError(f"split must be made of letters, digits, - and _; got {self.name!r}")

    @property
    def names(self) -> tuple[str, ...]:
        """The splits that there are."""
        return (self.name,)

    def of(self, key: str) -> str:
        """The split of the sample `key`."""
        return self.name


@dataclass(frozen=True)
class HashSplits:
    """Samples are dealt to train, validation and test by a hash of their keys alone.

    A sample stays where it is when others are added, removed or packed in another order.

    Attributes:
        percent: of train, validation and test; they add up to 100.
    """

    percent: tuple[float, float, float]

    @classmethod
    def parse(cls, text: str) -> HashSplits:
        """The splits that `text` says, as in `"90/5/5"`.

        Raises:
            ValueError: if it is not three numbers that add up to 100.
        """
        try:
            train, validation, test = (float(part) for part in text.split("/"))
        except ValueError:
            train = validation = test = -1.0
        percent = train, validation, test
        if min(percent) < 0 or not abs(sum(percent) - 100) < 1e-6:
            raise ValueError(
                "split-by-hash must be the percentages of train, validation and test, as in "
                f"90/5/5 (they add up to 100); got {text!r}"
            )
        return cls(percent)

    @property
    def names(self) -> tuple[str, ...]:
        """The splits that get samples."""
        return tuple(name for name, share in zip(HASH_SPLITS, self.percent) if share)

    def of(self, key: str) -> str:
        """The split of the sample `key`."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64 * 100
        for name, share in zip(HASH_SPLITS, self.percent):
            place -= share
            if place < 0:
                return name
        return self.names[-1]  # rounding


Splits = OneSplit | HashSplits
