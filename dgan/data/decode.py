"""Bytes of a field → values. Each extension has its decoder in a table here, and none runs code.

Images become uint8 `[C, H, W]`. Only PNG, JPEG and WebP are ever handed to Pillow, whatever the
extension says, and a picture with more pixels than Pillow's decompression-bomb limit is an error.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp")
# Imported for their registration: Pillow itself loads a plugin only once others have failed.
_PLUGINS = (PngImagePlugin, JpegImagePlugin, WebPImagePlugin)
_FORMATS = ("PNG", "JPEG", "WEBP")
_GREY_MODES = ("1", "L", "LA", "F")
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485


class DecodeError(ValueError):
    """Bytes that do not decode. `reason` is a word or two, to count by."""

    def __init__(self, message: str, reason: str = "corrupt") -> None:
        super().__init__(message)
        self.reason = reason


class SizeMismatchError(ValueError):
    """A healthy image of another size than asked: a mistake in the recipe, never skipped."""


def split_image_field(field: str) -> str | None:
    """The name under which an image field is yielded, or None if `field` is no image.

    `"png"` → `"image"`, and of pairs `"a.png"` → `"a"`.
    """
    stem, _, extension = field.rpartition(".")
    return (stem or "image") if extension in IMAGE_EXTENSIONS else None


def open_image(data: bytes) -> Image.Image:
    """Reads the header of a PNG, JPEG or WebP; its pixels are decoded when first asked for.

    Raises:
        DecodeError: if it is none of these, is damaged, or has more than `MAX_PIXELS` pixels.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DecodeError(str(error), "too many pixels") from error
    except PILLOW_ERRORS as error:
        raise DecodeError(f"not a readable PNG, JPEG or WebP ({error})") from error
    check_pixels(image)
    return image


def check_pixels(image: Image.Image) -> None:
    """Refuses more than `MAX_PIXELS` pixels; up to twice that Pillow merely warns.

    Raises:
        DecodeError: if it is that large.
    """
    if image.width * image.height > MAX_PIXELS:
        raise DecodeError(
            f"{image.width}×{image.height} pixels are more than the limit of {MAX_PIXELS:,}",
            "too many pixels",
        )


def image_channels(image: Image.Image) -> int:
    """1 for an image that holds grey levels only, else 3; decodes no pixel."""
    return 1 if image.mode in _GREY_MODES or image.mode.startswith("I") else 3


def to_pixels(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    """Decodes `image` to uint8 `[C, H, W]` with 1 or 3 channels; alpha is dropped.

    Raises:
        DecodeError: if its data is damaged or cut off.
    """
    try:
        if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would saturate
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        mode = "L" if channels == 1 else "RGB"
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    except PILLOW_ERRORS as error:
        raise DecodeError(f"its pixels do not decode ({error})") from error
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def decode_image(data: bytes, shape: tuple[int, int, int], *, key: str) -> NDArray[np.uint8]:
    """Decodes one image to uint8 `[C, H, W]` of exactly `shape`.

    Raises:
        DecodeError: if it does not decode.
        SizeMismatchError: if it is of another height or width; the message names `key`.
    """
    image = open_image(data)
    channels, height, width = shape
    if image.size != (width, height):
        size = str(height) if height == width else "SIZE"
        raise SizeMismatchError(
            f"sample {key!r} is {image.width}×{image.height} (width × height), but {width}×{height}"
            f" is wanted; make shards of one size with `dgan data pack --resolution {size}`"
        )
    return to_pixels(image, channels)


def decode_label(data: bytes) -> int:
    """The class in a `.cls` field: decimal digits, as WebDataset writes them.

    Raises:
        DecodeError: if it is anything else.
    """
    try:
        label = int(data)
    except ValueError:
        raise DecodeError(f".cls is no integer: {data[:32]!r}", "bad label") from None
    if not 0 <= label < 1 << 31:
        raise DecodeError(f".cls is out of range: {label}", "bad label")
    return label


def decode_field(field: str, data: bytes) -> Any:
    """The value of a field that is neither image nor label: `.txt` → str, `.json`, `.npy` → array.

    Raises:
        DecodeError: if it does not decode.
        ValueError: if no decoder is known for its extension.
    """
    extension = field.rpartition(".")[2]
    decoder = DECODERS.get(extension)
    if decoder is None:
        known = ", ".join((*IMAGE_EXTENSIONS, "cls", *DECODERS))
        raise ValueError(f"no decoder for field {field!r}; known extensions: {known}")
    try:
        return decoder(data)
    except (ValueError, OSError, EOFError, SyntaxError, RecursionError) as error:
        raise DecodeError(f".{field} does not decode ({error})") from error


def _decode_array(data: bytes) -> NDArray[Any]:
    # An array of objects would be a pickle, and a pickle is a program.
    return np.load(io.BytesIO(data), allow_pickle=False)


DECODERS: Mapping[str, Callable[[bytes], Any]] = MappingProxyType(
    {"txt": bytes.decode, "text": bytes.decode, "json": json.loads, "npy": _decode_array}
)

# What Pillow's plugins are known to raise for damaged data.
PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, OverflowError, IndexError, KeyError,
    struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
