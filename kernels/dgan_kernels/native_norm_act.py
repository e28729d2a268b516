"""norm_act for eager autograd without kernels: `native_norm`, then PyTorch's own activation."""

import torch
from torch import Tensor

from dgan_kernels.checks import is_plain_eager
from dgan_kernels.native_norm import memory_format, norm, plan
from dgan_kernels.reference import activate


def serves(x: Tensor, ranks: str | None) -> bool:
    """Return whether `native_norm_act` computes what `norm_act` promises for these arguments."""
    return ranks is None and x.numel() > 0 and is_plain_eager(x)


def native_norm_act(
    x: Tensor, weight: Tensor | None, bias: Tensor | None,
    over: str, centred: bool, groups: int, act: str, eps: float, dim: int,
) -> Tensor:  # fmt: skip
    """Return y; autograd differentiates it to any order, in reverse mode only."""
    dtype, at = x.dtype, dim if over == "channels" else 1
    if dtype in (torch.float16, torch.bfloat16):
        # Rounded once, at the end; PyTorch's own would round before the activation too.
        x = x.float()
        weight, bias = (None if t is None else t.float() for t in (weight, bias))
    if not x.is_contiguous():
        if over == "channels" and x.movedim(dim, -1).is_contiguous():
            at = x.ndim - 1  # where they are in memory: channels_last
        elif at == dim:
            x = x.contiguous(memory_format=memory_format(x))
    if at != dim:
        x = x.movedim(dim, at).contiguous()
    y = norm(x, weight, bias, plan(x.shape, over, centred, groups, at, eps))
    y = activate(y, act, own=True)
    y = y if y.dtype == dtype else y.to(dtype)
    return y if at == dim else y.movedim(at, dim)
