"""Gradient penalties' operators in Triton, on rows [N, L]: one row for each sample.

    squared_norm   s = Σ x²            its vjp  2·g·x      its jvp  2·Σ x·ẋ
    dot            s = f·Σ x·y         its vjp  f·g·y, f·g·x
    scale          o = f·w·x           its vjp  f·w·v, f·Σ x·v

The three close on one another, so every order of derivative is a kernel. Sums go in two stages:
each program adds up one chunk of a row, and PyTorch adds the chunks; no atomics, fixed order.
"""
# ruff: noqa: ANN001, ANN201, ANN202 - Triton gives annotations a meaning of its own
# pyright: reportGeneralTypeIssues=false
# (pyright takes a call from one kernel to another for an error)

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dgan_kernels import reference_gradient_penalty as reference
from dgan_kernels.autograd import Gradients, Launch, Via
from dgan_kernels.triton_activations import OPTIONS

BLOCK = 2048  # sixteen elements a thread: two 16-byte loads of a 16-bit dtype, four of float32
STEPS = 4  # blocks to a chunk, their loads in flight together: 8,192 elements a program
WARPS = 4


@triton.jit
def _row(chunks, CHUNK: tl.constexpr):
    """Return this program's row, and where in the row its chunk starts."""
    # 64 bits, for a row and a tensor may both exceed 2³¹ elements.
    start = (tl.program_id(0) % chunks).to(tl.int64) * CHUNK
    return (tl.program_id(0) // chunks).to(tl.int64), start


@triton.jit
def sum_kernel(
    x_ptr, y_ptr, partial_ptr, L, chunks, factor,
    SQUARE: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Compute factor·Σ x·y of one chunk, or factor·Σ x²."""
    row, start = _row(chunks, BLOCK * STEPS)
    total = tl.zeros([BLOCK], tl.float32)
    for step in tl.static_range(STEPS):
        offsets = start + step * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < L
        x = tl.load(x_ptr + row * L + offsets, mask=mask, other=0).to(tl.float32)
        if SQUARE:
            total += x * x
        else:
            total += x * tl.load(y_ptr + row * L + offsets, mask=mask, other=0).to(tl.float32)
    tl.store(partial_ptr + tl.program_id(0), tl.sum(total, 0) * factor)


@triton.jit
def scale_kernel(
    x_ptr, weight_ptr, out_ptr, L, chunks, factor, RULE: tl.constexpr, BLOCK: tl.constexpr
):
    """Compute w·x, where w is factor·weight, or follows from weight = ‖g‖² by a penalty's rule."""
    row, start = _row(chunks, BLOCK)
    w = tl.load(weight_ptr + row).to(tl.float32)
    if RULE == "linear":
        w *= factor
    else:
        # NaN is unequal to 0 and not below it, so that it passes both.
        inverse = 1.0 / tl.sqrt_rn(tl.where(w != 0, w, 1.0))
        w = tl.where(w != 0, 2 * (1 - inverse), 0.0)
        if RULE == "one_sided":
            w = tl.where(w < 0, 0.0, w)
    offsets = start + tl.arange(0, BLOCK)
    mask = offsets < L
    x = tl.load(x_ptr + row * L + offsets, mask=mask, other=0).to(tl.float32)
    tl.store(out_ptr + row * L + offsets, (x * w).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def interpolate_kernel(real_ptr, fake_ptr, mix_ptr, out_ptr, L, chunks, BLOCK: tl.constexpr):
    """Compute fake + mix·(real − fake), exact where mix is 0 or 1."""
    row, start = _row(chunks, BLOCK)
    mix = tl.load(mix_ptr + row).to(tl.float32)
    offsets = start + tl.arange(0, BLOCK)
    mask = offsets < L
    real = tl.load(real_ptr + row * L + offsets, mask=mask, other=0).to(tl.float32)
    fake = tl.load(fake_ptr + row * L + offsets, mask=mask, other=0).to(tl.float32)
    far = real - fake
    out = tl.where(mix < 0.5, fake + mix * far, real - (1 - mix) * far)
    tl.store(out_ptr + row * L + offsets, out.to(out_ptr.dtype.element_ty), mask=mask)


def _sum(x: Tensor, y: Tensor, factor: float, square: bool) -> Tensor:
    n, length = x.shape
    if x.numel() == 0:
        return x.new_zeros(n, dtype=torch.float32)
    chunks = math.ceil(length / (BLOCK * STEPS))
    partial = x.new_empty((n, chunks), dtype=torch.float32)
    with torch.cuda.device_of(x):
        launch: Any = sum_kernel[(n * chunks,)]
        launch(
            x.contiguous(), y.contiguous(), partial, length, chunks, factor,
            SQUARE=square, BLOCK=BLOCK, STEPS=STEPS, num_warps=WARPS, **OPTIONS,
        )  # fmt: skip
    return partial.view(n) if chunks == 1 else partial.sum(1)


def _map(kernel: Any, inputs: tuple[Tensor, ...], *scalars: float, **constants: Any) -> Tensor:
    """Run ``kernel`` on rows and per-sample numbers; return rows like the first input."""
    out = _like(inputs[0])
    n, length = out.shape
    if out.numel() == 0:
        return out
    chunks = math.ceil(length / BLOCK)
    with torch.cuda.device_of(out):
        kernel[(n * chunks,)](
            *(t.contiguous() for t in inputs), out, length, chunks, *scalars,
            **constants, BLOCK=BLOCK, num_warps=WARPS, **OPTIONS,
        )  # fmt: skip
    return out


def _like(rows: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(rows, memory_format=torch.contiguous_format)


def _sums_of(rows: Tensor, *_: Any) -> Tensor:
    return rows.new_empty(rows.shape[0], dtype=torch.float32)


def _squared_norm_vjp(via: Via, grads: Any, x: Tensor) -> Gradients:
    return (via(SCALE)(x, grads[0], 2.0),)


def _squared_norm_jvp(via: Via, tangents: Any, x: Tensor) -> Tensor:
    return via(DOT)(x, tangents[0], 2.0)


def _dot_vjp(via: Via, grads: Any, x: Tensor, y: Tensor, factor: float) -> Gradients:
    return via(SCALE)(y, grads[0], factor), via(SCALE)(x, grads[0], factor)


def _dot_jvp(via: Via, tangents: Any, x: Tensor, y: Tensor, factor: float) -> Tensor:
    return _product_rule(via(DOT), tangents, x, y, factor)


def _scale_vjp(via: Via, grads: Any, x: Tensor, weight: Tensor, factor: float) -> Gradients:
    return via(SCALE)(grads[0], weight, factor), via(DOT)(x, grads[0], factor)


def _scale_jvp(via: Via, tangents: Any, x: Tensor, weight: Tensor, factor: float) -> Tensor:
    return _product_rule(via(SCALE), tangents, x, weight, factor)


def _product_rule(product: Any, tangents: Any, a: Tensor, b: Tensor, factor: float) -> Tensor:
    """Return the tangent of ``product``, linear in a and in b."""
    ta, tb = tangents
    if ta is None or tb is None:
        return product(a, tb, factor) if ta is None else product(ta, b, factor)
    return product(ta, b, factor) + product(a, tb, factor)


SQUARED_NORM = Launch(
    "squared_norm", "(Tensor x) -> Tensor",
    tensors=1, outputs=_sums_of, plain=reference.squared_norm,
    run=lambda x: _sum(x, x, 1.0, square=True),
    vjp=_squared_norm_vjp, jvp=_squared_norm_jvp,
)  # fmt: skip
DOT = Launch(
    "sample_dot", "(Tensor x, Tensor y, float factor) -> Tensor",
    tensors=2, outputs=_sums_of, plain=reference.dot,
    run=lambda x, y, factor: _sum(x, y, factor, square=False),
    vjp=_dot_vjp, jvp=_dot_jvp,
)  # fmt: skip
SCALE = Launch(
    "sample_scale", "(Tensor x, Tensor weight, float factor) -> Tensor",
    tensors=2, outputs=_like, plain=reference.scale,
    run=lambda x, weight, factor: _map(scale_kernel, (x, weight), factor, RULE="linear"),
    vjp=_scale_vjp, jvp=_scale_jvp,
)  # fmt: skip

# These two are only ever given constants, so that nothing asks for their derivatives.
INTERPOLATE = Launch(
    "interpolate", "(Tensor real, Tensor fake, Tensor mix) -> Tensor",
    tensors=3, outputs=_like, plain=reference.interpolate,
    run=lambda real, fake, mix: _map(interpolate_kernel, (real, fake, mix)),
)  # fmt: skip
DIRECTION = Launch(
    "penalty_direction", "(Tensor gradient, Tensor squares, bool one_sided) -> Tensor",
    tensors=2, outputs=_like, plain=reference.direction,
    run=lambda gradient, squares, one_sided: _map(
        scale_kernel, (gradient, squares), 1.0, RULE="one_sided" if one_sided else "one_centered"
    ),
)  # fmt: skip
