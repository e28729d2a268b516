"""norm_act for eager autograd without kernels: `native_norm` and an activation in one Function.

Only an activation that curves is in it. relu and leaky_relu follow as PyTorch's own: a second
derivative that vanishes costs nothing there, and `torch.overrides` can put a smooth form in their
place, as a check by finite differences has to.

For s(z), z = γx̂ + β, and a cotangent v of dx: with e = dy·s'(z) in the place of dy, `native_norm`
tells what v sends to e (that is ż), x and γ; to dy goes s'(z)·ż, and c = dy·s''(z)·ż is one more
gradient of z, which a second backward pass takes on to x, γ and β. Any further derivative is taken
of `reference_norm_act`: those of PyTorch's own layer norm and batch norm lack terms (seen in torch
2.13).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dgan_kernels import native_norm as native
from dgan_kernels import reference_norm_act as reference
from dgan_kernels.checks import SIXTEEN_BITS, is_plain_eager
from dgan_kernels.native_norm import Gradients, MaybeTensor, Norm
from dgan_kernels.reference import ACTIVATIONS, activate

_aten = torch.ops.aten
_BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": _aten.silu_backward.default,
    "gelu": _aten.gelu_backward.default,
    "gelu_tanh": lambda dy, z: _aten.gelu_backward.default(dy, z, approximate="tanh"),
    "elu": lambda dy, z: _aten.elu_backward.default(dy, 1, 1, 1, False, z),
}
"""dy·s'(z) in one sweep."""


def serves(x: Tensor, ranks: str | None) -> bool:
    """Return whether `native_norm_act` computes what `norm_act` promises for these arguments."""
    return ranks is None and x.numel() > 0 and is_plain_eager(x)


def native_norm_act(
    x: Tensor, weight: MaybeTensor, bias: MaybeTensor,
    over: str, centred: bool, groups: int, act: str, eps: float, dim: int,
) -> Tensor:  # fmt: skip
    """Return y; autograd differentiates it to any order, in reverse mode only."""
    dtype, at = x.dtype, dim if over == "channels" else 1
    if dtype in SIXTEEN_BITS:
        # Rounded once, at the end; PyTorch's own would round before the activation too.
        x = x.float()
        weight, bias = (None if t is None else t.float() for t in (weight, bias))
    if not x.is_contiguous():
        if over == "channels" and x.movedim(dim, -1).is_contiguous():
            at = x.ndim - 1  # where they are in memory: channels_last
        elif at == dim:
            x = x.contiguous(memory_format=native.memory_format(x))
    if at != dim:
        x = x.movedim(dim, at).contiguous()
    kind = native.plan(x.shape, over, centred, groups, at, eps)
    if torch.is_grad_enabled():
        curves = ACTIVATIONS[act].second is not None
        y = _NormAct.apply(x, weight, bias, kind, act if curves else "linear")
        y = y if curves else activate(y, act, own=True)
    else:
        y = activate(native.forward(x, weight, bias, kind)[0], act, own=True)
    y = y if y.dtype == dtype else y.to(dtype)
    return y if at == dim else y.movedim(at, dim)


class _NormAct(torch.autograd.Function):
    """`act` is "linear" or curves."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: MaybeTensor, bias: MaybeTensor, kind: Norm, act: str
    ) -> Tensor:
        z, mean, r = native.forward(x, weight, bias, kind)
        y = activate(z, act, own=False)  # so that whoever gets y may change it in place
        ctx.save_for_backward(x, weight, bias, mean, r, None if act == "linear" else z)
        ctx.kind, ctx.act = kind, act
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        run: Any = _Gradient.apply if torch.is_grad_enabled() else _backward
        wanted = ctx.needs_input_grad[:3]
        return *run(grads[0], *ctx.saved_tensors, ctx.kind, ctx.act, wanted), None, None


class _Gradient(torch.autograd.Function):
    """`_backward`, differentiable in dy, x, γ and β; all else it knows as functions of these."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Gradients:
        ctx.save_for_backward(*args[:7])
        ctx.kind, ctx.act = args[7:9]
        ctx.set_materialize_grads(False)
        return _backward(*args)

    @staticmethod
    def backward(ctx: Any, *grads: MaybeTensor) -> Gradients:
        v, *others = grads
        once = v is not None and all(other is None for other in others)
        run: Any = _penalty if once and not torch.is_grad_enabled() else _second
        return *run(grads, *ctx.saved_tensors, ctx.kind, ctx.act), *[None] * 6


def _backward(
    dy: Tensor, x: Tensor, weight: MaybeTensor, bias: MaybeTensor, mean: MaybeTensor, r: Tensor,
    z: MaybeTensor, kind: Norm, act: str, wanted: tuple[bool, ...],
) -> Gradients:  # fmt: skip
    """Return dx, dγ and dβ."""
    dz = _slope(dy, z, act)
    return native.backward(dz, x, weight, bias, mean, r, kind, wanted)


def _penalty(
    grads: Gradients, dy: Tensor, x: Tensor, weight: MaybeTensor, bias: MaybeTensor,
    mean: MaybeTensor, r: Tensor, z: MaybeTensor, kind: Norm, act: str,
) -> Gradients:  # fmt: skip
    """Return what a cotangent of dx alone sends to dy, x, γ and β."""
    assert grads[0] is not None
    dz = _slope(dy, z, act)
    tz, to_x, to_weight = native.penalty(grads[0], dz, x, weight, mean, r, kind)
    to_dy = _slope(tz, z, act)
    second = ACTIVATIONS[act].second
    if z is None or second is None:
        return to_dy, to_x, to_weight, None
    c = second(z).mul_(tz).mul_(dy)
    wanted = (True, weight is not None, bias is not None)
    dx, dw, db = native.backward(c, x, weight, bias, mean, r, kind, wanted)
    assert dx is not None
    if to_weight is not None and dw is not None:
        to_weight.add_(dw)
    return to_dy, to_x.add_(dx), to_weight, db


def _second(
    grads: Gradients, dy: Tensor, x: Tensor, weight: MaybeTensor, bias: MaybeTensor,
    mean: MaybeTensor, r: Tensor, z: MaybeTensor, kind: Norm, act: str,
) -> Gradients:  # fmt: skip
    """Return what cotangents of dx, dγ and dβ send to dy, x, γ and β, by differentiable steps."""
    v = torch.zeros_like(x) if grads[0] is None else grads[0]
    w, b = (None if t is None else kind.along(t) for t in (weight, bias))
    shift, present = None, b if w is None else w
    if present is not None:
        zero = torch.zeros_like(present)
        shift = torch.stack([zero if g is None else kind.along(g) for g in grads[1:]]).squeeze(-1)
    v, dy, view = (t.reshape(kind.shape) for t in (v, dy, x))
    to_dy, to_x, sums = reference.norm_act_second(
        v, shift, dy, view, None, w, b, kind.over, kind.centred, act, kind.eps, None
    )  # fmt: skip
    to_affine = [
        None if t is None else kind.sum(sums[i].unsqueeze(-1), t)
        for i, t in enumerate((weight, bias))
    ]
    return to_dy.reshape(x.shape), to_x.reshape(x.shape), *to_affine


def _slope(dy: Tensor, z: MaybeTensor, act: str) -> Tensor:
    """Return dy·s'(z); z is None for the identity."""
    if z is None:
        return dy
    return _BACKWARD[act](dy, z) if act in _BACKWARD else dy * ACTIVATIONS[act].first(z)
