"""norm_act as launches that differentiate into each other.

    FORWARD   --vjp--> BACKWARD             --jvp--> JVP
    JVP       --vjp--> BACKWARD and SECOND
    BACKWARD  --vjp--> SECOND               --jvp--> BACKWARD and SECOND

SECOND serves three of them because the second derivative of ⟨dy, y⟩ in (x, γ, β) is symmetric.
``stats`` is a function of x that is kept instead of computed again: derivatives with respect to x
include what passes through it, so that it has none of its own.
"""

from typing import Any

import torch
from torch import Tensor

from dgan_kernels import reference_norm_act as reference
from dgan_kernels import triton_norm_launch as kernels
from dgan_kernels.autograd import Gradients, Launch, Via
from dgan_kernels.reference_norm_act import MaybeTensor
from dgan_kernels.triton_norm_launch import WIDEST, resident_tiles

__all__ = ["WIDEST", "launch"]


def launch(x: Tensor, weight: MaybeTensor, bias: MaybeTensor, *constants: Any) -> Tensor:
    """Return y for a view x of `reference_norm_act`, on the kernels that suit its size."""
    x = x.contiguous()
    fits = x.numel() == 0 or resident_tiles(x, constants[0]) is not None
    stats = None if fits else STATISTICS(x, *constants)
    return FORWARD(x, stats, weight, bias, *constants)


def _to_affine(
    sums: Tensor, weight: MaybeTensor, bias: MaybeTensor
) -> tuple[MaybeTensor, MaybeTensor]:
    """Return what ``sums`` [2, N, G, D] are to weight and bias [N, G, D, 1]."""
    return (
        None if weight is None else sums[0].unsqueeze(-1),
        None if bias is None else sums[1].unsqueeze(-1),
    )


def _from_affine(tw: MaybeTensor, tb: MaybeTensor) -> MaybeTensor:
    """Return tangents of weight and bias as a shift [2, N, G, D]; None where there are none."""
    either = tb if tw is None else tw
    if either is None:
        return None
    zero = torch.zeros_like(either)
    return torch.stack([zero if t is None else t for t in (tw, tb)]).squeeze(-1)


def _or_zero(tangent: MaybeTensor, x: Tensor) -> Tensor:
    return torch.zeros_like(x) if tangent is None else tangent


def _statistics_vjp(via: Via, grads: Any, x: Tensor, *constants: Any) -> Gradients:
    return (None,)


def _statistics_jvp(via: Via, tangents: Any, x: Tensor, *constants: Any) -> Tensor:
    return torch.zeros_like(via(STATISTICS)(x, *constants))


def _forward_vjp(
    via: Via, grads: Any, x: Tensor, stats: MaybeTensor, weight: MaybeTensor, bias: MaybeTensor,
    *constants: Any,
) -> Gradients:  # fmt: skip
    dx, sums = via(BACKWARD)(grads[0], x, stats, weight, bias, *constants)
    return dx, None, *_to_affine(sums, weight, bias)


def _forward_jvp(
    via: Via, tangents: Any, x: Tensor, stats: MaybeTensor, weight: MaybeTensor, bias: MaybeTensor,
    *constants: Any,
) -> Tensor:  # fmt: skip
    tx, _, tw, tb = tangents
    shift = _from_affine(tw, tb)
    return via(JVP)(_or_zero(tx, x), shift, x, stats, weight, bias, *constants)


def _jvp_vjp(
    via: Via, grads: Any, tx: Tensor, shift: MaybeTensor, x: Tensor, *rest: Any
) -> Gradients:
    weight, bias = rest[1:3]
    to_tx, to_shift = via(BACKWARD)(grads[0], x, *rest)
    _, dx, sums = via(SECOND)(tx, shift, grads[0], x, *rest)
    to_shift = None if shift is None else to_shift
    return to_tx, to_shift, dx, None, *_to_affine(sums, weight, bias)


def _backward_vjp(
    via: Via, grads: Any, dy: Tensor, x: Tensor, stats: MaybeTensor, weight: MaybeTensor,
    bias: MaybeTensor, *constants: Any,
) -> Gradients:  # fmt: skip
    v, shift = grads
    if weight is None and bias is None:
        shift = None
    ddy, dx, sums = via(SECOND)(_or_zero(v, x), shift, dy, x, stats, weight, bias, *constants)
    return ddy, dx, None, *_to_affine(sums, weight, bias)


def _backward_jvp(
    via: Via, tangents: Any, dy: Tensor, x: Tensor, stats: MaybeTensor, weight: MaybeTensor,
    bias: MaybeTensor, *constants: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    tdy, tx, _, tw, tb = tangents
    rest = (x, stats, weight, bias, *constants)
    terms = []
    if tdy is not None:
        terms.append(via(BACKWARD)(tdy, *rest))
    if not (tx is None and tw is None and tb is None):
        shift = _from_affine(tw, tb)
        terms.append(via(SECOND)(_or_zero(tx, x), shift, dy, *rest)[1:])
    dx, sums = terms[0] if len(terms) == 1 else tuple(a + b for a, b in zip(*terms))
    return dx, sums


def _sums(x: Tensor, over: str, weight: MaybeTensor, bias: MaybeTensor) -> Tensor:
    shape = reference.sums_shape(x, over, not (weight is None and bias is None))
    return x.new_empty(shape, dtype=torch.float32)


def _allocate_statistics(x: Tensor, over: str, *_: Any) -> Tensor:
    n, g, d, s = x.shape
    groups = {"group": n * g, "channels": n * g * s, "batch": d}[over]
    return x.new_empty((2, groups), dtype=torch.float32)


def _allocate_backward(
    dy: Tensor,
    x: Tensor,
    stats: MaybeTensor,
    weight: MaybeTensor,
    bias: MaybeTensor,
    over: str,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), _sums(x, over, weight, bias)


def _allocate_second(v: Tensor, shift: MaybeTensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(args[1]), *_allocate_backward(*args)


_CONSTANTS = "str over, bool centred, str act, float eps, str? ranks"
_LAYER = f"Tensor x, Tensor? stats, Tensor? weight, Tensor? bias, {_CONSTANTS}"

STATISTICS = Launch(
    "norm_act_statistics", f"(Tensor x, {_CONSTANTS}) -> Tensor",
    tensors=1, outputs=_allocate_statistics, run=kernels.statistics,
    plain=reference.norm_act_statistics, vjp=_statistics_vjp, jvp=_statistics_jvp,
)  # fmt: skip
FORWARD = Launch(
    "norm_act", f"({_LAYER}) -> Tensor",
    tensors=4, outputs=(0,), run=kernels.forward, plain=reference.norm_act_forward,
    vjp=_forward_vjp, jvp=_forward_jvp,
)  # fmt: skip
JVP = Launch(
    "norm_act_jvp", f"(Tensor tx, Tensor? shift, {_LAYER}) -> Tensor",
    tensors=6, outputs=(2,), run=kernels.jvp, plain=reference.norm_act_jvp,
    vjp=_jvp_vjp, order=1,
)  # fmt: skip
BACKWARD = Launch(
    "norm_act_backward", f"(Tensor dy, {_LAYER}) -> (Tensor, Tensor)",
    tensors=5, outputs=_allocate_backward, run=kernels.backward, plain=reference.norm_act_backward,
    vjp=_backward_vjp, jvp=_backward_jvp, order=1,
)  # fmt: skip
SECOND = Launch(
    "norm_act_second",
    f"(Tensor v, Tensor? shift, Tensor dy, {_LAYER}) -> (Tensor, Tensor, Tensor)",
    tensors=7, outputs=_allocate_second, run=kernels.second, plain=reference.norm_act_second,
    order=2,
)  # fmt: skip
