"""A picture of some samples of shards, to look at before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .aside import written_aside
from .dataset import ShardDataset
from .decode import DecodeError, image_channels, open_image, to_pixels
from .journal import find_record

_MARGIN = 4
_CAPTION = 13  # height of a line of Pillow's own font
_SMALLEST, _LARGEST = 64, 256  # what a picture's longer side is brought to
_PAPER, _INK, _BROKEN = (255, 255, 255), (40, 40, 40), (200, 60, 60)


def contact_sheet(
    shards: str | Path | Sequence[str | Path],
    *,
    count: int = 64,
    columns: int | None = None,
    seed: int = 0,
) -> Image.Image:
    """`count` samples of `shards` chosen by `seed`, with class or key beneath each.

    Args:
        shards: paths, patterns or addresses, as `ShardDataset` takes them.
        count: how many; all, if there are no more.
        columns: in a row; None: as many as make a square.
        seed: of the choice; the same one shows the same samples.

    Raises:
        ValueError: if `count` or `columns` is less than 1, a shard is damaged or there is no
            picture in them. A sample that does not decode is shown as such.
    """
    if count < 1 or (columns is not None and columns < 1):
        raise ValueError(f"count and columns must be at least 1, got {count} and {columns}")
    with ShardDataset(shards) as dataset:
        count = min(count, len(dataset))
        chosen = np.random.default_rng(seed).choice(len(dataset), count, replace=False).tolist()
        first = dataset.shards[0]
        found = find_record(first) if isinstance(first, Path) else None
        names = found[1].classes if found else ()
        cells = [(_picture(dataset, i), _caption(dataset, i, names)) for i in chosen]
    return _arrange(cells, min(columns or round(count**0.5), count))


def _arrange(cells: Sequence[tuple[Image.Image, str]], columns: int) -> Image.Image:
    width = max(image.width for image, _ in cells) + _MARGIN
    height = max(image.height for image, _ in cells) + _CAPTION + _MARGIN
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * width + _MARGIN, rows * height + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (image, caption) in enumerate(cells):
        left = _MARGIN + place % columns * width
        top = _MARGIN + place // columns * height
        sheet.paste(image, (left, top))
        draw.text((left, top + image.height), _shorten(draw, caption, width - _MARGIN), _INK)
    return sheet


def check_name(path: Path) -> None:
    """Refuses a `path` that does not say that it is a PNG.

    Raises:
        ValueError: if it does not end in .png.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"a contact sheet is a PNG: name it so, as in sheet.png; got {path}")


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Writes `sheet` as a PNG; nobody sees half of it.

    Raises:
        ValueError: if `path` does not end in .png.
    """
    check_name(path)
    with written_aside(path) as file:
        sheet.save(file, "PNG")


def _picture(dataset: ShardDataset, i: int) -> Image.Image:
    """The pictures of sample `i` side by side, or a red square if one does not decode."""
    try:
        parts = [_decode(dataset.table.read(i, name)) for name in dataset.image_names]
    except DecodeError:
        return Image.new("RGB", (_SMALLEST, _SMALLEST), _BROKEN)
    together = Image.new("RGB", (sum(p.width for p in parts), max(p.height for p in parts)), _PAPER)
    left = 0
    for part in parts:
        together.paste(part, (left, 0))
        left += part.width
    return together


def _decode(data: bytes) -> Image.Image:
    image = open_image(data)
    pixels = to_pixels(image, image_channels(image))
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    longer = max(picture.size)
    if longer < _SMALLEST:  # whole multiples, so that small pixels stay as they are
        factor = _SMALLEST // longer
        size = picture.width * factor, picture.height * factor
        return picture.resize(size, Image.Resampling.NEAREST).convert("RGB")
    picture = picture.convert("RGB")
    picture.thumbnail((_LARGEST, _LARGEST))
    return picture


def _caption(dataset: ShardDataset, i: int, names: Sequence[str]) -> str:
    if not dataset.has_labels:
        return dataset.table.key(i)
    try:
        label = dataset.table.label(i)
    except DecodeError:
        return "bad label"
    return names[label] if label < len(names) else str(label)


def _shorten(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """As much of the end of `text` as is no wider than `width`, in letters that the font has."""
    text = text.encode("latin-1", "replace").decode("latin-1")
    while len(text) > 1 and draw.textlength(text) > width:
        text = text[1:]
    return text
