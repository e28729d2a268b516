"""Pictures as data URIs, small enough for a page."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image

MOST_FRAMES = 24
"""Of a timeline."""

LARGEST = 720
"""What the longer side of a picture is reduced to."""

QUALITY = 82
"""Of WebP."""

T = TypeVar("T")


def chosen(items: Sequence[T], most: int = MOST_FRAMES) -> list[T]:
    """At most `most` of `items`, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def data_uri(path: Path) -> str:
    """The picture of a PNG: as it is, or as WebP if that is smaller."""
    original = path.read_bytes()
    with Image.open(io.BytesIO(original)) as image:
        picture = image.convert("RGB")
    fits = max(picture.size) <= LARGEST
    if not fits:
        picture.thumbnail((LARGEST, LARGEST))
    reduced = io.BytesIO()
    picture.save(reduced, "WEBP", quality=QUALITY)
    data, kind = reduced.getvalue(), "webp"
    if fits and len(original) <= len(data):
        data, kind = original, "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
