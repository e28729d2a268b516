"""Pictures in rows, with a caption to each, for a person to compare."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from dgan.laboratory.picture import save_picture

Row = tuple[str, Tensor]
"""A caption and uint8 images `[N, C, H, W]`."""

SMALLEST, LARGEST = 64, 256
"""What a picture's longer side is brought to."""

ABREAST = 5
"""Tiles of an animation that stand beside each other."""

_GAP, _APART, _LINE = 3, 14, 12
_PAPER, _INK = (255, 255, 255), (50, 50, 55)


def draw_sheet(rows: Sequence[Row], *, apart: int = 0) -> Image.Image:
    """Each row's caption, and its images beside it.

    Args:
        rows: at least one; they may differ in length, but not in the size of images.
        apart: so many of the first columns stand apart from the others.
    """
    cells = [(caption, [to_picture(image) for image in images]) for caption, images in rows]
    width, height = cells[0][1][0].size
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    lines = [caption.splitlines() for caption, _ in cells]
    margin = round(max((draw.textlength(line) for row in lines for line in row), default=0)) + 8
    columns = max(len(pictures) for _, pictures in cells)
    size = (
        margin + columns * (width + _GAP) + (_APART if apart else 0),
        len(rows) * (height + _GAP) + _GAP,
    )
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (caption, pictures) in enumerate(cells):
        top = _GAP + index * (height + _GAP)
        middle = top + (height - _LINE * len(lines[index])) // 2
        draw.multiline_text((4, middle), caption, _INK, spacing=2)
        for column, picture in enumerate(pictures):
            away = _APART if apart and column >= apart else 0
            sheet.paste(picture, (margin + away + column * (width + _GAP), top))
    return sheet


def save_sheet(rows: Sequence[Row], path: Path, *, apart: int = 0) -> None:
    """`draw_sheet`, written to a PNG."""
    save_picture(draw_sheet(rows, apart=apart), path)


def to_picture(image: Tensor) -> Image.Image:
    """A uint8 image `[C, H, W]`, enlarged by whole pixels if small, reduced if large."""
    pixels = image.cpu().numpy().transpose(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(pixels.repeat(3 // pixels.shape[2], axis=2)))
    longer = max(picture.size)
    if longer < SMALLEST:
        factor = -(-SMALLEST // longer)
        size = picture.width * factor, picture.height * factor
        return picture.resize(size, Image.Resampling.NEAREST)
    picture.thumbnail((LARGEST, LARGEST))
    return picture


def tiled(images: Tensor) -> Image.Image:
    """uint8 images `[N, C, H, W]` as one picture, at most `ABREAST` beside each other."""
    pictures = [to_picture(image) for image in images]
    columns = min(ABREAST, len(pictures))
    width, height = pictures[0].width + _GAP, pictures[0].height + _GAP
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width - _GAP, rows * height - _GAP), _PAPER)
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (place % columns * width, place // columns * height))
    return sheet
