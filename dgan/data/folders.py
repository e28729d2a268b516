"""Pictures in folders: which there are, what their classes are, and how one is read."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageOps

from .decode import check_pixels
from .fit import Fit

SPLIT_NAMES = {"train", "test", "val", "valid", "validation"}

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_KEPT_FORMATS = ("PNG", "JPEG", "WEBP")  # what a shard may hold as it is
_ORIENTATION = 0x0112  # the EXIF tag


def find_classes(path: Path, split: str) -> tuple[Path, tuple[str, ...]]:
    """The folder that holds the pictures of `split`, and the names of the classes (or none).

    Raises:
        ValueError: if `path` has a folder for each split, but none for this one.
    """
    folders = {p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")}
    # `train` may also be a class (of vehicles): it is a split only among its like.
    if not folders or not folders <= SPLIT_NAMES:
        roots, root = [path], path
    elif split in folders:
        roots, root = [path / name for name in sorted(folders)], path / split
    else:
        raise ValueError(f"{path} has the splits {', '.join(sorted(folders))}, not {split!r}")
    # Over all splits: a class that one of them lacks must not shift the numbers of the others.
    parts = [file.relative_to(r).parts for r in roots for file in list_images(r)]
    if any(len(part) == 1 for part in parts):
        return root, ()  # pictures beside the folders: then the folders are no classes
    return root, tuple(sorted({part[0] for part in parts}))


def list_images(root: Path) -> list[Path]:
    """The pictures under `root`, however deep, sorted by path; hidden ones are passed over."""
    return sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in _SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


def read_picture(file: Path, fit: Fit) -> Image.Image | bytes:
    """A picture as `fit` wants it, turned as its EXIF data says; its very bytes where they will do.

    Raises:
        DecodeError: if it has too many pixels.
        OSError, SyntaxError, ValueError: what Pillow raises for a damaged file.
    """
    Image.init()  # Pillow knows but five formats until it is told to look for the others
    data = file.read_bytes()
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        check_pixels(image)
        image.load()
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        keeps = image.format in _KEPT_FORMATS and not turned
        return fit(ImageOps.exif_transpose(image) if turned else image, data if keeps else None)
