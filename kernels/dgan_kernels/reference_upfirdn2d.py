"""upfirdn2d in plain PyTorch: the CPU path, and the oracle the kernels are tested against.

Any floating dtype, any device, any derivative order, forward and reverse mode. All functions take
``up`` and ``down`` as (x, y), ``padding`` as (left, right, top, bottom), and the filter as [taps]
(applied along both axes) or [rows, columns].
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from dgan_kernels.checks import SIXTEEN_BITS

# Up to here one convolution with the outer product beats two with the taps, on a CPU.
OUTER = 6


def filter_size(filter: Tensor) -> tuple[int, int]:
    """Return (columns, rows); those of a separable filter are equal."""
    return filter.shape[-1], filter.shape[-2 if filter.ndim > 1 else -1]


def output_size(
    shape: Sequence[int],
    filter: Tensor,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
) -> tuple[int, int]:
    """Return (height, width) of the result for an x of that shape; below 1 where none is left."""
    columns, rows = filter_size(filter)
    height = (shape[-2] * up[1] + padding[2] + padding[3] - rows) // down[1] + 1
    return height, (shape[-1] * up[0] + padding[0] + padding[1] - columns) // down[0] + 1


def memory_format(x: Tensor) -> torch.memory_format:
    """Return the order in memory that a result has: channels_last where x [N, C, H, W] is."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def upfirdn2d(
    x: Tensor,
    filter: Tensor,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip: bool,
    gain: float,
) -> Tensor:
    """Return x [..., N, C, H, W] resampled; see `dgan_kernels.upfirdn2d`."""
    if x.ndim > 4:  # under vmap
        y = upfirdn2d(x.flatten(0, -4), filter, up, down, padding, flip, gain)
        return y.unflatten(0, x.shape[:-3])
    if x.numel() == 0:  # convolutions refuse a batch of nothing here and there
        return x.new_zeros(*x.shape[:2], *output_size(x.shape, filter, up, down, padding)) + x.sum()
    with own_dtype(x):
        if filter.ndim == 2 or len(filter) <= OUTER:
            both = make_taps(filter, 2, gain, flip != (max(up) > 1), x.dtype)
            return _resample(x, both, up, down, padding)
        up_x, up_y = (up[0], 1), (1, up[1])
        along_x = make_taps(filter, 1, gain, flip != (up[0] > 1), x.dtype)[None]
        along_y = make_taps(filter, 1, 1.0, flip != (up[1] > 1), x.dtype)[:, None]
        x = _resample(x, along_x, up_x, (down[0], 1), (*padding[:2], 0, 0))
        return _resample(x, along_y, up_y, (1, down[1]), (0, 0, *padding[2:]))


def make_taps(filter: Tensor, ndim: int, gain: float, flip: bool, dtype: torch.dtype) -> Tensor:
    """Return the taps times gain, of one or two dimensions and ``dtype``; in reverse unless flip.

    Multiplied in the wider type, and rounded to x's once.
    """
    wide = filter.to(torch.promote_types(dtype, filter.dtype))
    wide = wide if flip else wide.flip(list(range(wide.ndim)))
    scaled = wide * gain
    return (torch.outer(scaled, wide) if ndim > wide.ndim else scaled).to(dtype)


def own_dtype(x: Tensor) -> AbstractContextManager[object]:
    """Keep autocast from choosing another dtype for the convolutions than x's, as kernels do."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def _resample(
    x: Tensor, taps: Tensor, up: Sequence[int], down: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Filter x [N, C, H, W] with ``taps`` [rows, columns], a channel at a time.

    The taps are in the order of a correlation, or, where ``up`` is not 1, of a convolution.
    """
    channels, (rows, columns) = x.shape[1], taps.shape
    (up_x, up_y), (down_x, down_y) = up, down
    weight = taps.expand(channels, 1, rows, columns)
    if channels == 1:
        # One channel in channels_last strides, and oneDNN has read a row of taps wrongly (torch
        # 2.13, a result one pixel wide): give it the strides that a new tensor would have.
        x = x.reshape(-1).view(x.shape)
    if up_x == up_y == 1:
        inside, rest = split(padding)
        x, stride = pad(x, rest), (down_y, down_x)
        return depthwise(x, weight, stride, inside, transposed=False)
    # A transposed convolution never multiplies the inserted zeros.
    inside, rest = split(surplus(padding, rows, columns, up))
    y = depthwise(x, weight, (up_y, up_x), inside, transposed=True)
    y = pad(y, [-side for side in rest])
    if down_x == down_y == 1:
        return y
    return y[:, :, ::down_y, ::down_x].contiguous(memory_format=memory_format(y))


def depthwise(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], transposed: bool,
    output_padding: Sequence[int] = (0, 0),
) -> Tensor:  # fmt: skip
    """Return x [N, C, H, W] convolved with weight [C, 1, rows, columns]; all others (y, x)."""
    if transposed and x.device.type == "cpu" and x.dtype in SIXTEEN_BITS:
        # oneDNN has no transposed convolution of 16-bit images: a hundredth of the time.
        arguments = (weight.float(), stride, padding, transposed, output_padding)
        return depthwise(x.float(), *arguments).to(x.dtype)
    return torch.convolution(
        x, weight, None, stride, padding, (1, 1), transposed, output_padding, weight.shape[0]
    )


def surplus(padding: Sequence[int], rows: int, columns: int, up: Sequence[int]) -> list[int]:
    """Return what a transposed convolution computes too much on each side; below 0: too little.

    It computes every position that a tap reaches, and no trailing zeros.
    """
    (left, right, top, bottom), (inner_x, inner_y) = padding, (columns - 1, rows - 1)
    right, bottom = right + up[0] - 1, bottom + up[1] - 1
    return [inner_x - left, inner_x - right, inner_y - top, inner_y - bottom]


def split(padding: Sequence[int]) -> tuple[tuple[int, int], Sequence[int]]:
    """Return what a convolution can do itself, (rows, columns) on both sides, and the rest."""
    left, right, top, bottom = padding
    if left == right >= 0 and top == bottom >= 0:
        return (top, left), (0, 0, 0, 0)
    return (0, 0), padding


def pad(x: Tensor, padding: Sequence[int]) -> Tensor:
    """Return x with zeros around it; a negative number crops, after the zeros are there."""
    if not any(padding):
        return x
    grow, crop = [max(p, 0) for p in padding], [min(p, 0) for p in padding]
    if any(grow):
        x = F.pad(x, grow)
    return F.pad(x, crop) if any(crop) else x


def transposed(
    shape: Sequence[int],
    filter: Tensor,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip: bool,
    gain: float,
) -> tuple[Sequence[int], Sequence[int], list[int], bool, float]:
    """Return the constants with which upfirdn2d maps the result's gradient to that of x [shape].

    y[o] = Σ f[t]·u[o·down + t − left], u[i·up] = x[i], sends dy[o] to each i with i·up =
    o·down + t − left: the taps in reverse over dy with down − 1 zeros inserted, from taps − 1 −
    left on. The padding on the far side is what gives the result x's size.
    """
    columns, rows = filter_size(filter)
    height, width = output_size(shape, filter, up, down, padding)
    left, top = columns - 1 - padding[0], rows - 1 - padding[2]
    right = (shape[-1] - 1) * up[0] + columns - width * down[0] - left
    bottom = (shape[-2] - 1) * up[1] + rows - height * down[1] - top
    return down, up, [left, right, top, bottom], not flip, gain
