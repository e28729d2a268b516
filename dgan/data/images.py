"""An image's bytes → a row of a batch: decoded, cropped, mirrored.

What a crop does to an image that is not just `resolution` × `resolution`:

- `"none"`: refuses it.
- `"centre"`: cuts the largest square from the middle and resizes it (Lanczos, as `dgan data pack`
  does: the same pixels).
- `"random"`: the same with a square anywhere along the longer side.
- `"window"`: cuts `resolution` × `resolution` pixels from anywhere, without resizing.

With `resize`, `"random"` is the jitter of pix2pix and CycleGAN, 286 → 256: the shorter side is
resized to that many pixels, and `resolution` × `resolution` of them are cut out from anywhere.

Where a crop is drawn, evaluation takes the middle. libjpeg's scaled decoding is not used: it is
hardly faster, and up to 25 of 255 levels away from resizing the whole picture.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import decode
from .decode import PILLOW_ERRORS, convert, open_image
from .errors import DecodeError, SizeMismatchError
from .jpeg import decode_jpeg, open_jpeg

CROPS = ("none", "centre", "random", "window")
DRAWN = ("random", "window")


class View(NamedTuple):
    """How the images of a sample are seen, all of them alike.

    Attributes:
        mirror: left to right.
        at: where the crop lies, each from 0 (left, top) to 1; None: in the middle.
    """

    mirror: bool = False
    at: tuple[float, float] | None = None


PLAIN = View()


def decode_image(
    data: bytes,
    row: NDArray[np.uint8],
    *,
    key: str,
    crop: str = "none",
    resize: int = 0,
    view: View = PLAIN,
) -> None:
    """Decodes one image into `row`, uint8 `[H, W, C]`, contiguous.

    Raises:
        DecodeError: if it does not decode; `row` then holds anything.
        SizeMismatchError: if it is of a size that `crop` does not take; the message names `key`.
    """
    if view.at is None:
        resize = 0
    if not resize and decode_jpeg(data, row, mirror=view.mirror):
        return
    height, width, channels = row.shape
    image = None
    if crop != "none":
        image = open_jpeg(data, channels, decode.MAX_PIXELS)
    image = image or open_image(data)
    if image.size != (width, height) and (crop == "none" or _too_small(image.size, crop, width)):
        raise SizeMismatchError(_describe_mismatch(key, image.size, (width, height), crop))
    image = convert(image, channels)
    try:
        if resize:
            box = jitter_box(image.size, resize, width, view.at or (0, 0))
            image = image.resize((width, width), Image.Resampling.LANCZOS, box=box)
        elif image.size != (width, height):
            image = _cut(image, crop_box(image.size, crop, width, view.at), width)
        if view.mirror:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    except PILLOW_ERRORS as error:
        raise DecodeError(f"its pixels do not decode ({error})") from error
    row[...] = np.asarray(image).reshape(row.shape)


def crop_box(
    size: tuple[int, int], crop: str, resolution: int, at: tuple[float, float] | None
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the square that `crop` cuts from an image of (width, height).

    Every whole pixel that the square can begin at is equally likely for a uniform `at` in [0, 1).
    """
    side = resolution if crop == "window" else min(size)
    free = (size[0] - side, size[1] - side)
    if at is None or crop not in DRAWN:
        left, top = free[0] // 2, free[1] // 2
    else:
        left, top = int(at[0] * (free[0] + 1)), int(at[1] * (free[1] + 1))
    return left, top, left + side, top + side


def jitter_box(
    size: tuple[int, int], resize: int, resolution: int, at: tuple[float, float]
) -> tuple[float, float, float, float]:
    """The part of an image of (width, height) that resizing and then cutting leaves.

    Resampled at once, it has the pixels that it has if the whole image is resized first.
    """
    scale = min(size) / resize
    left, top = (
        scale * int(place * (round(length / scale) - resolution + 1))
        for length, place in zip(size, at)
    )
    side = scale * resolution
    return left, top, min(left + side, size[0]), min(top + side, size[1])


def _cut(image: Image.Image, box: tuple[int, int, int, int], resolution: int) -> Image.Image:
    if box[2] - box[0] == resolution:
        return image.crop(box)
    return image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box)


def _too_small(size: tuple[int, int], crop: str, resolution: int) -> bool:
    return crop == "window" and min(size) < resolution


def _describe_mismatch(key: str, has: tuple[int, int], wanted: tuple[int, int], crop: str) -> str:
    found = f"sample {key!r} is {has[0]}×{has[1]} (width × height)"
    if crop == "window":
        return (
            f"{found}, and a window of {wanted[0]}×{wanted[1]} does not fit into it; "
            "crop 'random' or 'centre' resizes"
        )
    size = str(wanted[0]) if wanted[0] == wanted[1] else "SIZE"
    return (
        f"{found}, but {wanted[0]}×{wanted[1]} is wanted; make shards of one size with "
        f"`dgan data pack --resolution {size}`, or crop while training: crop 'centre' or 'random'"
    )
