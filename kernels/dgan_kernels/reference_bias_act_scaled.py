"""bias_act with scale and noise in plain PyTorch: values and closed derivatives.

Serves `vmap`, and compiled torch.func, in place of the kernels. Shapes, any of them behind more
dimensions under vmap: x [N, C, P], scale [N, C, 1], noise [N or 1, 1, P], bias [1, C, 1]; each of
the last three may be None. Tangents and gradients have the shape of what they belong to. With

    u = scale · x + noise + bias        y = f(u) = clamp(gain · act(u))
    u̇ = scale · ẋ + x · scale˙ + noise˙ + bias˙

the derivatives are ẏ = f'(u)·u̇, and for e = dy·f'(u)

    dx = scale · e        dscale = Σ_P x·e        dnoise = Σ_C e        dbias = Σ_NP e
"""

from typing import Any

import torch
from torch import Tensor

from dgan_kernels.reference import bias_act_backward, bias_act_forward, bias_act_second

MaybeTensor = Tensor | None


def forward(
    x: Tensor, scale: MaybeTensor, noise: MaybeTensor, bias: MaybeTensor, act: str, gain: float,
    clamp: float | None,
) -> Tensor:  # fmt: skip
    """Return y."""
    return bias_act_forward(_affine(x, scale, noise, bias), None, act, gain, clamp, dim=1)


def tangent(
    tx: Tensor, tscale: MaybeTensor, tnoise: MaybeTensor, tbias: MaybeTensor,
    x: Tensor, scale: MaybeTensor, noise: MaybeTensor, bias: MaybeTensor, *constants: Any,
) -> Tensor:  # fmt: skip
    """Return ẏ."""
    u = _affine(x, scale, noise, bias)
    shift = _affine_tangent(tx, tscale, tnoise, tbias, x, scale)
    return bias_act_backward(shift, u, None, *constants, dim=1)


def backward(
    dy: Tensor, x: Tensor, scale: MaybeTensor, noise: MaybeTensor, bias: MaybeTensor,
    *constants: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return dx, dscale, dnoise and dbias; one that belongs to None has no elements."""
    e = bias_act_backward(dy, _affine(x, scale, noise, bias), None, *constants, dim=1)
    return (e if scale is None else e * scale, *_sums(e * x, e, scale, noise, bias))


def second(
    v: Tensor, vscale: MaybeTensor, vnoise: MaybeTensor, vbias: MaybeTensor, dy: Tensor,
    x: Tensor, scale: MaybeTensor, noise: MaybeTensor, bias: MaybeTensor, *constants: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return what cotangents of `backward`'s results send to dy, x, scale, noise and bias.

    With k = dy·f''(u)·u̇: f'(u)·u̇, scale·k + vscale·e, Σ_P (x·k + v·e), Σ_C k and Σ_NP k.
    """
    u = _affine(x, scale, noise, bias)
    shift = _affine_tangent(v, vscale, vnoise, vbias, x, scale)
    # Under vmap every result has the batch, whichever argument brings it.
    shift, dy, u, x, v = torch.broadcast_tensors(shift, dy, u, x, v)
    to_dy, k = bias_act_second(shift, dy, u, None, *constants, dim=1)
    if scale is None or vscale is None:  # neither is None alone
        return to_dy, k, *_sums(k, k, scale, noise, bias)
    e = bias_act_backward(dy, u, None, *constants, dim=1)
    return to_dy, k * scale + e * vscale, *_sums(x * k + v * e, k, scale, noise, bias)


def _affine(x: Tensor, scale: MaybeTensor, noise: MaybeTensor, bias: MaybeTensor) -> Tensor:
    u = x if scale is None else x * scale
    for term in (noise, bias):
        u = u if term is None else u + term
    return u


def _affine_tangent(
    tx: Tensor, tscale: MaybeTensor, tnoise: MaybeTensor, tbias: MaybeTensor, x: Tensor,
    scale: MaybeTensor,
) -> Tensor:  # fmt: skip
    shift = _affine(tx, scale, tnoise, tbias)
    return shift if tscale is None else shift + x * tscale


def _sums(
    to_scale: Tensor, to_shift: Tensor, scale: MaybeTensor, noise: MaybeTensor, bias: MaybeTensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of scale, noise and bias, from what they are sums of."""
    nothing = to_shift[..., :0, :0]
    dscale = nothing if scale is None else to_scale.sum(-1, keepdim=True)
    dbias = nothing if bias is None else to_shift.sum((-3, -1), keepdim=True)
    if noise is None:
        return dscale, nothing, dbias
    over = (-3, -2) if noise.shape[-3] == 1 else (-2,)
    return dscale, to_shift.sum(over, keepdim=True), dbias
