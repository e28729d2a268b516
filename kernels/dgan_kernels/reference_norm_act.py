"""norm_act in plain PyTorch, on one view of every norm: the CPU path and the oracle of the kernels.

Every norm is a view x [N, G, D, S] with statistics over some of its dimensions, and a weight and
bias that broadcast against it:

    over        norms               view                         statistics over    weight, bias
    "group"     group, instance     N, groups, C / groups, S     D and S            [N, G, D, 1]
    "channels"  layer, rms, pixel   N, positions, C, S           D                  [N, 1, D, 1]
    "batch"     batch               N, 1, C, S                   N and S            [N, 1, D, 1]

Dimensions are counted from the end, so that vmap may put one more in front. With the mean ⟨·⟩ over
a group, x̂ = (x − ⟨x⟩)·r, r = (⟨(x − ⟨x⟩)²⟩ + eps)^-½ and z = γx̂ + β, the operator is y = s(z); with
``centred`` false (rms, pixel) no mean is subtracted.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dgan_kernels.checks import SIXTEEN_BITS
from dgan_kernels.rank_mean import mean_over_ranks
from dgan_kernels.reference import ACTIVATIONS

DIMS = {"group": (-2, -1), "channels": (-2,), "batch": (-4, -1)}

MaybeTensor = Tensor | None


class Pieces(NamedTuple):
    """What every derivative starts from; `mean` and `plain_mean` are ⟨·⟩ with and without ranks."""

    mean: Callable[[Tensor], Tensor]
    centre: Callable[[Tensor], Tensor | float]
    r: Tensor
    xh: Tensor
    z: Tensor
    weight: Tensor | float

    def project(self, a: Tensor) -> Tensor:
        """Return P(a) = a − ⟨a⟩ − x̂⟨x̂a⟩: self-adjoint, and exact whatever eps is."""
        return a - self.centre(a) - self.xh * self.mean(self.xh * a)


def norm_act(x: Tensor, weight: MaybeTensor, bias: MaybeTensor, *constants: Any) -> Tensor:
    """Return y; autograd differentiates it, to any order and in both modes."""
    return norm_act_forward(x, None, weight, bias, *constants)


# Below, `stats` keeps the kernels' signature: they are computed from x again. `ranks` is the name
# of the process group that shares statistics, or None.


def norm_act_statistics(
    x: Tensor, over: str, centred: bool, act: str, eps: float, ranks: str | None
) -> Tensor:
    """Return [2, groups]: the mean (0 if not centred) and r of each group."""
    wide = _wide(x)
    mean = mean_over_ranks(wide.mean(DIMS[over], keepdim=True), ranks)
    if not centred:
        mean = torch.zeros_like(mean)
    variance = mean_over_ranks((wide - mean).square().mean(DIMS[over], keepdim=True), ranks)
    return torch.stack([mean.flatten(-4), (variance + eps).rsqrt().flatten(-4)], -2)


def norm_act_forward(
    x: Tensor, stats: MaybeTensor, weight: MaybeTensor, bias: MaybeTensor,
    over: str, centred: bool, act: str, eps: float, ranks: str | None,
) -> Tensor:  # fmt: skip
    """Return y = s(γx̂ + β), of x's dtype."""
    p = _pieces(_wide(x), weight, bias, over, centred, eps, ranks)
    return ACTIVATIONS[act].value(p.z).to(x.dtype)


def norm_act_jvp(
    tx: Tensor, shift: MaybeTensor, x: Tensor, stats: MaybeTensor, weight: MaybeTensor,
    bias: MaybeTensor, over: str, centred: bool, act: str, eps: float, ranks: str | None,
) -> Tensor:  # fmt: skip
    """Return ẏ = s'(z)·(γ·r·P(ẋ) + γ̇x̂ + β̇); ``shift`` [2, N, G, D] holds γ̇ and β̇."""
    p = _pieces(_wide(x), weight, bias, over, centred, eps, ranks)
    vw, vb = _halves(shift, weight, bias)
    tz = p.weight * p.r * p.project(_wide(tx)) + vw * p.xh + vb
    return (ACTIVATIONS[act].first(p.z) * tz).to(x.dtype)


def norm_act_backward(
    dy: Tensor, x: Tensor, stats: MaybeTensor, weight: MaybeTensor, bias: MaybeTensor,
    over: str, centred: bool, act: str, eps: float, ranks: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return dx, and the sums [2, N, G, D] that are dγ and dβ (empty without either)."""
    p = _pieces(_wide(x), weight, bias, over, centred, eps, ranks)
    e = _wide(dy) * ACTIVATIONS[act].first(p.z)
    dx = (p.r * p.project(p.weight * e)).to(x.dtype)
    return dx, _sums(e * p.xh, e, over, weight, bias)


def norm_act_second(
    v: Tensor, shift: MaybeTensor, dy: Tensor, x: Tensor, stats: MaybeTensor, weight: MaybeTensor,
    bias: MaybeTensor, over: str, centred: bool, act: str, eps: float, ranks: str | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return what cotangents v of dx, and ``shift`` of its sums, send to dy, x and (γ, β)."""
    v, dy, wide = torch.broadcast_tensors(_wide(v), _wide(dy), _wide(x))
    p = _pieces(wide, weight, bias, over, centred, eps, ranks)
    vw, vb = _halves(shift, weight, bias)
    h = p.r * p.project(v)
    tz = p.weight * h + vw * p.xh + vb
    first, second = ACTIVATIONS[act].first(p.z), ACTIVATIONS[act].second
    c = torch.zeros_like(tz) if second is None else dy * second(p.z) * tz
    e = dy * first
    q = p.weight * e
    xv, xq = p.mean(p.xh * v), p.mean(p.xh * q)
    kappa = p.mean(q * v) - p.centre(q) * p.centre(v) - xv * xq
    a = p.weight * c + vw * e - p.r * (xv * q + xq * v)
    dx = p.r * p.project(a) - p.r * p.r * kappa * p.xh
    sums = _sums(e * h + c * p.xh, c, over, weight, bias)
    return (first * tz).to(x.dtype), dx.to(x.dtype), sums


def sums_shape(x: Tensor, over: str, affine: bool) -> tuple[int, ...]:
    """Return the shape of the sums of `norm_act_backward`."""
    n, g, d, _ = x.shape[-4:]
    return (2, n, 1 if over == "channels" else g, d) if affine else (0,)


def _wide(x: Tensor) -> Tensor:
    """Return x in the dtype to compute in: at least float32."""
    return x.float() if x.dtype in SIXTEEN_BITS else x


def _pieces(
    x: Tensor, weight: MaybeTensor, bias: MaybeTensor,
    over: str, centred: bool, eps: float, ranks: str | None,
) -> Pieces:  # fmt: skip
    def mean(a: Tensor) -> Tensor:
        return mean_over_ranks(a.mean(DIMS[over], keepdim=True), ranks)

    def centre(a: Tensor) -> Tensor | float:
        return mean(a) if centred else 0.0

    xc = x - centre(x)
    r = (mean(xc.square()) + eps).rsqrt()
    xh = xc * r
    z = xh if weight is None else xh * _wide(weight)
    z = z if bias is None else z + _wide(bias)
    return Pieces(mean, centre, r, xh, z, 1.0 if weight is None else _wide(weight))


def _halves(
    shift: MaybeTensor, weight: MaybeTensor, bias: MaybeTensor
) -> tuple[Tensor | float, Tensor | float]:
    """Return the parts of ``shift`` that go with γ and β, ready to broadcast against x."""
    if shift is None or (weight is None and bias is None):
        return 0.0, 0.0
    return shift.select(-4, 0).unsqueeze(-1), shift.select(-4, 1).unsqueeze(-1)


def _sums(
    to_weight: Tensor, to_bias: Tensor, over: str, weight: MaybeTensor, bias: MaybeTensor
) -> Tensor:
    """Return both sums over all but [N, G, D] of x, or over G too where it is positions."""
    if weight is None and bias is None:
        return to_bias.new_empty((*to_bias.shape[:-4], 0))
    both = torch.stack([to_weight, to_bias], -5).sum(-1)
    return both.sum(-2, keepdim=True) if over == "channels" else both
