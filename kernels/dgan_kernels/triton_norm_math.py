"""The arithmetic of norm_act's kernels, on float32 tiles [ROWS, COLS] that hold whole groups.

A group is a row of the tile, or all of it (WHOLE). Outside ``mask`` a tile holds zeros; so do x̂ and
everything that has dy or v as a factor, and no sum needs the mask again. Formulas and their names
are those of `reference_norm_act`.
"""
# ruff: noqa: ANN001, ANN201 - Triton gives annotations a meaning of its own
# pyright: reportGeneralTypeIssues=false
# (pyright takes a call from one kernel to another for an error)

import triton
import triton.language as tl

from dgan_kernels import triton_activations as activations


@triton.jit
def mean(a, count, WHOLE: tl.constexpr):
    """Return ⟨a⟩ of each group, ready to broadcast."""
    total = tl.sum(a, 1, keep_dims=True)
    if WHOLE:
        total = tl.sum(total, 0, keep_dims=True)
    return total / count


@triton.jit
def standardise(x, mask, count, eps, CENTRED: tl.constexpr, WHOLE: tl.constexpr):
    """Return x̂ and r."""
    if CENTRED:
        x = tl.where(mask, x - mean(x, count, WHOLE), 0.0)
    r = tl.rsqrt(mean(x * x, count, WHOLE) + eps)
    return x * r, r


@triton.jit
def project(a, xh, count, CENTRED: tl.constexpr, WHOLE: tl.constexpr):
    """Return P(a) = a − ⟨a⟩ − x̂⟨x̂a⟩."""
    p = a - xh * mean(xh * a, count, WHOLE)
    if CENTRED:
        p -= mean(a, count, WHOLE)
    return p


@triton.jit
def second(
    v, dy, xh, r, w, b, vw, vb, count,
    ACT: tl.constexpr, CURVED: tl.constexpr, CENTRED: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Return d_dy, what goes to γ and β before summing, and (a, κ) for d_x = rP(a) − κr²x̂."""
    z = xh * w + b
    slope = activations.first(z, ACT)
    mean_xv = mean(xh * v, count, WHOLE)
    h = v - xh * mean_xv
    if CENTRED:
        mean_v = mean(v, count, WHOLE)
        h -= mean_v
    h *= r
    tz = h * w + xh * vw + vb
    e = dy * slope
    q = e * w
    mean_xq = mean(xh * q, count, WHOLE)
    kappa = mean(q * v, count, WHOLE) - mean_xv * mean_xq
    if CENTRED:
        kappa -= mean(q, count, WHOLE) * mean_v
    a = e * vw - (q * mean_xv + v * mean_xq) * r
    to_weight = e * h
    to_bias = tl.zeros_like(e)
    if CURVED:
        to_bias = dy * activations.second(z, ACT) * tz
        to_weight += to_bias * xh
        a += to_bias * w
    return slope * tz, to_weight, to_bias, a, kappa
