"""A norm and its affine map, and two derivatives of them, in closed forms and in place.

In the words of `reference_norm_act`, with s the identity and P(a) = a − ⟨a⟩ − x̂⟨x̂a⟩:

    backward    q = γ·dy:   dx = r P(q),   dγ = Σ dy·x̂,   dβ = Σ dy
    second      for v, the cotangent of dx:
                to dy: γrP(v),   to γ: Σ dy·rP(v),   to x: −r²(⟨x̂v⟩P(q) + ⟨x̂q⟩P(v) + κx̂)
                with κ = ⟨qv⟩ − ⟨q⟩⟨v⟩ − ⟨x̂q⟩⟨x̂v⟩

PyTorch's own kernels serve where there is one that reads x in place. What it has none for, a
penalty's third pass above all, it composes from up to a hundred operators, each with memory of its
own; on a CPU fresh pages cost more than the arithmetic.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from dgan_kernels import reference_norm_act as reference

_batch_norm_backward = torch.ops.aten.native_batch_norm_backward.default
_group_norm_backward = torch.ops.aten.native_group_norm_backward.default
_layer_norm_backward = torch.ops.aten.native_layer_norm_backward.default

MaybeTensor = Tensor | None
Gradients = tuple[MaybeTensor, ...]


class Norm(NamedTuple):
    """A norm of tensors of one shape; see `plan`."""

    over: str
    centred: bool
    eps: float
    shape: tuple[int, ...]
    """Of x as the view [N, G, D, S]."""
    shared: tuple[int, ...]
    """Of a vector [C] as it broadcasts against the view."""
    per_sample: tuple[int, ...]
    """Of vectors [N, C]."""
    native: bool
    """Whether PyTorch has a kernel that reads x in place."""

    def along(self, vector: Tensor) -> Tensor:
        """Return a vector as it broadcasts against the view."""
        return vector.reshape(self.shared if vector.ndim == 1 else self.per_sample)

    def sum(self, a: Tensor, vector: Tensor) -> Tensor:
        """Return a view's sum, of the shape of ``vector`` and in memory of its own."""
        shape = self.shared if vector.ndim == 1 else self.per_sample
        total = a.clone() if a.shape == shape else a.sum_to_size(shape)
        return total.reshape(vector.shape)

    def mean(self, a: Tensor) -> Tensor:
        """Return ⟨a⟩ of a view."""
        if self.over == "group" and not a.is_contiguous():
            return self.spread(a.mean(-1, keepdim=True).mean(-2, keepdim=True))
        return a.mean(reference.DIMS[self.over], keepdim=True)

    def spread(self, statistic: Tensor) -> Tensor:
        """Return a group's [N, G, 1, 1] as [N, G, D, 1]: in channels_last, rows as long as C."""
        return statistic.expand(self.per_sample).contiguous()


@lru_cache(maxsize=1024)
def plan(
    shape: tuple[int, ...], over: str, centred: bool, groups: int, at: int, eps: float
) -> Norm:
    """Return the norm of x [N, C, *], or where it is over channels, with C in dimension ``at``."""
    n, c = (shape[0] if at else 1), shape[at]
    if over == "channels":
        view = (n, math.prod(shape[1:at]), c, math.prod(shape[at + 1 :]))
        native = centred and at == len(shape) - 1
        return Norm(over, centred, eps, view, (1, 1, c, 1), (n, 1, c, 1), native)
    view = (n, groups, c // groups, math.prod(shape[2:]))
    return Norm(
        over, centred, eps, view, (1, *view[1:3], 1), (*view[:3], 1), native=over == "group"
    )


def forward(
    x: Tensor, weight: MaybeTensor, bias: MaybeTensor, kind: Norm
) -> tuple[Tensor, MaybeTensor, Tensor]:
    """Return γx̂ + β, the mean (None if not centred) and r.

    x is contiguous, or channels_last and the norm not over its channels in place.
    """
    affine, rest = (weight, bias), (None, None)
    if not (kind.native and _shared(*affine)):
        affine, rest = rest, affine
    if not kind.native:
        y, mean, r = _normalise(x, kind)
    elif kind.over == "channels":
        y, mean, r = torch.native_layer_norm(x, x.shape[-1:], *affine, kind.eps)
    else:
        y, mean, r = torch.native_group_norm(x, *affine, *_sizes(kind), kind.eps)
    if rest[0] is not None:
        y.view(kind.shape).mul_(kind.along(rest[0]))
    if rest[1] is not None:
        y.view(kind.shape).add_(kind.along(rest[1]))
    return y, mean, r


def _normalise(x: Tensor, kind: Norm) -> tuple[Tensor, MaybeTensor, Tensor]:
    """Return x̂, and the mean and r of a view."""
    y = torch.empty_like(x)
    x, normal = x.view(kind.shape), y.view(kind.shape)
    if not kind.centred:
        r = kind.mean(torch.mul(x, x, out=normal)).add_(kind.eps).rsqrt_()
        torch.mul(x, r, out=normal)
        return y, None, r
    mean = kind.mean(x)
    torch.sub(x, mean, out=normal)
    r = kind.mean(normal * normal).add_(kind.eps).rsqrt_()
    normal.mul_(r)
    return y, mean, r


def backward(
    dy: Tensor, x: Tensor, weight: MaybeTensor, bias: MaybeTensor, mean: MaybeTensor, r: Tensor,
    kind: Norm, wanted: tuple[bool, ...],
) -> Gradients:  # fmt: skip
    """Return dx, dγ and dβ."""
    if (kind.native or kind.over == "batch") and _shared(weight, bias):
        return _native_backward(dy, x, weight, bias, mean, r, kind, wanted)
    to_weight, xh, dy = None, _normalised(x, mean, r, kind), dy.reshape(kind.shape)
    dx, spare = torch.empty_like(x), xh.mul_(dy) if kind.native else dy * xh
    q = _times(dy, weight, kind, out=dx.view(kind.shape))
    if weight is not None:
        to_weight = kind.sum(spare, weight)
    if kind.native:
        dx = _native_backward(dx, x, None, None, mean, r, kind, (True, False, False))[0]
    else:
        if weight is not None:
            spare.mul_(kind.along(weight))
        _project(q, xh, kind.mean(spare), kind, spare).mul_(r)
    return dx, to_weight, None if bias is None else kind.sum(dy, bias)


def _native_backward(
    dy: Tensor, x: Tensor, weight: MaybeTensor, bias: MaybeTensor, mean: MaybeTensor, r: Tensor,
    kind: Norm, wanted: tuple[bool, ...],
) -> Gradients:  # fmt: skip
    if kind.over == "channels":
        return _layer_norm_backward(dy, x, x.shape[-1:], mean, r, weight, bias, wanted)
    # Its kernels read dy as x lies in memory, and do not look whether it does too.
    dy = dy.contiguous(memory_format=memory_format(x))
    if kind.over == "group":
        return _group_norm_backward(dy, x, mean, r, weight, *_sizes(kind), wanted)
    assert mean is not None
    statistics = (None, None, mean.view(-1), r.view(-1), True, kind.eps)
    return _batch_norm_backward(dy, x, weight, *statistics, wanted)


def penalty(
    v: Tensor, dy: Tensor, x: Tensor, weight: MaybeTensor, mean: MaybeTensor, r: Tensor, kind: Norm
) -> tuple[Tensor, Tensor, MaybeTensor]:
    """Return what a cotangent v of dx sends to dy, x and γ."""
    xh, r = _normalised(x, mean, r, kind), _statistic(r, x, kind)
    v, dy = v.reshape(kind.shape), dy.reshape(kind.shape)
    to_dy, to_x, to_weight = torch.empty_like(x), torch.empty_like(x), None
    h, q = to_dy.view(kind.shape), _times(dy, weight, kind, out=to_x.view(kind.shape))
    spare = xh * v
    xv = kind.mean(spare)
    xq = kind.mean(torch.mul(xh, q, out=spare))
    kappa = kind.mean(torch.mul(q, v, out=spare)) - xv * xq
    # P written out: a sweep for each of v, q and x̂ instead of several for each projection.
    torch.mul(v, r, out=h).addcmul_(xh, xv * r, value=-1)
    scale = -r * r
    shift = None
    if kind.centred:
        mean_v, mean_q = kind.mean(v), kind.mean(q)
        kappa -= mean_v * mean_q
        h.sub_(mean_v * r)
        shift = (xv * mean_q + xq * mean_v) * scale
    q.mul_(xv * scale).addcmul_(v, xq * scale)
    q.addcmul_(xh, (kappa - 2 * xv * xq) * scale)
    if shift is not None:
        q.sub_(shift)
    if weight is not None:
        to_weight = kind.sum(torch.mul(dy, h, out=spare), weight)
        h.mul_(kind.along(weight))
    return to_dy, to_x, to_weight


def memory_format(x: Tensor) -> torch.memory_format:
    """Return the order in memory that x [N, C, *] is read in."""
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not x.is_contiguous() else torch.contiguous_format


def _shared(weight: MaybeTensor, bias: MaybeTensor) -> bool:
    """Return whether PyTorch's kernels take this affine map: no sample has one of its own."""
    if weight is None:
        return bias is None  # of group norm with a bias alone they have no gradient
    return weight.ndim == 1 and (bias is None or bias.ndim == 1)


def _sizes(kind: Norm) -> tuple[int, int, int, int]:
    """Return N, C, positions and groups."""
    n, groups, channels, positions = kind.shape
    return n, groups * channels, positions, groups


def _statistic(t: Tensor, x: Tensor, kind: Norm) -> Tensor:
    """Return the mean or r of x as it broadcasts against the view."""
    if not kind.native:
        return t
    t = t.view(*kind.shape[:2], 1, 1)
    return t if x.is_contiguous() else kind.spread(t)


def _normalised(x: Tensor, mean: MaybeTensor, r: Tensor, kind: Norm) -> Tensor:
    """Return x̂ as a view, in memory of its own."""
    view, r = x.view(kind.shape), _statistic(r, x, kind)
    return view * r if mean is None else (view - _statistic(mean, x, kind)).mul_(r)


def _times(dy: Tensor, weight: MaybeTensor, kind: Norm, out: Tensor) -> Tensor:
    return out.copy_(dy) if weight is None else torch.mul(dy, kind.along(weight), out=out)


def _project(a: Tensor, xh: Tensor, xa: Tensor, kind: Norm, spare: Tensor) -> Tensor:
    """Return P(a) for xa = ⟨x̂a⟩, in a's memory; ``spare`` is overwritten."""
    if kind.centred:
        a.sub_(kind.mean(a))
    return a.sub_(torch.mul(xh, xa, out=spare))
