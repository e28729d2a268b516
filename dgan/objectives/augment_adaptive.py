"""ADA's augmentations (Karras et al. 2020, "Training GANs with limited data", appendix B): "bgc".

Pixel blitting, general geometric transformations and colour transformations, each applied to an
image with probability p, and cutout. See `augment` for what all augmentations have in common.
"""

import math

import torch
from torch import Tensor

from dgan.objectives.augment import check_numbers, columns, one_of, picked
from dgan_kernels import upfirdn2d

BLIT, GEOMETRY, COLOR, CUTOUT = (3, 4), (5, 6), (5, 5), (1, 2)
"""Of each group, how many transforms and how many parameters they have."""

ADAPTIVE_NUMBERS = sum(BLIT) + sum(GEOMETRY) + sum(COLOR) + sum(CUTOUT)
"""Columns of `uniform` in `adaptive_augment`, whichever groups are taken."""

SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
"""Daubechies' least asymmetric orthogonal filter with 6 vanishing moments; it sums to √2."""

DELAY = len(SYM6) // 2 - 1
"""Taps of `SYM6` before its middle pair."""

CENTRE = sum(index * tap for index, tap in enumerate(SYM6)) / sum(SYM6) - DELAY
"""Where a linear ramp is after the filter, from tap `DELAY` on: 0.1, where symmetric ones have ½.
On an image that is turned between the two passes, the difference would show as a shift."""


def adaptive_augment(
    images: Tensor,
    uniform: Tensor,
    p: Tensor | float,
    groups: str = "bgc",
    *,
    color: float = 1.0,
    cutout: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Augment images as ADA does, each transform with probability p.

    `b`, pixel blitting: mirroring, quarter turns, translation by whole pixels up to an eighth of
    the size. `g`: scaling, rotation before and after anisotropic scaling, translation by
    fractions. `c`: brightness, contrast, luma inversion, hue, saturation. The image goes on
    beyond its border as its reflection. At last, cutout: a square of half the size becomes 0.

    Args:
        images: `[N, C, H, H]`, C 1 or 3; grey images have no hue and saturation.
        uniform: `[N, ADAPTIVE_NUMBERS]` in [0, 1).
        p: the probability; as a tensor, a scalar (see `augment.adapted`).
        groups: which of `bgc`; each keeps its numbers whichever others are there.
        color: the probability of each transform of `c` is this times p.
        cutout: that of cutout is this times p.
        backend: of the resampling; see `dgan_kernels.upfirdn2d`.

    Raises:
        ValueError: there is no such group, images are not square or of other channels, or
            `uniform` has another shape.

    Limits:
        The geometric group resamples once, bilinearly on a grid of twice the resolution between
        two passes of an orthogonal filter, as the paper does; an image that no transform of it
        falls on is left as it is. Reflection is exact up to that filter's slight asymmetry.
    """
    if not groups or set(groups) - set("bgc"):
        raise ValueError(f"groups is {groups!r}; choose some of 'bgc'")
    check_numbers(images, uniform, ADAPTIVE_NUMBERS)
    if images.shape[2] != images.shape[3] or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images are {tuple(images.shape[1:])}; ADA takes square ones of 1 or 3 channels"
        )
    wide = torch.promote_types(images.dtype, torch.float32)
    sizes = [sum(group) for group in (BLIT, GEOMETRY, COLOR, CUTOUT)]
    blit, geometry, colors, cut = uniform.to(wide).split(sizes, dim=1)
    # Filled on the device: a copy from the host would wait for all that goes on there.
    p = p.to(wide) if isinstance(p, Tensor) else uniform.new_full((), p, dtype=wide)
    if "b" in groups:
        images = _blitted(images, blit, p)
    if "g" in groups:
        images = _warped(images, geometry, p, backend)
    if "c" in groups:
        images = _recolored(images, colors, color * p)
    return _cut_out(images, cut, cutout * p) if cutout else images


def _blitted(x: Tensor, uniform: Tensor, p: Tensor) -> Tensor:
    size = x.shape[2]
    gates, (flip, turn, down, right) = _gated(uniform, BLIT, p)
    mirrored = gates[0] * one_of(flip, 2)
    quarter = gates[1] * one_of(turn, 4) * (math.pi / 2)
    shifts = [gates[2] * ((number - 0.5) / 4 * size).round() for number in (down, right)]
    cos, sin = quarter.cos().round(), quarter.sin().round()
    # Backwards from a pixel of the result, around the centre: translation, turn, mirroring.
    centred = torch.arange(size, device=x.device, dtype=uniform.dtype) - (size - 1) / 2
    rows, columns = centred[:, None] - shifts[0], centred - shifts[1]
    rows, columns = cos * rows - sin * columns, sin * rows + cos * columns
    columns = columns * (1 - 2 * mirrored)
    middle = (size - 1) / 2
    rows, columns = (_reflected((i + middle).round(), size).long() for i in (rows, columns))
    return picked(x, rows.squeeze(1), columns.squeeze(1))


def _warped(x: Tensor, uniform: Tensor, p: Tensor, backend: str | None) -> Tensor:
    # One of two rotations falls on an image with probability p, so each with this.
    rotated = 1 - (1 - p).sqrt()
    chances = torch.stack([p, rotated, p, rotated, p])
    gates, numbers = _gated(uniform, GEOMETRY, chances)
    scale, before, stretch, after, down, right = numbers
    scale, stretch = (_log_normal(gates[i] * _normal(n)) for i, n in ((0, scale), (2, stretch)))
    before, after = (gates[i] * (n - 0.5) * (2 * math.pi) for i, n in ((1, before), (3, after)))
    size = x.shape[2]
    shifts = [gates[4] * _normal(number) * (size / 8) for number in (down, right)]

    # The result's pixels at twice the resolution, with what the filter reaches beyond the border.
    grid = torch.arange(-DELAY, 2 * size + DELAY, device=x.device, dtype=uniform.dtype)
    centred = (grid - CENTRE) / 2 - (size - 1) / 2
    rows, columns = centred[:, None] - shifts[0], centred - shifts[1]
    rows, columns = _rotated(rows, columns, -after)
    rows, columns = rows * stretch, columns / stretch
    rows, columns = _rotated(rows, columns, -before)
    rows, columns = (i / scale + (size - 1) / 2 for i in (rows, columns))

    taps = torch.tensor(SYM6, device=x.device, dtype=torch.float32) / math.sqrt(2)
    fine = _refined(x, taps, backend)
    inside = [_reflected(i.squeeze(1), size) * 2 + CENTRE for i in (rows, columns)]
    warped = upfirdn2d(_bilinear(fine, *inside), taps, down=2, flip_filter=True, backend=backend)
    touched = torch.stack(gates).amax(0) > 0
    return torch.where(touched, warped, x)


def _recolored(x: Tensor, uniform: Tensor, p: Tensor) -> Tensor:
    gates, numbers = _gated(uniform, COLOR, p)
    brightness, contrast, inverted, hue, saturation = numbers
    brightness = gates[0] * 0.2 * _normal(brightness)
    contrast = _log_normal(gates[1] * _normal(contrast), 0.5)
    inverted = 1 - 2 * gates[2] * one_of(inverted, 2)
    hue = gates[3] * (hue - 0.5) * (2 * math.pi)
    saturation = _log_normal(gates[4] * _normal(saturation), 1.0)
    x = x + brightness.to(x.dtype)
    # Luma is the part along (1, 1, 1), chroma the part across, which turns about that axis.
    grey = x.mean(1, keepdim=True)
    luma = contrast * inverted
    if x.shape[1] == 1:
        return x * luma.to(x.dtype)
    chroma = x - grey
    across = (x.roll(1, 1) - x.roll(-1, 1)) / math.sqrt(3)
    turned = hue.cos().to(x.dtype) * chroma + hue.sin().to(x.dtype) * across
    return luma.to(x.dtype) * grey + (contrast * saturation).to(x.dtype) * turned


def _cut_out(x: Tensor, uniform: Tensor, p: Tensor) -> Tensor:
    """Hide a square around a point anywhere in the image; what lies beyond the border is lost."""
    gates, centres = _gated(uniform, CUTOUT, p)
    size = x.shape[2]
    pixels = (torch.arange(size, device=x.device, dtype=uniform.dtype) + 0.5) / size
    near = [(pixels - centre).abs() < 0.25 for centre in centres]
    hidden = near[0].mT & near[1] & (gates[0] > 0)
    return x * ~hidden


def _gated(
    uniform: Tensor, sizes: tuple[int, int], chance: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Which transforms fall on each image (1 or 0), and the numbers for them: each [N, 1, 1, 1]."""
    draws, numbers = uniform.split(list(sizes), dim=1)
    return list(columns((draws < chance).to(uniform.dtype))), list(columns(numbers))


def _normal(uniform: Tensor) -> Tensor:
    """Standard normal numbers of uniform ones in [0, 1)."""
    least = torch.finfo(uniform.dtype).eps / 2
    return torch.special.ndtri(uniform.clamp(least, 1 - least))


def _log_normal(normal: Tensor, octaves: float = 0.2) -> Tensor:
    """A factor whose base-2 logarithm has that standard deviation."""
    return (octaves * normal).exp2()


def _rotated(rows: Tensor, columns: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = angle.cos(), angle.sin()
    return cos * rows - sin * columns, sin * rows + cos * columns


def _reflected(position: Tensor, size: int) -> Tensor:
    """Positions of the image continued by reflection about its outer pixels, in [0, size − 1]."""
    last = max(size - 1, 1)
    return last - (position.remainder(2 * last) - last).abs() if size > 1 else position * 0


def _refined(x: Tensor, taps: Tensor, backend: str | None) -> Tensor:
    """x `[N, C, H, H]` at twice the resolution: pixel j lies at (j − CENTRE)/2 of x's grid."""
    size, margin = x.shape[2], (DELAY + 1) // 2
    around = torch.arange(-margin, size + margin, device=x.device, dtype=torch.float32)
    index = _reflected(around, size).long()
    x = x.index_select(2, index).index_select(3, index)
    # Of the whole convolution, that of pixels −margin … size + margin − 1, pixels 0 … 2·size − 1.
    skipped = DELAY + 2 * margin
    left = len(taps) - 1 - skipped
    right = DELAY - 2 * margin
    padding = (left, right, left, right)
    return upfirdn2d(x, taps, up=2, padding=padding, gain=4.0, backend=backend)


def _bilinear(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """x `[N, C, H, H]` at fractional positions `[N, ...]` within it."""
    size = x.shape[2]
    top, left = (i.floor().clamp(0, size - 2) for i in (rows, columns))
    down, right = ((i - first)[:, None].to(x.dtype) for i, first in ((rows, top), (columns, left)))
    top, left = top.long(), left.long()
    upper = picked(x, top, left) * (1 - right) + picked(x, top, left + 1) * right
    lower = picked(x, top + 1, left) * (1 - right) + picked(x, top + 1, left + 1) * right
    return upper * (1 - down) + lower * down
