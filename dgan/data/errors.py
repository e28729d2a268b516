"""What is wrong with a sample."""

from __future__ import annotations


class DecodeError(ValueError):
    """Bytes that do not decode. `reason` is a word or two, to count by."""

    def __init__(self, message: str, reason: str = "corrupt") -> None:
        super().__init__(message)
        self.reason = reason


class SizeMismatchError(ValueError):
    """A healthy image of another size than asked: a mistake in the recipe, never skipped."""
