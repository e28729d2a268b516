"""Bytes of a field → values. Each extension has its decoder in a table here, and none runs code.

Only PNG, JPEG and WebP are ever handed to Pillow, whatever the extension says, and a picture with
more pixels than Pillow's decompression-bomb limit is an error.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zlib
from collections.abc import Callable, Mapping
from tokenize import TokenError
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from .audio import AUDIO_EXTENSIONS, decode_flac, decode_wav, require_soundfile
from .errors import DecodeError

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp")
# Imported for their registration: Pillow itself loads a plugin only once others have failed.
_PLUGINS = (PngImagePlugin, JpegImagePlugin, WebPImagePlugin)
_FORMATS = ("PNG", "JPEG", "WEBP")
_GREY_MODES = ("1", "L", "LA", "F")
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485


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


def convert(image: Image.Image, channels: int) -> Image.Image:
    """Decodes `image` to mode L (1 channel) or RGB (3); alpha is dropped.

    Raises:
        DecodeError: if its data is damaged or cut off.
    """
    mode = "L" if channels == 1 else "RGB"
    try:
        if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would saturate
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image.load()
        return image if image.mode == mode else image.convert(mode)
    except PILLOW_ERRORS as error:
        raise DecodeError(f"its pixels do not decode ({error})") from error


def to_pixels(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    """Decodes `image` to uint8 `[C, H, W]` with 1 or 3 channels; alpha is dropped.

    Raises:
        DecodeError: if its data is damaged or cut off.
    """
    pixels = np.asarray(convert(image, channels))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


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
    """The value of a field that is neither image nor label.

    `.txt` → str, `.json`, `.npy` → array, `.wav` and `.flac` → `Waveform`.

    Raises:
        DecodeError: if it does not decode.
        ValueError: if no decoder is known for its extension.
    """
    decoder = find_decoder(field)
    try:
        return decoder(data)
    except DecodeError:
        raise
    except (ValueError, OSError, EOFError, SyntaxError, RecursionError, OverflowError) as error:
        raise DecodeError(f".{field} does not decode ({error})") from error


def find_decoder(field: str) -> Callable[[bytes], Any]:
    """What decodes a field that is neither image nor label.

    Raises:
        ValueError: if there is none for its extension, or it needs a package that is missing.
    """
    extension = field.rpartition(".")[2]
    if extension not in DECODERS:
        known = ", ".join((*IMAGE_EXTENSIONS, "cls", *DECODERS))
        raise ValueError(f"no decoder for field {field!r}; known extensions: {known}")
    if extension in AUDIO_EXTENSIONS:
        require_soundfile()
    return DECODERS[extension]


def _decode_array(data: bytes) -> NDArray[Any]:
    file = io.BytesIO(data)
    version = npy.read_magic(file)
    if version not in _NPY_HEADERS:
        raise DecodeError(f"its version of .npy, {version}, is not read")
    try:
        shape, _, dtype = _NPY_HEADERS[version](file)
    except (TokenError, TypeError, MemoryError) as error:  # all that its parser lets through
        raise DecodeError("its header is no description of an array") from error
    size, here = math.prod(shape) * max(1, dtype.itemsize), len(data) - file.tell()
    if size > here:  # else memory would be taken for whatever a header claims
        raise DecodeError(f"it claims {size:,} bytes of numbers and holds {here:,}", "cut off")
    file.seek(0)
    # An array of objects would be a pickle, and a pickle is a program.
    return npy.read_array(file, allow_pickle=False)


_NPY_HEADERS: Mapping[tuple[int, int], Callable[..., Any]] = MappingProxyType(
    {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
)


DECODERS: Mapping[str, Callable[[bytes], Any]] = MappingProxyType(
    {
        "txt": bytes.decode,
        "text": bytes.decode,
        "json": json.loads,
        "npy": _decode_array,
        "wav": decode_wav,
        "flac": decode_flac,
    }
)

# What Pillow's plugins are known to raise for damaged data.
PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, OverflowError, IndexError, KeyError,
    struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
