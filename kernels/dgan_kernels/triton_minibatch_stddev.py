"""minibatch_stddev in Triton: forward, backward, jvp and double backward.

x is [G, M, F, K], contiguous: M groups of G samples, F sets of K features. The formulas are those
of `reference_minibatch_stddev`. A program holds all G samples of some features of one (group, set),
so that each tensor is read once; sums over features go in two stages, without atomics.
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

from dgan_kernels import reference_minibatch_stddev as reference
from dgan_kernels.autograd import Gradients, Launch, Via
from dgan_kernels.triton_activations import OPTIONS

TILE = 2048  # elements of x that a program holds: sixteen a thread
WARPS = 4
MAX_GROUP = 64  # beyond it a program would walk rows of less than 32 features


@triton.jit
def _locate(G, K, blocks, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return this program's (group, set), offsets [ROWS, BLOCK] into x, their mask, and k < K."""
    cell = tl.program_id(0) // blocks
    cells = tl.num_programs(0) // blocks
    g = tl.arange(0, ROWS)[:, None]
    k = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)[None, :]
    offsets = (g.to(tl.int64) * cells + cell) * K + k
    return cell, offsets, (g < G) & (k < K), k < K


@triton.jit
def _spread(x_ptr, offsets, mask, G, eps):
    """Return a = x − ⟨x⟩, 0 outside of the mask, and 1/σ, [1, BLOCK]."""
    x = tl.load(x_ptr + offsets, mask=mask, other=0).to(tl.float32)
    a = tl.where(mask, x - tl.sum(x, 0)[None, :] / G, 0.0)
    return a, 1.0 / tl.sqrt_rn(tl.sum(a * a, 0)[None, :] / G + eps)


@triton.jit
def sum_kernel(
    v_ptr, x_ptr, partial_ptr, G, K, blocks, eps,
    TANGENT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute Σ σ/K over some features, or the jvp's Σ ⟨a·v⟩/(σK)."""
    _, offsets, mask, features = _locate(G, K, blocks, ROWS, BLOCK)
    a, inverse = _spread(x_ptr, offsets, mask, G, eps)
    if TANGENT:
        v = tl.load(v_ptr + offsets, mask=mask, other=0).to(tl.float32)
        terms = tl.sum(v * a, 0)[None, :] / G * inverse
    else:
        terms = tl.where(features, 1.0 / inverse, 0.0)
    tl.store(partial_ptr + tl.program_id(0), tl.sum(tl.sum(terms, 1), 0) / K)


@triton.jit
def backward_kernel(
    ds_ptr, x_ptr, dx_ptr, G, K, blocks, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Compute dx from ds and x."""
    cell, offsets, mask, _ = _locate(G, K, blocks, ROWS, BLOCK)
    share = tl.load(ds_ptr + cell).to(tl.float32) / G / K
    a, inverse = _spread(x_ptr, offsets, mask, G, eps)
    dx = a * (inverse * share)
    tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def second_kernel(
    v_ptr, ds_ptr, x_ptr, partial_ptr, dx_ptr, G, K, blocks, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the parts of d_ds, and d_x, from v, ds and x."""
    cell, offsets, mask, _ = _locate(G, K, blocks, ROWS, BLOCK)
    share = tl.load(ds_ptr + cell).to(tl.float32) / G / K
    a, inverse = _spread(x_ptr, offsets, mask, G, eps)
    v = tl.load(v_ptr + offsets, mask=mask, other=0).to(tl.float32)
    along = tl.sum(v * a, 0)[None, :] / G * inverse
    dx = (v - tl.sum(v, 0)[None, :] / G - a * inverse * along) * (inverse * share)
    tl.store(partial_ptr + tl.program_id(0), tl.sum(tl.sum(along, 1), 0) / K)
    tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def _launch(
    kernel: Any, x: Tensor, before: tuple[Tensor, ...], after: tuple[Any, ...], eps: float,
    **constants: Any,
) -> Tensor:  # fmt: skip
    """Run ``kernel`` on (before, x, after); None in ``after`` is the sums, which are returned."""
    group, m, f, k = x.shape
    rows = 1 << (group - 1).bit_length()
    block = TILE // rows
    blocks = math.ceil(k / block)
    partial = x.new_empty((m, f, blocks), dtype=torch.float32)
    with torch.cuda.device_of(x):
        kernel[(m * f * blocks,)](
            *(t.contiguous() for t in (*before, x)),
            *(partial if t is None else t for t in after),
            group, k, blocks, eps, **constants, ROWS=rows, BLOCK=block, num_warps=WARPS, **OPTIONS,
        )  # fmt: skip
    return partial.view(m, f) if blocks == 1 else partial.sum(2)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _sums_of(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1:3], dtype=torch.float32)


def _forward(x: Tensor, eps: float) -> Tensor:
    return _launch(sum_kernel, x, (x,), (None,), eps, TANGENT=False)


def _tangent(v: Tensor, x: Tensor, eps: float) -> Tensor:
    return _launch(sum_kernel, x, (v,), (None,), eps, TANGENT=True)


def _backward(ds: Tensor, x: Tensor, eps: float) -> Tensor:
    dx = _like(x)
    _launch(backward_kernel, x, (ds,), (dx,), eps)
    return dx


def _second(v: Tensor, ds: Tensor, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    dx = _like(x)
    return _launch(second_kernel, x, (v, ds), (None, dx), eps), dx


def _forward_vjp(via: Via, grads: Any, x: Tensor, eps: float) -> Gradients:
    return (via(BACKWARD)(grads[0], x, eps),)


def _forward_jvp(via: Via, tangents: Any, x: Tensor, eps: float) -> Tensor:
    return via(TANGENT)(tangents[0], x, eps)


def _tangent_vjp(via: Via, grads: Any, v: Tensor, x: Tensor, eps: float) -> Gradients:
    # The jvp Σ v·dx/ds is symmetric: linear in v as the backward is in ds.
    return via(BACKWARD)(grads[0], x, eps), via(SECOND)(v, grads[0], x, eps)[1]


def _backward_vjp(via: Via, grads: Any, ds: Tensor, x: Tensor, eps: float) -> Gradients:
    return via(SECOND)(grads[0], ds, x, eps)


def _backward_jvp(via: Via, tangents: Any, ds: Tensor, x: Tensor, eps: float) -> Tensor:
    terms = []
    if tangents[0] is not None:
        terms.append(via(BACKWARD)(tangents[0], x, eps))
    if tangents[1] is not None:  # the second derivative in x is symmetric
        terms.append(via(SECOND)(tangents[1], ds, x, eps)[1])
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


FORWARD = Launch(
    "group_stddev", "(Tensor x, float eps) -> Tensor",
    tensors=1, outputs=lambda x, eps: _sums_of(x),
    run=_forward, plain=reference.group_stddev, vjp=_forward_vjp, jvp=_forward_jvp,
)  # fmt: skip
TANGENT = Launch(
    "group_stddev_tangent", "(Tensor v, Tensor x, float eps) -> Tensor",
    tensors=2, outputs=lambda v, x, eps: _sums_of(x),
    run=_tangent, plain=reference.group_stddev_tangent, vjp=_tangent_vjp, order=1,
)  # fmt: skip
BACKWARD = Launch(
    "group_stddev_backward", "(Tensor ds, Tensor x, float eps) -> Tensor",
    tensors=2, outputs=lambda ds, x, eps: _like(x),
    run=_backward, plain=reference.group_stddev_backward,
    vjp=_backward_vjp, jvp=_backward_jvp, order=1,
)  # fmt: skip
SECOND = Launch(
    "group_stddev_second", "(Tensor v, Tensor ds, Tensor x, float eps) -> (Tensor, Tensor)",
    tensors=3, outputs=lambda v, ds, x, eps: (_sums_of(x), _like(x)),
    run=_second, plain=reference.group_stddev_second, order=2,
)  # fmt: skip
