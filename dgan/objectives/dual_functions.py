"""Nonlinear operators on dual numbers, `(x, ẋ) → (y, ẏ)`, with hand-written first-order backwards.

A is the cotangent of y, B that of ẏ. Each Function keeps few tensors, where it can those that its
neighbours keep too. The tests compare each with double backward.
"""

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dgan.objectives.dual_rules import Operator, Pair

Gradients = tuple[Tensor | None, ...]


def first_order(backward: Operator) -> Operator:
    """A backward that is not to be differentiated: better an error than a term that is missing.

    PyTorch's `once_differentiable` is silent where the cotangents are constants.
    """

    @functools.wraps(backward)
    def run(ctx: Any, *cotangents: Tensor | None) -> Gradients:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "a penalty by method='forward' has first derivatives only, and create_graph=True "
                "asks for more: method='double' has every order"
            )
        return backward(ctx, *cotangents)

    return run


class LeakyReLU(torch.autograd.Function):
    """ẏ = f′ẋ, dx = f′A, dẋ = f′B: all that the backward pass needs is a sign, one byte each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tangent: Tensor, slope: float) -> Pair:
        """x and ẋ to y and ẏ."""
        ctx.slope, ctx.dtype = slope, x.dtype
        ctx.save_for_backward(x > 0)
        ctx.set_materialize_grads(False)
        return F.leaky_relu(x, slope), _sloped(tangent, x, slope)

    @staticmethod
    @first_order
    def backward(ctx: Any, *cotangents: Tensor | None) -> Gradients:  # pyright: ignore
        """A and B to dx and dẋ."""
        (positive,) = ctx.saved_tensors
        sign = positive.to(ctx.dtype)
        return *(None if c is None else _sloped(c, sign, ctx.slope) for c in cotangents), None


def _sloped(tangent: Tensor, x: Tensor, slope: float) -> Tensor:
    return torch.ops.aten.leaky_relu_backward(tangent, x, slope, False)


class Smooth(torch.autograd.Function):
    """A smooth activation: ẏ = f′(x) ẋ, dx = f′A + f″ẋB, dẋ = f′B.

    `first(g, x)` is g f′(x), a kernel of PyTorch; `second(x)` is f″(x).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, tangent: Tensor, value: Operator, first: Operator, second: Operator
    ) -> Pair:
        """x and ẋ to y and ẏ."""
        ctx.first, ctx.second = first, second
        ctx.save_for_backward(x, tangent)
        ctx.set_materialize_grads(False)
        return value(x), first(tangent, x)

    @staticmethod
    @first_order
    def backward(ctx: Any, *cotangents: Tensor | None) -> Gradients:  # pyright: ignore
        """A and B to dx and dẋ."""
        (x, tangent), (a, b) = ctx.saved_tensors, cotangents
        to_x = None if a is None else ctx.first(a, x)
        if b is None:
            return to_x, None, None, None, None
        curved = ctx.second(_wide(x)).to(x.dtype).mul_(tangent).mul_(b)
        to_x = curved if to_x is None else to_x.add_(curved)
        return to_x, ctx.first(b, x), None, None, None


def _gelu_second(x: Tensor) -> Tensor:
    """φ(x) (2 − x²), φ the normal density."""
    square = x.square()
    density = (square * -0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
    return density.mul_(square.neg_().add_(2))


def _gelu_tanh_second(x: Tensor) -> Tensor:
    """(1 − T²) (u′ + ½x (u″ − 2T u′²)), T = tanh u, u = √(2/π) (x + 0.044715 x³)."""
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    square = x.square()
    t = (square * cubic).add_(1).mul_(x).mul_(scale).tanh_()
    first = square.mul_(3 * cubic).add_(1).mul_(scale)
    inner = (x * (6 * cubic * scale)).sub_(2 * t * first.square()).mul_(x).mul_(0.5).add_(first)
    return inner.mul_(t.square_().neg_().add_(1))


def _silu_second(x: Tensor) -> Tensor:
    """s (1 − s) (2 + x (1 − 2s)), s the sigmoid."""
    s = x.sigmoid()
    slope = torch.addcmul(s, s, s, value=-1)
    return slope.mul_(s.mul_(-2).add_(1).mul_(x).add_(2))


def leaky_relu(
    x: Tensor, tangent: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> Pair | None:
    """The rule of `torch.nn.functional.leaky_relu`."""
    return None if inplace else LeakyReLU.apply(x, tangent, negative_slope)


def gelu(x: Tensor, tangent: Tensor, approximate: str = "none") -> Pair:
    """The rule of `torch.nn.functional.gelu`."""
    value = functools.partial(F.gelu, approximate=approximate)
    first = functools.partial(torch.ops.aten.gelu_backward, approximate=approximate)
    second = _gelu_second if approximate == "none" else _gelu_tanh_second
    return Smooth.apply(x, tangent, value, first, second)


def silu(x: Tensor, tangent: Tensor, inplace: bool = False) -> Pair | None:
    """The rule of `torch.nn.functional.silu`."""
    if inplace:
        return None
    return Smooth.apply(x, tangent, F.silu, torch.ops.aten.silu_backward, _silu_second)


class Normalised(torch.autograd.Function):
    """x̂ = r (x − μ) over `dims`, r = (σ² + ε)^(−½), and ẋ̂ = r P(ẋ).

    P(u) = u − mean(u) − x̂ mean(x̂ u). With k = r mean(x̂ ẋ), dẋ = r P(B) and
    dx = r (P(A − k B) − mean(ẋ̂ B) x̂ − mean(x̂ B) ẋ̂). Not `centred` (RMS), the means of x and of
    u alone are absent. Keeps its outputs, as the learned scale that follows does.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, tangent: Tensor, dims: tuple[int, ...], eps: float, centred: bool
    ) -> Pair:
        """x and ẋ to y and ẏ."""

        def about_mean(u: Tensor) -> Tensor:
            return u - u.mean(dims, keepdim=True) if centred else u

        dtype = x.dtype
        x, tangent = _wide(x), _wide(tangent)
        normal = about_mean(x)
        inverse = normal.square().mean(dims, keepdim=True).add_(eps).rsqrt_()
        normal = normal * inverse
        along = (normal * tangent).mean(dims, keepdim=True)
        moved = torch.addcmul(about_mean(tangent), normal, along, value=-1).mul_(inverse)
        normal, moved = normal.to(dtype), moved.to(dtype)
        ctx.dims, ctx.centred = dims, centred
        ctx.save_for_backward(normal, moved, inverse, along.mul_(inverse))
        return normal, moved

    @staticmethod
    @first_order
    def backward(ctx: Any, *cotangents: Tensor) -> Gradients:  # pyright: ignore
        """A and B to dx and dẋ."""

        def mean(u: Tensor) -> Tensor:
            return u.mean(ctx.dims, keepdim=True)

        dtype, (a, b) = cotangents[0].dtype, map(_wide, cotangents)
        normal, moved, inverse, k = (_wide(saved) for saved in ctx.saved_tensors)
        b_along = mean(normal * b)
        u = torch.addcmul(a, k, b, value=-1)
        u_along = mean(normal * u).add_(mean(moved * b))
        if ctx.centred:
            u, b = u.sub_(mean(u)), b - mean(b)
        to_x = u.addcmul_(normal, u_along, value=-1).addcmul_(moved, b_along, value=-1)
        to_tangent = torch.addcmul(b, normal, b_along, value=-1)
        return to_x.mul_(inverse).to(dtype), to_tangent.mul_(inverse).to(dtype), None, None, None


class Softmax(torch.autograd.Function):
    """p = softmax(x) and ṗ = J(ẋ), with J(u) = p (u − Σ p u).

    dẋ = J(B) and dx = J(A) + ṗ (B − Σ p B) − p Σ ṗ B: J is symmetric, and p the gradient of
    log Σ exp, so its second derivative is too.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, tangent: Tensor, dim: int) -> Pair:
        """x and ẋ to y and ẏ."""
        p = x.softmax(dim)
        moved = torch._softmax_backward_data(tangent, p, dim, p.dtype)
        ctx.dim = dim
        ctx.save_for_backward(p, moved)
        return p, moved

    @staticmethod
    @first_order
    def backward(ctx: Any, *cotangents: Tensor) -> Gradients:  # pyright: ignore
        """A and B to dx and dẋ."""
        (p, moved), (a, b) = ctx.saved_tensors, cotangents
        moved_b = moved * b
        to_x = torch._softmax_backward_data(a, p, ctx.dim, p.dtype)
        to_x.addcmul_(p, moved_b.sum(ctx.dim, keepdim=True), value=-1)
        to_x.addcmul_(moved, (p * b).sum(ctx.dim, keepdim=True), value=-1).add_(moved_b)
        return to_x, torch._softmax_backward_data(b, p, ctx.dim, p.dtype), None


def _wide(x: Tensor) -> Tensor:
    """In at least float32: statistics would lose digits, squares overflow float16."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
