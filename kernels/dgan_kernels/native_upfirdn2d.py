"""upfirdn2d for eager autograd without kernels: its backward is itself, in every order.

PyTorch differentiates a grouped convolution twice by regrouping it, in several times the time.
"""

from typing import Any

import torch
from torch import Tensor

from dgan_kernels import reference_upfirdn2d as reference
from dgan_kernels.checks import is_plain_eager


def upfirdn2d(x: Tensor, filter: Tensor, *constants: Any) -> Tensor:
    """Return x [N, C, H, W] resampled; the constants are those of `reference_upfirdn2d`."""
    if torch.is_grad_enabled() and x.requires_grad and is_plain_eager(x):
        return _Upfirdn2d.apply(x, filter, *constants)
    return reference.upfirdn2d(x, filter, *constants)


class _Upfirdn2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, filter: Tensor, *constants: Any) -> Tensor:
        ctx.save_for_backward(filter)
        ctx.shape, ctx.constants = x.shape, constants
        return reference.upfirdn2d(x, filter, *constants)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (filter,) = ctx.saved_tensors
        constants = reference.transposed(ctx.shape, filter, *ctx.constants)
        return upfirdn2d(grads[0], filter, *constants), *[None] * 6
