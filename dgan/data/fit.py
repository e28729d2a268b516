"""Bringing a picture to the size and the channels that a data set shall have."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}
FITS = ("crop", "pad")


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How every picture of a source is made to fit: `fit(image)` returns what to store.

    Attributes:
        resolution: height and width in pixels; None keeps each picture's own.
        channels: 1 (grey) or 3 (RGB); None keeps grey pictures grey and makes all others RGB.
        mode: `"crop"` cuts the largest square from the centre and resizes it; `"pad"` surrounds a
            picture that is no larger than `resolution` with black instead, without resampling.
        filter: of the resizing; all but `nearest` average over the pixels that one replaces.

    Raises:
        ValueError: if one of these is not possible; the message says what is.
    """

    resolution: int | None = None
    channels: int | None = None
    mode: str = "crop"
    filter: str = "lanczos"

    def __post_init__(self) -> None:
        size = self.resolution
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise ValueError(f"resolution must be a positive integer, as in 32; got {size!r}")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels!r}")
        if self.mode not in FITS:
            raise ValueError(f"fit must be one of {', '.join(FITS)}; got {self.mode!r}")
        if self.filter not in FILTERS:
            raise ValueError(f"filter must be one of {', '.join(FILTERS)}; got {self.filter!r}")

    def __call__(self, image: Image.Image, encoded: bytes | None = None) -> Image.Image | bytes:
        """The picture to store, or `encoded` (its file's bytes) if nothing has to change.

        Keeping the bytes matters: a JPEG that is decoded and encoded again is a worse one.
        """
        fitted = self._resize(self._recolour(image))
        return encoded if encoded is not None and fitted is image else fitted

    def _recolour(self, image: Image.Image) -> Image.Image:
        if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would saturate
            image = image.point(lambda value: value / 256).convert("L")
        grey = image.mode in ("1", "L", "LA", "F") if self.channels is None else self.channels == 1
        mode = "L" if grey else "RGB"
        return image if image.mode == mode else image.convert(mode)

    def _resize(self, image: Image.Image) -> Image.Image:
        size = self.resolution
        if size is None or image.size == (size, size):
            return image
        width, height = image.size
        if self.mode == "pad" and max(width, height) <= size:
            padded = Image.new(image.mode, (size, size))
            padded.paste(image, ((size - width) // 2, (size - height) // 2))
            return padded
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        square = (left, top, left + side, top + side)
        return image.resize((size, size), FILTERS[self.filter], box=square)
