"""upfirdn2d for eager autograd without kernels: a linear map and its adjoint, in every order.

PyTorch differentiates a grouped convolution twice by regrouping it, in several times the time.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from dgan_kernels import reference_upfirdn2d as reference
from dgan_kernels.checks import is_plain_eager

Map = Callable[[Tensor], Tensor]


class Convolution(NamedTuple):
    """One depthwise convolution of x [N, C, H, W], as a map of x alone."""

    weight: Tensor
    """[C, 1, rows, columns]."""
    stride: tuple[int, int]
    padding: tuple[int, int]
    transposed: bool
    output_padding: tuple[int, int] = (0, 0)

    def __call__(self, x: Tensor) -> Tensor:
        """Return x convolved, in the order in memory that x has."""
        with reference.own_dtype(x):
            return reference.depthwise(x, *self)


def upfirdn2d(x: Tensor, filter: Tensor, *constants: Any) -> Tensor:
    """Return x [N, C, H, W] resampled; the constants are those of `reference_upfirdn2d`."""
    if not is_plain_eager(x):
        return reference.upfirdn2d(x, filter, *constants)
    pair = None
    # A fake has no values, and what is made beside one is not to be kept for others.
    if x.device.type == filter.device.type == "cpu" and not isinstance(x, FakeTensor):
        shape = tuple(filter.shape)
        values = tuple(filter.flatten().tolist() if filter.ndim > 1 else filter.tolist())
        pair = _convolutions(tuple(x.shape), x.dtype, values, shape, *constants)
    if pair is None:
        if not _is_recorded(x):
            return reference.upfirdn2d(x, filter, *constants)
        back = reference.transposed(x.shape, filter, *constants)
        filter = filter.clone()  # the caller's may change before the backward pass
        pair = tuple(partial(_resampled, filter, each) for each in (constants, back))
    return _apply(x, *pair)


def _apply(x: Tensor, there: Map, back: Map) -> Tensor:
    return _Linear.apply(x, there, back) if _is_recorded(x) else there(x)


def _is_recorded(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


class _Linear(torch.autograd.Function):
    """A linear map, and its adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Map, back: Map) -> Tensor:
        ctx.there, ctx.back = there, back
        return there(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _apply(grads[0], ctx.back, ctx.there), None, None


def _resampled(filter: Tensor, constants: tuple[Any, ...], x: Tensor) -> Tensor:
    return reference.upfirdn2d(x, filter, *constants)


@lru_cache(maxsize=256)
def _convolutions(
    shape: tuple[int, ...], dtype: torch.dtype, values: tuple[float, ...],
    filter_shape: tuple[int, ...], up: tuple[int, int], down: tuple[int, int],
    padding: tuple[int, int, int, int], flip: bool, gain: float,
) -> tuple[Convolution, Convolution] | None:  # fmt: skip
    """Return the map and its adjoint where each is one convolution, else None.

    Made once for all filters of these values: beside a small image it takes long.
    """
    channels, transposed = shape[1], up != (1, 1)
    separate = len(filter_shape) == 1 and filter_shape[0] > reference.OUTER
    if (transposed and down != (1, 1)) or separate or channels == 1 or 0 in shape:
        return None
    with torch.inference_mode(False), torch.no_grad():
        filter = torch.tensor(values, dtype=torch.float32, device="cpu").view(filter_shape)
        taps = reference.make_taps(filter, 2, gain, flip != transposed, dtype)
        weight = taps.expand(channels, 1, *taps.shape).contiguous()
    (rows, columns), (stride_x, stride_y) = taps.shape, up if transposed else down
    around = reference.surplus(padding, rows, columns, up) if transposed else padding
    inside, rest = reference.split(around)
    if any(rest):
        return None
    more = (0, 0)
    if not transposed:  # the last pixels of x, which no tap reaches, are there in its gradient
        more = (
            (shape[2] + 2 * inside[0] - rows) % stride_y,
            (shape[3] + 2 * inside[1] - columns) % stride_x,
        )
    there = Convolution(weight, (stride_y, stride_x), inside, transposed)
    return there, there._replace(transposed=not transposed, output_padding=more)
