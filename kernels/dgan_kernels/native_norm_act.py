"""norm_act by PyTorch's own fused norms, where those are right: on a CPU, faster than formulas.

The third derivatives of PyTorch's layer norm and batch norm lack terms (seen in torch 2.13), those
of its group norm are complete: it serves batch norm too, and layer norm has a backward of its own.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from dgan_kernels.reference import ACTIVATIONS


def serves(x: Tensor, vectors: tuple[Tensor | None, ...], norm: str, ranks: str | None) -> bool:
    """Return whether `native_norm_act` computes what `norm_act` promises for these arguments."""
    # Forward mode lacks terms here that a reverse pass over it would need, without a word; and a
    # compiler fuses formulas itself, where it loses terms of an autograd.Function.
    formulas = (
        forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch.compiler.is_compiling()
    )
    per_sample = any(vector is not None and vector.ndim > 1 for vector in vectors)
    # 16 bits would be rounded between the norm and the activation.
    wide = x.dtype in (torch.float32, torch.float64)
    known = norm not in ("rms", "pixel") and ranks is None and x.numel() > 0
    return known and wide and not (per_sample or formulas)


def native_norm_act(
    x: Tensor, weight: Tensor | None, bias: Tensor | None,
    norm: str, groups: int, act: str, eps: float, dim: int,
) -> Tensor:  # fmt: skip
    """Return y; autograd differentiates it to any order, in reverse mode only."""
    activation = ACTIVATIONS[act].value
    if weight is None and bias is not None:
        weight = torch.ones_like(bias)  # group norm's second derivative fails on a bias alone
    if norm == "layer":
        return activation(_LayerNorm.apply(x.movedim(dim, -1), weight, bias, eps)).movedim(-1, dim)
    if norm == "batch":
        first = x.movedim(dim, 0)
        y = F.group_norm(first.reshape(1, len(first), -1), len(first), weight, bias, eps)
        return activation(y).view(first.shape).movedim(0, dim)
    return activation(F.group_norm(x.movedim(dim, 1), groups, weight, bias, eps)).movedim(1, dim)


class _LayerNorm(torch.autograd.Function):
    """Layer norm over the last dimension; its gradient is a formula where it is differentiated."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        y, mean, r = torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, r)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,), (x, weight, bias, mean, r) = grads, ctx.saved_tensors
        if not torch.is_grad_enabled():
            wanted = list(ctx.needs_input_grad[:3])
            native = torch.ops.aten.native_layer_norm_backward
            return *native(dy, x, x.shape[-1:], mean, r, weight, bias, wanted), None
        centred = x - x.mean(-1, keepdim=True)
        r = (centred.square().mean(-1, keepdim=True) + ctx.eps).rsqrt()
        xh = centred * r
        q = dy if weight is None else dy * weight
        dx = r * (q - q.mean(-1, keepdim=True) - xh * (xh * q).mean(-1, keepdim=True))
        to_weight = None if weight is None else (dy * xh).sum_to_size(weight.shape)
        return dx, to_weight, None if bias is None else dy.sum_to_size(bias.shape), None
