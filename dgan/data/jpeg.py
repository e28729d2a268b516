"""JPEGs through simplejpeg, which is libjpeg-turbo without Pillow's copies, where it is installed.

It is asked only for what Pillow answers alike, to the bit: the same inverse DCT and upsampling, of
grey, YCbCr and RGB files. Whatever it refuses or so much as warns about is left to Pillow, whose
word counts; so neither pixels nor errors depend on which packages are installed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def _import() -> Any:
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


simplejpeg = _import()
_MAGIC = b"\xff\xd8\xff"
_JFIF = b"JFIF"
# Colour becomes grey in Pillow only: libjpeg would hand out Y, which Pillow rounds otherwise.
_SPACES = {1: ("Gray",), 3: ("YCbCr", "RGB", "Gray")}
_ERRORS = (ValueError, RuntimeError)  # what it raises, also for warnings


def decode_jpeg(data: bytes, row: NDArray[np.uint8], *, mirror: bool = False) -> bool:
    """Decodes a JPEG of exactly `row`'s size into it, uint8 `[H, W, C]`, contiguous.

    False if it was not for us to decode: `row` then holds anything.
    """
    if simplejpeg is None or data[:3] != _MAGIC:
        return False
    height, width, channels = shape = row.shape
    colours = "GRAY" if channels == 1 else "BGR" if mirror else "RGB"
    try:
        # Reading the header costs as much as all else here that is not decoding, and tells nothing
        # of a JFIF file: such have the spaces that are ours, and the size is seen afterwards.
        if channels == 1 or data[6:10] != _JFIF:
            found = simplejpeg.decode_jpeg_header(data, strict=True)
            if found[:2] != (height, width) or found[2] not in _SPACES[channels]:
                return False
        if simplejpeg.decode_jpeg(data, colours, buffer=row, strict=True).shape != shape:
            return False
    except _ERRORS:
        return False
    if mirror:
        # Read backwards, a line of BGR is the mirrored line in RGB: eight bytes at once, by
        # copying big-endian words from the right into little-endian ones from the left.
        word = math.gcd(width * channels, 8)
        line = row.reshape(height, width * channels)
        line.view(f"<u{word}")[:] = line.view(f">u{word}")[:, ::-1]
    return True


def open_jpeg(data: bytes, channels: int, max_pixels: int) -> Image.Image | None:
    """A decoded JPEG of any size up to `max_pixels`, or None if Pillow is to open it."""
    if simplejpeg is None or data[:3] != _MAGIC:
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=True)
        if height * width > max_pixels or space not in _SPACES[channels]:
            return None
        pixels = simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY", strict=True)
    except _ERRORS:
        return None
    return Image.fromarray(pixels if channels == 3 else pixels[..., 0])
