"""norm_act's double backward pass in two sweeps; see `triton_norm_sweeps`."""
# ruff: noqa: ANN001, ANN201, ANN202 - Triton gives annotations a meaning of its own
# pyright: reportGeneralTypeIssues=false
# (pyright takes a call from one kernel to another for an error)

import triton
import triton.language as tl

from dgan_kernels import triton_activations as activations
from dgan_kernels.triton_norm_sweeps import _of_channel, _of_group, _slope, _standardised, _tile

SUMS, SUMS_STRAIGHT = 10, 7  # with a curved and a piecewise linear activation


@triton.jit
def _shifts(shift_ptr, R, rows, inside, C, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Return the cotangents (vγ, vβ) of the sums."""
    vw = 0.0
    vb = 0.0
    if HAS_WEIGHT:
        vw = _of_channel(shift_ptr, rows, inside, C, 1, C)
    if HAS_BIAS:
        vb = _of_channel(shift_ptr + R, rows, inside, C, 1, C)
    return vw, vb


@triton.jit
def second_sums_kernel(
    v_ptr, shift_ptr, dy_ptr, x_ptr, stats_ptr, w_ptr, b_ptr, sums_ptr,
    R, S, chunks, C, D, groups, size, w_n, w_c, b_n, b_c,
    ACT: tl.constexpr, CURVED: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    BATCH: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Sum over each chunk v, x̂v, q, x̂q, qv, l, lx̂, and if s curves k, kx̂, kx̂²."""
    rows, inside, offsets, mask, at = _tile(R, S, chunks, ROWS, COLS)
    xh, r = _standardised(x_ptr, offsets, mask, stats_ptr, groups, rows, inside, C, D, BATCH)
    v = tl.load(v_ptr + offsets, mask=mask, other=0).to(tl.float32)
    z, dy, w = _slope(
        dy_ptr, offsets, mask, xh, w_ptr, b_ptr, rows, inside, C, w_n, w_c, b_n, b_c,
        ACT, HAS_WEIGHT, HAS_BIAS,
    )  # fmt: skip
    vw, vb = _shifts(shift_ptr, R, rows, inside, C, HAS_WEIGHT, HAS_BIAS)
    e = dy * activations.first(z, ACT)
    q = e * w
    l = e * vw  # noqa: E741 - the formula's name
    at += sums_ptr
    size = tl.cast(size, tl.int64)  # 9 of them exceed 32 bits long before one does
    tl.store(at, tl.sum(v, 1), mask=inside)
    tl.store(at + size, tl.sum(xh * v, 1), mask=inside)
    tl.store(at + 2 * size, tl.sum(q, 1), mask=inside)
    tl.store(at + 3 * size, tl.sum(xh * q, 1), mask=inside)
    tl.store(at + 4 * size, tl.sum(q * v, 1), mask=inside)
    if CURVED:
        bend = dy * activations.second(z, ACT) * w
        k = bend * w
        l += bend * (v * w * r + xh * vw + vb)  # noqa: E741
        tl.store(at + 7 * size, tl.sum(k, 1), mask=inside)
        tl.store(at + 8 * size, tl.sum(k * xh, 1), mask=inside)
        tl.store(at + 9 * size, tl.sum(k * xh * xh, 1), mask=inside)
    tl.store(at + 5 * size, tl.sum(l, 1), mask=inside)
    tl.store(at + 6 * size, tl.sum(l * xh, 1), mask=inside)


@triton.jit
def second_kernel(
    v_ptr, shift_ptr, dy_ptr, x_ptr, stats_ptr, totals_ptr, w_ptr, b_ptr, ddy_ptr, dx_ptr, sums_ptr,
    R, S, chunks, C, D, groups, count, size, w_n, w_c, b_n, b_c,
    ACT: tl.constexpr, CURVED: tl.constexpr, CENTRED: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Compute d_dy, d_x and each chunk's sums for weight and bias from the totals of the groups."""
    rows, inside, offsets, mask, at = _tile(R, S, chunks, ROWS, COLS)
    xh, r = _standardised(x_ptr, offsets, mask, stats_ptr, groups, rows, inside, C, D, BATCH)
    groups = tl.cast(groups, tl.int64)  # as `size` above
    mean_xv = _of_group(totals_ptr + groups, rows, inside, C, D, BATCH) / count
    mean_xq = _of_group(totals_ptr + 3 * groups, rows, inside, C, D, BATCH) / count
    kappa = _of_group(totals_ptr + 4 * groups, rows, inside, C, D, BATCH) / count
    kappa -= mean_xv * mean_xq
    # ⟨x̂a⟩ and ⟨a⟩ of a = γc + vγe − r(⟨x̂v⟩q + ⟨x̂q⟩v), from the sums
    mean_xa = _of_group(totals_ptr + 6 * groups, rows, inside, C, D, BATCH) / count
    mean_xa -= 2 * mean_xv * mean_xq * r
    mean_a = tl.zeros_like(mean_xa)
    mean_v = tl.zeros_like(mean_xa)
    if CENTRED:
        mean_v = _of_group(totals_ptr, rows, inside, C, D, BATCH) / count
        mean_q = _of_group(totals_ptr + 2 * groups, rows, inside, C, D, BATCH) / count
        kappa -= mean_v * mean_q
        mean_a = _of_group(totals_ptr + 5 * groups, rows, inside, C, D, BATCH) / count
        mean_a -= (mean_xv * mean_q + mean_xq * mean_v) * r
    if CURVED:
        mean_kx = _of_group(totals_ptr + 8 * groups, rows, inside, C, D, BATCH) / count
        mean_kxx = _of_group(totals_ptr + 9 * groups, rows, inside, C, D, BATCH) / count
        mean_xa -= (mean_v * mean_kx + mean_xv * mean_kxx) * r
        if CENTRED:
            mean_k = _of_group(totals_ptr + 7 * groups, rows, inside, C, D, BATCH) / count
            mean_a -= (mean_v * mean_k + mean_xv * mean_kx) * r

    v = tl.load(v_ptr + offsets, mask=mask, other=0).to(tl.float32)
    z, dy, w = _slope(
        dy_ptr, offsets, mask, xh, w_ptr, b_ptr, rows, inside, C, w_n, w_c, b_n, b_c,
        ACT, HAS_WEIGHT, HAS_BIAS,
    )  # fmt: skip
    vw, vb = _shifts(shift_ptr, R, rows, inside, C, HAS_WEIGHT, HAS_BIAS)
    slope = activations.first(z, ACT)
    h = (v - mean_v - xh * mean_xv) * r
    tz = h * w + xh * vw + vb
    ddy = slope * tz
    tl.store(ddy_ptr + offsets, ddy.to(ddy_ptr.dtype.element_ty), mask=mask)
    e = dy * slope
    a = e * vw - (e * w * mean_xv + v * mean_xq) * r
    to_weight = e * h
    to_bias = tl.zeros_like(e)
    if CURVED:
        to_bias = dy * activations.second(z, ACT) * tz
        to_weight += to_bias * xh
        a += to_bias * w
    dx = (a - mean_a - xh * mean_xa - xh * (kappa * r)) * r
    tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if HAS_WEIGHT or HAS_BIAS:
        tl.store(sums_ptr + at, tl.sum(to_weight, 1), mask=inside)
        tl.store(sums_ptr + size + at, tl.sum(to_bias, 1), mask=inside)
