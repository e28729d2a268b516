"""norm_act's kernels for groups that fit on the chip: each tensor is read once and written once.

A program takes tiles [ROWS, COLS] of x, in one of three ways:

    rows are               columns are     a group is    weight and bias go with
    channels of a sample   positions       a row         rows        (instance norm)
    channels of a group    positions       the tile      rows        (group norm; WHOLE)
    positions              channels        a row         columns     (layer, rms, pixel; ACROSS)

Rows come in equal ``positions``-long runs (all rows; one group's channels; one sample's positions),
of which a run is cut into ``chunks`` programs of ``tiles`` tiles. ACROSS, a program sums over its
rows what goes to weight and bias; the host adds the programs.
"""
# ruff: noqa: ANN001, ANN201, ANN202 - Triton gives annotations a meaning of its own
# pyright: reportGeneralTypeIssues=false
# (pyright takes a call from one kernel to another for an error)

import triton
import triton.language as tl

from dgan_kernels import triton_activations as activations
from dgan_kernels import triton_norm_math as norm


@triton.jit
def _tile(t, positions, chunks, tiles, cols, inner, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Return the rows of tile ``t``, whether they are there, and its offsets (64 bits) and mask."""
    program = tl.program_id(0)
    run = (program // chunks).to(tl.int64)
    within = ((program % chunks).to(tl.int64) * tiles + t) * ROWS + tl.arange(0, ROWS)
    rows = run * positions + within
    columns = tl.arange(0, COLS)
    # A column is `inner` elements from the next; `inner` adjacent rows interleave.
    starts = (rows // inner) * inner * cols + rows % inner
    offsets = starts[:, None] + columns.to(tl.int64)[None, :] * inner
    inside = within < positions
    return rows, inside, offsets, inside[:, None] & (columns < cols)[None, :]


@triton.jit
def _affine(
    ptr, rows, inside, chunks, stride_n, stride_c, C,
    ACROSS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Return a vector [N, C] at the tile's channels: [1, COLS] if ACROSS, else [ROWS, 1]."""
    if ACROSS:
        columns = tl.arange(0, COLS)
        sample = (tl.program_id(0) // chunks).to(tl.int64)
        values = tl.load(ptr + sample * stride_n + columns * stride_c, mask=columns < C, other=0)[
            None, :
        ]
    else:
        values = tl.load(
            ptr + (rows // C) * stride_n + (rows % C) * stride_c, mask=inside, other=0
        )[:, None]
    return values


@triton.jit
def forward_kernel(
    x_ptr, w_ptr, b_ptr, y_ptr,
    positions, chunks, tiles, cols, inner, C, count, eps, w_n, w_c, b_n, b_c,
    ACT: tl.constexpr, CENTRED: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACROSS: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Compute y from x."""
    for t in range(tiles):
        rows, inside, offsets, mask = _tile(t, positions, chunks, tiles, cols, inner, ROWS, COLS)
        x = tl.load(x_ptr + offsets, mask=mask, other=0).to(tl.float32)
        z, _ = norm.standardise(x, mask, count, eps, CENTRED, WHOLE)
        if HAS_WEIGHT:
            z *= _affine(w_ptr, rows, inside, chunks, w_n, w_c, C, ACROSS, ROWS, COLS)
        if HAS_BIAS:
            z += _affine(b_ptr, rows, inside, chunks, b_n, b_c, C, ACROSS, ROWS, COLS)
        y = activations.value(z, ACT)
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def jvp_kernel(
    tx_ptr, shift_ptr, x_ptr, w_ptr, b_ptr, ty_ptr,
    positions, chunks, tiles, cols, inner, C, count, eps, w_n, w_c, b_n, b_c, shift_size,
    ACT: tl.constexpr, CENTRED: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACROSS: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Compute ẏ from ẋ, the tangents of weight and bias, and x."""
    for t in range(tiles):
        rows, inside, offsets, mask = _tile(t, positions, chunks, tiles, cols, inner, ROWS, COLS)
        tx = tl.load(tx_ptr + offsets, mask=mask, other=0).to(tl.float32)
        x = tl.load(x_ptr + offsets, mask=mask, other=0).to(tl.float32)
        xh, r = norm.standardise(x, mask, count, eps, CENTRED, WHOLE)
        tz = norm.project(tx, xh, count, CENTRED, WHOLE) * r
        z = xh
        if HAS_WEIGHT:
            w = _affine(w_ptr, rows, inside, chunks, w_n, w_c, C, ACROSS, ROWS, COLS)
            tw = _affine(shift_ptr, rows, inside, chunks, C, 1, C, ACROSS, ROWS, COLS)
            z *= w
            tz = tz * w + xh * tw
        if HAS_BIAS:
            z += _affine(b_ptr, rows, inside, chunks, b_n, b_c, C, ACROSS, ROWS, COLS)
            tz += _affine(shift_ptr + shift_size, rows, inside, chunks, C, 1, C, ACROSS, ROWS, COLS)
        ty = tz * activations.first(z, ACT)
        tl.store(ty_ptr + offsets, ty.to(ty_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _store_sums(ptr, size, rows, inside, to_weight, to_bias):
    """Store what a tile sends to the weight and bias of each row."""
    tl.store(ptr + rows, tl.sum(to_weight, 1), mask=inside)
    tl.store(ptr + size + rows, tl.sum(to_bias, 1), mask=inside)


@triton.jit
def _store_column_sums(ptr, size, to_weight, to_bias, C, COLS: tl.constexpr):
    """Store what a program sends to the weight and bias of each column."""
    columns = tl.arange(0, COLS)
    at = ptr + tl.program_id(0).to(tl.int64) * C + columns
    tl.store(at, to_weight, mask=columns < C)
    tl.store(at + size, to_bias, mask=columns < C)


@triton.jit
def backward_kernel(
    dy_ptr, x_ptr, w_ptr, b_ptr, dx_ptr, sums_ptr,
    positions, chunks, tiles, cols, inner, C, count, eps, w_n, w_c, b_n, b_c, size,
    ACT: tl.constexpr, CENTRED: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACROSS: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Compute dx and the sums that are dγ and dβ from dy and x."""
    sum_weight = tl.zeros([COLS], tl.float32)
    sum_bias = tl.zeros([COLS], tl.float32)
    for t in range(tiles):
        rows, inside, offsets, mask = _tile(t, positions, chunks, tiles, cols, inner, ROWS, COLS)
        dy = tl.load(dy_ptr + offsets, mask=mask, other=0).to(tl.float32)
        x = tl.load(x_ptr + offsets, mask=mask, other=0).to(tl.float32)
        xh, r = norm.standardise(x, mask, count, eps, CENTRED, WHOLE)
        z = xh
        w = 1.0
        if HAS_WEIGHT:
            w = _affine(w_ptr, rows, inside, chunks, w_n, w_c, C, ACROSS, ROWS, COLS)
            z *= w
        if HAS_BIAS:
            z += _affine(b_ptr, rows, inside, chunks, b_n, b_c, C, ACROSS, ROWS, COLS)
        e = dy * activations.first(z, ACT)
        dx = norm.project(e * w, xh, count, CENTRED, WHOLE) * r
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        if HAS_WEIGHT or HAS_BIAS:
            if ACROSS:
                sum_weight += tl.sum(e * xh, 0)
                sum_bias += tl.sum(e, 0)
            else:
                _store_sums(sums_ptr, size, rows, inside, e * xh, e)
    if ACROSS and (HAS_WEIGHT or HAS_BIAS):
        _store_column_sums(sums_ptr, size, sum_weight, sum_bias, C, COLS)


@triton.jit
def second_kernel(
    v_ptr, shift_ptr, dy_ptr, x_ptr, w_ptr, b_ptr, ddy_ptr, dx_ptr, sums_ptr,
    positions, chunks, tiles, cols, inner, C, count, eps, w_n, w_c, b_n, b_c,
    shift_size, size,
    ACT: tl.constexpr, CENTRED: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACROSS: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    CURVED: tl.constexpr,
):  # fmt: skip
    """Compute d_dy, d_x and the sums for weight and bias from v, the shift, dy and x."""
    sum_weight = tl.zeros([COLS], tl.float32)
    sum_bias = tl.zeros([COLS], tl.float32)
    for t in range(tiles):
        rows, inside, offsets, mask = _tile(t, positions, chunks, tiles, cols, inner, ROWS, COLS)
        v = tl.load(v_ptr + offsets, mask=mask, other=0).to(tl.float32)
        dy = tl.load(dy_ptr + offsets, mask=mask, other=0).to(tl.float32)
        x = tl.load(x_ptr + offsets, mask=mask, other=0).to(tl.float32)
        xh, r = norm.standardise(x, mask, count, eps, CENTRED, WHOLE)
        w = 1.0
        b = 0.0
        vw = 0.0
        vb = 0.0
        if HAS_WEIGHT:
            w = _affine(w_ptr, rows, inside, chunks, w_n, w_c, C, ACROSS, ROWS, COLS)
            vw = _affine(shift_ptr, rows, inside, chunks, C, 1, C, ACROSS, ROWS, COLS)
        if HAS_BIAS:
            b = _affine(b_ptr, rows, inside, chunks, b_n, b_c, C, ACROSS, ROWS, COLS)
            vb = _affine(shift_ptr + shift_size, rows, inside, chunks, C, 1, C, ACROSS, ROWS, COLS)
        ddy, to_weight, to_bias, a, kappa = norm.second(
            v, dy, xh, r, w, b, vw, vb, count, ACT, CURVED, CENTRED, WHOLE
        )
        # In this order: storing d_dy first holds more registers over the means, and spills.
        dx = norm.project(a, xh, count, CENTRED, WHOLE) * r - xh * (kappa * r * r)
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        tl.store(ddy_ptr + offsets, ddy.to(ddy_ptr.dtype.element_ty), mask=mask)
        if HAS_WEIGHT or HAS_BIAS:
            if ACROSS:
                sum_weight += tl.sum(to_weight, 0)
                sum_bias += tl.sum(to_bias, 0)
            else:
                _store_sums(sums_ptr, size, rows, inside, to_weight, to_bias)
    if ACROSS and (HAS_WEIGHT or HAS_BIAS):
        _store_column_sums(sums_ptr, size, sum_weight, sum_bias, C, COLS)
