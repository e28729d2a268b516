"""norm_act's kernels for groups that do not fit on the chip: two sweeps over memory.

x is rows [R, S], a row being one channel of one sample; a program takes a tile [ROWS, COLS] of it.
The first sweep writes sums over the columns of each tile, [how many sums, R, chunks of a row]; the
host adds those of a group; the second sweep reads the totals and computes the result. The unknown
means enter the double backward pass linearly, so it too needs only one sweep of sums:

    with k = γ²·dy·s'' and l = k·r·v + γ·dy·s''·(vγ·x̂ + vβ) + vγ·e, everything that
    `reference_norm_act.norm_act_second` takes the mean of is a combination of
    v, x̂v, q, x̂q, qv, l, lx̂, k, kx̂ and kx̂².

Statistics of a group: the mean, then r, each [groups]. BATCH: the group of a row is its channel.
"""
# ruff: noqa: ANN001, ANN201, ANN202 - Triton gives annotations a meaning of its own
# pyright: reportGeneralTypeIssues=false
# (pyright takes a call from one kernel to another for an error)

import triton
import triton.language as tl

from dgan_kernels import triton_activations as activations


@triton.jit
def _tile(R, S, chunks, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Return rows, whether they are there, offsets, mask, and where each row's sums go."""
    rows = (tl.program_id(0) // chunks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    chunk = (tl.program_id(0) % chunks).to(tl.int64)
    columns = chunk * COLS + tl.arange(0, COLS)
    inside = rows < R
    mask = inside[:, None] & (columns < S)[None, :]
    return rows, inside, rows[:, None] * S + columns[None, :], mask, rows * chunks + chunk


@triton.jit
def _of_group(ptr, rows, inside, C, D, BATCH: tl.constexpr):
    """Return each row's group's number, [ROWS, 1]."""
    group = rows % C if BATCH else rows // D
    return tl.load(ptr + group, mask=inside, other=0)[:, None]


@triton.jit
def _of_channel(ptr, rows, inside, stride_n, stride_c, C):
    """Return each row's entry of a vector [N, C], [ROWS, 1]."""
    at = (rows // C) * stride_n + (rows % C) * stride_c
    return tl.load(ptr + at, mask=inside, other=0)[:, None]


@triton.jit
def _standardised(x_ptr, offsets, mask, stats_ptr, groups, rows, inside, C, D, BATCH: tl.constexpr):
    """Return x̂, zero outside the mask, and r."""
    x = tl.load(x_ptr + offsets, mask=mask, other=0).to(tl.float32)
    mean = _of_group(stats_ptr, rows, inside, C, D, BATCH)
    r = _of_group(stats_ptr + groups, rows, inside, C, D, BATCH)
    return tl.where(mask, (x - mean) * r, 0.0), r


@triton.jit
def statistics_kernel(
    x_ptr, sums_ptr, R, S, chunks, size,
    CENTRED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Compute each chunk's mean (0 if not centred), and sum of squares of what is left."""
    _, inside, offsets, mask, at = _tile(R, S, chunks, ROWS, COLS)
    x = tl.load(x_ptr + offsets, mask=mask, other=0).to(tl.float32)
    count = tl.sum(mask.to(tl.float32), 1, keep_dims=True)
    mean = tl.zeros([ROWS, 1], tl.float32)
    if CENTRED:
        mean = tl.sum(x, 1, keep_dims=True) / tl.where(count > 0, count, 1.0)
        x = tl.where(mask, x - mean, 0.0)
    tl.store(sums_ptr + at, tl.sum(mean, 1), mask=inside)
    tl.store(sums_ptr + size + at, tl.sum(x * x, 1), mask=inside)


@triton.jit
def _entry(
    start, group, S, chunks, entries, C, D,
    BATCH: tl.constexpr, COLS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return where a block of a group's chunks is, how many columns each has, and its mask."""
    i = start + tl.arange(0, BLOCK)
    sample = (i // chunks).to(tl.int64)
    row = sample * C + group if BATCH else sample + group * D
    chunk = i % chunks
    inside = i < entries
    left = S - chunk * COLS
    length = tl.where(inside, tl.where(left < COLS, left, COLS), 0)
    return row * chunks + chunk, length.to(tl.float32), inside


@triton.jit
def combine_kernel(
    sums_ptr, stats_ptr, S, chunks, entries, C, D, groups, size, count,
    BATCH: tl.constexpr, COLS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Combine the chunks of one group into its mean and variance (Chan et al. 1979)."""
    group = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, entries, BLOCK):
        at, length, inside = _entry(start, group, S, chunks, entries, C, D, BATCH, COLS, BLOCK)
        total += length * tl.load(sums_ptr + at, mask=inside, other=0)
    mean = tl.sum(total, 0) / count
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, entries, BLOCK):
        at, length, inside = _entry(start, group, S, chunks, entries, C, D, BATCH, COLS, BLOCK)
        off = tl.load(sums_ptr + at, mask=inside, other=0) - mean
        squares += tl.load(sums_ptr + size + at, mask=inside, other=0) + length * off * off
    tl.store(stats_ptr + group, mean)
    tl.store(stats_ptr + groups + group, tl.sum(squares, 0) / count)


@triton.jit
def forward_kernel(
    x_ptr, stats_ptr, w_ptr, b_ptr, y_ptr,
    R, S, chunks, C, D, groups, w_n, w_c, b_n, b_c,
    ACT: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, BATCH: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Compute y from x and the statistics."""
    rows, inside, offsets, mask, _ = _tile(R, S, chunks, ROWS, COLS)
    z, _ = _standardised(x_ptr, offsets, mask, stats_ptr, groups, rows, inside, C, D, BATCH)
    if HAS_WEIGHT:
        z *= _of_channel(w_ptr, rows, inside, w_n, w_c, C)
    if HAS_BIAS:
        z += _of_channel(b_ptr, rows, inside, b_n, b_c, C)
    y = activations.value(z, ACT)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def jvp_sums_kernel(
    tx_ptr, x_ptr, stats_ptr, sums_ptr, R, S, chunks, C, D, groups, size,
    BATCH: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Sum ẋ and x̂ẋ over each chunk."""
    rows, inside, offsets, mask, at = _tile(R, S, chunks, ROWS, COLS)
    xh, _ = _standardised(x_ptr, offsets, mask, stats_ptr, groups, rows, inside, C, D, BATCH)
    tx = tl.load(tx_ptr + offsets, mask=mask, other=0).to(tl.float32)
    tl.store(sums_ptr + at, tl.sum(tx, 1), mask=inside)
    tl.store(sums_ptr + size + at, tl.sum(xh * tx, 1), mask=inside)


@triton.jit
def jvp_kernel(
    tx_ptr, shift_ptr, x_ptr, stats_ptr, totals_ptr, w_ptr, b_ptr, ty_ptr,
    R, S, chunks, C, D, groups, count, w_n, w_c, b_n, b_c,
    ACT: tl.constexpr, CENTRED: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    BATCH: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Compute ẏ from ẋ, the tangents of weight and bias, x, and the sums of ẋ and x̂ẋ."""
    rows, inside, offsets, mask, _ = _tile(R, S, chunks, ROWS, COLS)
    xh, r = _standardised(x_ptr, offsets, mask, stats_ptr, groups, rows, inside, C, D, BATCH)
    tx = tl.load(tx_ptr + offsets, mask=mask, other=0).to(tl.float32)
    tz = tx - xh * (_of_group(totals_ptr + groups, rows, inside, C, D, BATCH) / count)
    if CENTRED:
        tz -= _of_group(totals_ptr, rows, inside, C, D, BATCH) / count
    tz *= r
    z = xh
    if HAS_WEIGHT:
        w = _of_channel(w_ptr, rows, inside, w_n, w_c, C)
        z *= w
        tz = tz * w + xh * _of_channel(shift_ptr, rows, inside, C, 1, C)
    if HAS_BIAS:
        z += _of_channel(b_ptr, rows, inside, b_n, b_c, C)
        tz += _of_channel(shift_ptr + R, rows, inside, C, 1, C)
    ty = tz * activations.first(z, ACT)
    tl.store(ty_ptr + offsets, ty.to(ty_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _slope(
    dy_ptr, offsets, mask, xh, w_ptr, b_ptr, rows, inside, C, w_n, w_c, b_n, b_c,
    ACT: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Return z, dy and γ."""
    dy = tl.load(dy_ptr + offsets, mask=mask, other=0).to(tl.float32)
    z = xh
    w = 1.0
    if HAS_WEIGHT:
        w = _of_channel(w_ptr, rows, inside, w_n, w_c, C)
        z *= w
    if HAS_BIAS:
        z += _of_channel(b_ptr, rows, inside, b_n, b_c, C)
    return z, dy, w


@triton.jit
def backward_sums_kernel(
    dy_ptr, x_ptr, stats_ptr, w_ptr, b_ptr, sums_ptr,
    R, S, chunks, C, D, groups, size, w_n, w_c, b_n, b_c,
    ACT: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, BATCH: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Sum ex̂ and e over each chunk: what goes to the weight and bias."""
    rows, inside, offsets, mask, at = _tile(R, S, chunks, ROWS, COLS)
    xh, _ = _standardised(x_ptr, offsets, mask, stats_ptr, groups, rows, inside, C, D, BATCH)
    z, dy, _ = _slope(
        dy_ptr, offsets, mask, xh, w_ptr, b_ptr, rows, inside, C, w_n, w_c, b_n, b_c,
        ACT, HAS_WEIGHT, HAS_BIAS,
    )  # fmt: skip
    e = dy * activations.first(z, ACT)
    tl.store(sums_ptr + at, tl.sum(e * xh, 1), mask=inside)
    tl.store(sums_ptr + size + at, tl.sum(e, 1), mask=inside)


@triton.jit
def backward_kernel(
    dy_ptr, x_ptr, stats_ptr, totals_ptr, w_ptr, b_ptr, dx_ptr,
    R, S, chunks, C, D, groups, count, w_n, w_c, b_n, b_c,
    ACT: tl.constexpr, CENTRED: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    BATCH: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Compute dx from dy, x and the sums of x̂q and q."""
    rows, inside, offsets, mask, _ = _tile(R, S, chunks, ROWS, COLS)
    xh, r = _standardised(x_ptr, offsets, mask, stats_ptr, groups, rows, inside, C, D, BATCH)
    z, dy, w = _slope(
        dy_ptr, offsets, mask, xh, w_ptr, b_ptr, rows, inside, C, w_n, w_c, b_n, b_c,
        ACT, HAS_WEIGHT, HAS_BIAS,
    )  # fmt: skip
    dx = dy * activations.first(z, ACT) * w
    dx -= xh * (_of_group(totals_ptr, rows, inside, C, D, BATCH) / count)
    if CENTRED:
        dx -= _of_group(totals_ptr + groups, rows, inside, C, D, BATCH) / count
    tl.store(dx_ptr + offsets, (dx * r).to(dx_ptr.dtype.element_ty), mask=mask)
