"""What is wrong with a sample."""

from __future__ import annotations

REASONS = (
    "bad label", "changed", "corrupt", "cut off", "forbidden", "missing", "missing field",
    "shard cut off", "too many pixels", "too many samples", "unreachable",
)  # fmt: skip
"""Why a sample is skipped. What a server may answer beyond these counts as unreachable."""


class DecodeError(ValueError):
    """Bytes that do not decode. `reason` is a word or two to count by, as a rule of `REASONS`."""

    def __init__(self, message: str, reason: str = "corrupt") -> None:
        super().__init__(message)
        self.reason = reason


class SizeMismatchError(ValueError):
    """A healthy image of another size than asked: a mistake in the recipe, never skipped."""
