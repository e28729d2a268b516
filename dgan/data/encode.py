"""An item → the members of its sample: reading, fitting and encoding; threads do this."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .audio import AUDIO_EXTENSIONS, read_audio
from .decode import (
    DECODERS,
    PILLOW_ERRORS,
    DecodeError,
    check_pixels,
    decode_field,
    decode_label,
)
from .fit import Fit
from .items import Item, Piece, Slice, read_piece

PICTURE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm",
)  # fmt: skip
KEEP = "keep"
# Keyword arguments of Pillow's save. WebP is lossless; JPEG keeps the colour at full resolution.
_ENCODINGS = {
    "png": {"format": "PNG"},
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    "webp": {"format": "WEBP", "lossless": True},
}
ENCODINGS = (*_ENCODINGS, KEEP)
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp"}  # kept as they are
_ORIENTATION = 0x0112  # the EXIF tag


class Packed(NamedTuple):
    """A sample as it goes into a shard.

    Attributes:
        key: its name.
        members: (field, bytes), in order; the label is among them.
        label: its class, or None.
        sizes: (width, height) of each picture.
        channels: 3 if a picture has colour, 1 if there are only grey ones, 0 without pictures.
    """

    key: str
    members: tuple[tuple[str, bytes], ...]
    label: int | None
    sizes: dict[str, tuple[int, int]]
    channels: int


class Failure(NamedTuple):
    """An item that cannot be packed, and why."""

    name: str
    error: Exception


@dataclass(frozen=True)
class Encoder:
    """Makes samples of items.

    Attributes:
        fit: the size and channels that every picture is brought to.
        encoding: `"png"`, `"jpg"` (quality 95) or `"webp"` (lossless) for pictures that had to be
            changed, the others keep their bytes; `"keep"` never changes one, whatever its size.
        halves: whether a picture is a pair side by side: the left half is `a`, the right one `b`.

    Raises:
        ValueError: if there is no such encoding, or `"keep"` meets a wish to change pictures.
    """

    fit: Fit
    encoding: str = "png"
    halves: bool = False

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise ValueError(
                f"encoding must be one of {', '.join(ENCODINGS)}; got {self.encoding!r}"
            )
        if self.encoding == KEEP and (self.halves or self.fit != Fit()):
            raise ValueError(
                "encoding 'keep' leaves pictures as they are: leave resolution, channels, fit, "
                "filter and pairs side-by-side out, or choose png, jpg or webp"
            )

    def __call__(self, item: Item) -> Packed | Failure:
        """The sample of `item`, or why there is none."""
        try:
            return self._encode(item)
        except (DecodeError, *PILLOW_ERRORS) as error:
            return Failure(item.name, error)

    def _encode(self, item: Item) -> Packed:
        members: list[tuple[str, bytes]] = []
        sizes: dict[str, tuple[int, int]] = {}
        channels = 0
        for name, piece in item.images.items():
            for part, data, extension, image in self._pictures(name, piece):
                members.append((extension if part == "image" else f"{part}.{extension}", data))
                sizes[part] = image.size
                channels = max(channels, 1 if image.mode in ("1", "L") else 3)
        members += [(field, _file(field, piece)) for field, piece in item.files.items()]
        if item.frames:
            members.append(("npy", self._clip(item.frames)))
        label = item.label
        if isinstance(label, Slice):
            label = decode_label(read_piece(label))
        if label is not None:
            members.append(("cls", str(label).encode()))
        return Packed(item.key, tuple(members), label, sizes, channels)

    def _pictures(self, name: str, piece: Piece) -> list[tuple[str, bytes, str, Image.Image]]:
        """Of each picture that `piece` becomes its name, bytes, extension and size."""
        image, data = _open(piece)
        if self.encoding == KEEP:
            if data is None or image.format not in _EXTENSIONS:
                kind = image.format or "an array"
                raise DecodeError(
                    f"it is {kind}, which a shard cannot keep as it is; choose --encoding png"
                )
            return [(name, data, _EXTENSIONS[image.format], image)]
        if not self.halves:
            return [(name, *self._finish(image, data))]
        if image.width % 2:
            raise DecodeError(f"it is {image.width} wide: two halves need an even width")
        middle = image.width // 2
        boxes = {"a": (0, 0, middle, image.height), "b": (middle, 0, image.width, image.height)}
        return [(part, *self._finish(image.crop(box), None)) for part, box in boxes.items()]

    def _finish(self, image: Image.Image, data: bytes | None) -> tuple[bytes, str, Image.Image]:
        turned = image.getexif().get(_ORIENTATION, 1) != 1 if data is not None else False
        if turned or image.format not in _EXTENSIONS:
            data = None
        fitted = self.fit(ImageOps.exif_transpose(image) if turned else image, data)
        if isinstance(fitted, bytes):
            return fitted, _EXTENSIONS[image.format or ""], image
        buffer = io.BytesIO()
        fitted.save(buffer, **_ENCODINGS[self.encoding])
        return buffer.getvalue(), self.encoding, fitted

    def _clip(self, frames: tuple[Path, ...]) -> bytes:
        """A clip as the bytes of an `.npy`: uint8 `[T, C, H, W]`."""
        pictures: list[Image.Image] = []
        for path in frames:
            picture = self.fit(ImageOps.exif_transpose(_open(path)[0]))
            assert isinstance(picture, Image.Image), "no bytes were offered"
            pictures.append(picture)
            if picture.size != pictures[0].size:
                raise DecodeError(
                    f"frame {path.name} is {picture.width}×{picture.height}, {frames[0].name} is "
                    f"{pictures[0].width}×{pictures[0].height}; --resolution makes them equal"
                )
        mode = "L" if all(picture.mode == "L" for picture in pictures) else "RGB"
        arrays = [np.asarray(picture.convert(mode)) for picture in pictures]
        clip = np.stack([a[None] if a.ndim == 2 else a.transpose(2, 0, 1) for a in arrays])
        buffer = io.BytesIO()
        np.save(buffer, clip, allow_pickle=False)
        return buffer.getvalue()


def _open(piece: Piece) -> tuple[Image.Image, bytes | None]:
    """A picture, decoded, and the bytes of its file if it is one."""
    if isinstance(piece, Image.Image):
        return piece, None
    if isinstance(piece, np.ndarray):
        return Image.fromarray(piece[..., 0] if piece.shape[2:] == (1,) else piece), None
    data = read_piece(piece)
    Image.init()  # Pillow knows but five formats until it is told to look for the others
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise DecodeError(f"it is no image ({', '.join(_FORMATS)})") from None
    check_pixels(image)
    image.load()
    return image, data


def _file(field: str, piece: Piece) -> bytes:
    """The bytes of a field that is kept, checked where its extension has a decoder."""
    assert not isinstance(piece, Image.Image | np.ndarray), "pictures are no files to be kept"
    data = read_piece(piece)
    extension = field.rpartition(".")[2]
    if extension in AUDIO_EXTENSIONS:
        read_audio(extension, data)
    elif extension in DECODERS:
        decode_field(field, data)
    return data
