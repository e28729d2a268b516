"""Pictures of points on a plane: samples over the discriminator's field, and animations of them."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from dgan.data.aside import written_aside

SIDE = 480
"""Pixels of a picture."""

_CELLS = 96  # of the field, along a side
_FAKE, _NEUTRAL, _REAL = (214, 96, 77), (247, 247, 247), (67, 147, 195)
_REAL_POINT, _SAMPLE, _INK = (120, 120, 120), (20, 20, 20), (60, 60, 60)

Colour = tuple[int, int, int]


@torch.no_grad()
def field_of(discriminator: Callable[[Tensor], Tensor], extent: float) -> NDArray[np.float64]:
    """Logits over the square [−extent, extent]², `[cells, cells]`, the top row first."""
    axis = (torch.arange(_CELLS) + 0.5) / _CELLS * 2 - 1
    y, x = torch.meshgrid(-extent * axis, extent * axis, indexing="ij")
    logits = discriminator(torch.stack([x, y], -1).reshape(-1, 2))
    # Several judges, or patches, are shown by their mean.
    return logits.double().cpu().reshape(_CELLS, _CELLS, -1).mean(-1).numpy()


def draw_samples(
    samples: Tensor,
    *,
    extent: float,
    real: Tensor | None = None,
    field: NDArray[np.float64] | None = None,
    caption: str = "",
) -> Image.Image:
    """`samples` `[N, 2]` (black) and `real` ones (grey) on the square [−extent, extent]².

    Beneath them the discriminator's `field`: blue where it says real, red where it says generated,
    in equal steps of rank, for logits have no common scale over losses.
    """
    picture = _coloured(field) if field is not None else Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(picture)
    for points, colour in ((real, _REAL_POINT), (samples, _SAMPLE)):
        if points is not None:
            draw.point([tuple(place) for place in _pixels(points, extent)], colour)
    draw.text((6, 4), _plain(caption), _INK)
    return picture


def draw_path(path: Tensor, *, extent: float, caption: str = "") -> Image.Image:
    """A trajectory `[T, 2]` from light to dark, its start, and the origin as a cross."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(picture)
    middle = SIDE // 2
    draw.rectangle([0, 0, SIDE - 1, SIDE - 1], outline=(225, 225, 225))
    draw.line([(0, middle), (SIDE, middle)], (225, 225, 225))
    draw.line([(middle, 0), (middle, SIDE)], (225, 225, 225))
    # Far outside of the picture lines need not be exact, only finite.
    corners = [tuple(corner) for corner in _pixels(path.clamp(-9 * extent, 9 * extent), extent)]
    for index, (begin, end) in enumerate(pairwise(corners)):
        draw.line([begin, end], _blend(index / len(corners), (190, 210, 230), (8, 48, 107)), 2)
    x, y = corners[0]
    draw.ellipse([x - 4, y - 4, x + 4, y + 4], _FAKE)
    draw.line([(middle - 5, middle), (middle + 5, middle)], _INK, 2)
    draw.line([(middle, middle - 5), (middle, middle + 5)], _INK, 2)
    draw.multiline_text((6, 4), _plain(caption), _INK)
    return picture


def side_by_side(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size as one, row by row."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (place % columns * width, place // columns * height))
    return sheet


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG; nobody sees half of it."""
    with written_aside(path) as file:
        picture.save(file, "PNG")


def save_animation(
    frames: Sequence[Image.Image], path: Path, *, seconds: float = 6.0, rest: float = 1.5
) -> None:
    """Write an endless GIF of `frames`, which together take so many seconds.

    The last one stays for `rest` more; 0 closes a loop.

    Raises:
        ValueError: there are no frames.
    """
    if not frames:
        raise ValueError(f"{path}: an animation needs at least one frame")
    # One palette for all frames: what does not change does not flicker.
    some = [frames[i] for i in np.linspace(0, len(frames) - 1, 8).round().astype(int)]
    palette = side_by_side(some, 4).quantize(128)
    reduced = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    each = max(20, round(1000 * seconds / len(frames)))
    with written_aside(path) as file:
        reduced[0].save(
            file,
            "GIF",
            save_all=True,
            append_images=reduced[1:],
            duration=[each] * (len(frames) - 1) + [each + round(1000 * rest)],
            loop=0,
        )


def animate(pictures: Sequence[Path], out: Path, *, seconds: float = 6.0) -> None:
    """A GIF of the PNGs that a run left behind, in the order given.

    Raises:
        ValueError: there are none.
    """
    frames = []
    for path in pictures:
        with Image.open(path) as image:
            frames.append(image.convert("RGB"))
    save_animation(frames, out, seconds=seconds)


def _coloured(field: NDArray[np.float64]) -> Image.Image:
    ordered = np.sort(field, axis=None)
    # The middle of equal ones, so that a field without a slope is neutral.
    below = np.searchsorted(ordered, field, "left")
    ranks = (below + np.searchsorted(ordered, field, "right")) / (2 * field.size)
    weight = (2 * np.abs(ranks - 0.5))[..., None]
    ends = np.where((ranks > 0.5)[..., None], np.array(_REAL), np.array(_FAKE))
    colours = (1 - weight) * np.array(_NEUTRAL) + weight * ends
    image = Image.fromarray(colours.round().astype(np.uint8))
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _pixels(points: Tensor, extent: float) -> list[list[int]]:
    """Of points `[N, 2]` the column and row in the picture; `extent` is at its border."""
    shares = points.detach().double().cpu() / extent
    flipped = torch.stack([shares[:, 0], -shares[:, 1]], dim=1)
    return ((flipped + 1) / 2 * SIDE).nan_to_num(-1e6).clamp(-1e6, 1e6).long().tolist()


def _blend(share: float, light: Colour, dark: Colour) -> Colour:
    r, g, b = (round((1 - share) * a + share * c) for a, c in zip(light, dark))
    return r, g, b


def _plain(text: str) -> str:
    """In letters that Pillow's own font has."""
    return (
        text.replace("−", "-")
        .replace("λ", "eigenvalues")
        .encode("latin-1", "replace")
        .decode("latin-1")
    )
