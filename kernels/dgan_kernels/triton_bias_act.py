"""bias_act in Triton: forward, backward (which is also the jvp) and double backward.

With u = x + b and m = 1 where |g·s(u)| <= c:

    y    = clamp(g·s(u), ±c)          dx  = dy·g·m·s'(u)
    d_dy = v·g·m·s'(u)                d_x = v·dy·g·m·s''(u)      for a cotangent v of dx

Each tensor is read once and written once. A dense tensor is walked in the order of its memory,
where the channel of element i is (i // INNER) % C, INNER being the channel's stride: contiguous,
channels_last and any other permutation of dense memory are one case.
"""
# ruff: noqa: ANN001, ANN201, ANN202 - Triton gives annotations a meaning of its own
# pyright: reportGeneralTypeIssues=false
# (pyright takes a call from one kernel to another for an error)

from math import gcd
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dgan_kernels import triton_activations as activations
from dgan_kernels.autograd import Gradients, Launch, Via
from dgan_kernels.reference import (
    ACTIVATIONS,
    bias_act_backward,
    bias_act_forward,
    bias_act_second,
)
from dgan_kernels.triton_activations import OPTIONS

BLOCK = 1024  # eight elements a thread: one 16-byte load of a 16-bit dtype, two of float32
WARPS = 4


@triton.jit
def _locate(
    b_ptr, b_stride, n, C, INNER, HAS_BIAS: tl.constexpr, PLANES: tl.constexpr,
    UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return this program's offsets, their mask, and the bias: one number for a plane."""
    if PLANES:
        blocks = tl.cdiv(INNER, BLOCK)
        plane = tl.program_id(0) // blocks
        start = (tl.program_id(0) % blocks) * BLOCK
        mask = start + tl.arange(0, BLOCK) < INNER
        offsets = plane.to(tl.int64) * INNER + start + tl.arange(0, BLOCK)
        b = 0.0
        if HAS_BIAS:
            b = tl.load(b_ptr + (plane % C) * b_stride).to(tl.float32)
    else:
        base = tl.program_id(0).to(tl.int64) * BLOCK
        offsets = base + tl.arange(0, BLOCK)
        mask = offsets < n
        b = 0.0
        if HAS_BIAS:
            # Only the block's start needs 64 bits: a vector division in 64 bits is slow.
            first = ((base // INNER) % C).to(tl.int32)
            # A multiple known to the compiler makes the bias of channels_last a vector load.
            first = tl.multiple_of(first, UNIT)
            within = (base % INNER).to(tl.int32) + tl.arange(0, BLOCK)
            channel = (first + within // INNER) % C
            b = tl.load(b_ptr + channel * b_stride, mask=mask, other=0).to(tl.float32)
    return offsets, mask, b


@triton.jit
def forward_kernel(
    x_ptr, b_ptr, y_ptr, n, b_stride, C, INNER, gain, clamp,
    ACT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_CLAMP: tl.constexpr, PLANES: tl.constexpr,
    UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute y from x."""
    offsets, mask, b = _locate(b_ptr, b_stride, n, C, INNER, HAS_BIAS, PLANES, UNIT, BLOCK)
    x = tl.load(x_ptr + offsets, mask=mask, other=0).to(tl.float32)
    y = gain * activations.value(x + b, ACT)
    if HAS_CLAMP:
        # Not tl.minimum: it would turn NaN into the bound and hide it.
        y = tl.where(y > clamp, clamp, tl.where(y < -clamp, -clamp, y))
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    dy_ptr, x_ptr, b_ptr, dx_ptr, n, b_stride, C, INNER, gain, clamp,
    ACT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_CLAMP: tl.constexpr, PLANES: tl.constexpr,
    UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute dx from dy and x."""
    offsets, mask, b = _locate(b_ptr, b_stride, n, C, INNER, HAS_BIAS, PLANES, UNIT, BLOCK)
    dy = tl.load(dy_ptr + offsets, mask=mask, other=0).to(tl.float32)
    u = tl.load(x_ptr + offsets, mask=mask, other=0).to(tl.float32) + b
    dx = dy * (gain * activations.first(u, ACT))
    if HAS_CLAMP:
        dx = tl.where(tl.abs(gain * activations.value(u, ACT)) <= clamp, dx, 0.0)
    tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def second_kernel(
    v_ptr, dy_ptr, x_ptr, b_ptr, ddy_ptr, dx_ptr, n, b_stride, C, INNER, gain, clamp,
    ACT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_CLAMP: tl.constexpr, PLANES: tl.constexpr,
    UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute d_dy and d_x from v, dy and x."""
    offsets, mask, b = _locate(b_ptr, b_stride, n, C, INNER, HAS_BIAS, PLANES, UNIT, BLOCK)
    v = tl.load(v_ptr + offsets, mask=mask, other=0).to(tl.float32)
    dy = tl.load(dy_ptr + offsets, mask=mask, other=0).to(tl.float32)
    u = tl.load(x_ptr + offsets, mask=mask, other=0).to(tl.float32) + b
    v *= gain
    if HAS_CLAMP:
        v = tl.where(tl.abs(gain * activations.value(u, ACT)) <= clamp, v, 0.0)
    ddy = v * activations.first(u, ACT)
    dx = v * dy * activations.second(u, ACT)
    tl.store(ddy_ptr + offsets, ddy.to(ddy_ptr.dtype.element_ty), mask=mask)
    tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def in_memory_order_of(t: Tensor, x: Tensor) -> Tensor:
    """Return ``t`` with the memory order of the dense ``x``."""
    same = all(s == r or n == 1 for s, r, n in zip(t.stride(), x.stride(), x.shape))
    return t if same else torch.empty_like(x).copy_(t)


def _launch(
    kernel: Any,
    inputs: tuple[Tensor, ...],
    bias: Tensor | None,
    outputs: tuple[Tensor, ...],
    act: str,
    gain: float,
    clamp: float | None,
    dim: int,
) -> None:
    """Run ``kernel``; ``outputs`` are dense; ``bias`` varies along ``dim`` alone."""
    out = outputs[0]
    if out.numel() == 0:
        return
    channels = out.shape[dim]
    inner = out.stride(dim) if channels > 1 else 1
    # A plane's bias is one load, but its start must keep vector loads aligned; beyond 2³⁰, where
    # the other walk would leave 32 bits, aligned or not.
    planes = inner >= BLOCK and (inner % 16 == 0 or inner >= 2**30)
    size = out.numel()
    grid = (size // inner * triton.cdiv(inner, BLOCK) if planes else triton.cdiv(size, BLOCK),)
    stride = 0 if bias is None else bias.stride(dim)
    with torch.cuda.device_of(out):
        kernel[grid](
            *(in_memory_order_of(t, out) for t in inputs),
            out if bias is None else bias,
            *outputs,
            size, stride, channels, inner, gain, 0.0 if clamp is None else clamp,
            ACT=act, HAS_BIAS=bias is not None, HAS_CLAMP=clamp is not None, PLANES=planes,
            UNIT=gcd(channels, 16) if inner == 1 else 1, BLOCK=BLOCK, num_warps=WARPS, **OPTIONS,
        )  # fmt: skip


def _forward(x: Tensor, bias: Tensor | None, *constants: Any) -> Tensor:
    y = torch.empty_like(x)
    _launch(forward_kernel, (x,), bias, (y,), *constants)
    return y


def _backward(dy: Tensor, x: Tensor, bias: Tensor | None, *constants: Any) -> Tensor:
    dx = torch.empty_like(x)
    _launch(backward_kernel, (dy, x), bias, (dx,), *constants)
    return dx


def _second(
    v: Tensor, dy: Tensor, x: Tensor, bias: Tensor | None, *constants: Any
) -> tuple[Tensor, Tensor]:
    ddy, dx = torch.empty_like(x), torch.empty_like(x)
    _launch(second_kernel, (v, dy, x), bias, (ddy, dx), *constants)
    return ddy, dx


def _to_bias(grad: Tensor, bias: Tensor | None) -> Tensor | None:
    """Return the bias's share of ``grad``: all of it, where the bias is expanded to x."""
    return None if bias is None else grad.sum_to_size(bias.shape)


def _shift(tx: Tensor | None, tb: Tensor | None) -> Tensor | None:
    """Return the tangent of u = x + b."""
    return tb if tx is None else tx if tb is None else tx + tb


def _forward_vjp(
    via: Via, grads: Any, x: Tensor, bias: Tensor | None, *constants: Any
) -> Gradients:
    dx = via(BACKWARD)(grads[0], x, bias, *constants)
    return dx, _to_bias(dx, bias)


def _forward_jvp(
    via: Via, tangents: Any, x: Tensor, bias: Tensor | None, *constants: Any
) -> Tensor:
    return via(BACKWARD)(_shift(*tangents), x, bias, *constants)


def _backward_vjp(
    via: Via, grads: Any, dy: Tensor, x: Tensor, bias: Tensor | None, *constants: Any
) -> Gradients:
    if ACTIVATIONS[constants[0]].second is None:
        return via(BACKWARD)(grads[0], x, bias, *constants), None, None
    ddy, dx = via(SECOND)(grads[0], dy, x, bias, *constants)
    return ddy, dx, _to_bias(dx, bias)


def _backward_jvp(
    via: Via, tangents: Any, dy: Tensor, x: Tensor, bias: Tensor | None, *constants: Any
) -> Tensor:
    shift = _shift(*tangents[1:])
    terms = []
    if tangents[0] is not None:
        terms.append(via(BACKWARD)(tangents[0], x, bias, *constants))
    if shift is not None:
        curved = ACTIVATIONS[constants[0]].second is not None
        terms.append(
            via(SECOND)(shift, dy, x, bias, *constants)[1] if curved else torch.zeros_like(x)
        )
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


def _backward_keeps(dy: Tensor, x: Tensor, bias: Tensor | None, *constants: Any) -> tuple[int, ...]:
    """Return what the rules read: of a piecewise linear activation's gradient, not dy."""
    return (1, 2) if ACTIVATIONS[constants[0]].second is None else (0, 1, 2)


_CONSTANTS = "str act, float gain, float? clamp, int dim"

FORWARD = Launch(
    "bias_act", f"(Tensor x, Tensor? bias, {_CONSTANTS}) -> Tensor",
    tensors=2, outputs=(0,), run=_forward, plain=bias_act_forward,
    vjp=_forward_vjp, jvp=_forward_jvp,
)  # fmt: skip
BACKWARD = Launch(
    "bias_act_backward", f"(Tensor dy, Tensor x, Tensor? bias, {_CONSTANTS}) -> Tensor",
    tensors=3, outputs=(1,), run=_backward, plain=bias_act_backward,
    vjp=_backward_vjp, jvp=_backward_jvp, keeps=_backward_keeps, order=1,
)  # fmt: skip
SECOND = Launch(
    "bias_act_second",
    f"(Tensor v, Tensor dy, Tensor x, Tensor? bias, {_CONSTANTS}) -> (Tensor, Tensor)",
    tensors=4, outputs=(2, 2), run=_second, plain=bias_act_second, order=2,
)  # fmt: skip
