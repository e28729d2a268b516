"""FIR filters over blocks of pixels, for use inside Triton kernels; see `triton_upfirdn2d`.

Blocks are rows [RH, 1] by pixels and channels [1, Q]: (iy, ty) and (ix, tx) are a result's first
pixel of x and that pixel's tap. A constant stands to the right of a block: the interpreter takes it
only there.
"""
# ruff: noqa: ANN001, ANN201, ANN202 - Triton gives annotations a meaning of its own
# pyright: reportGeneralTypeIssues=false
# (pyright takes a call from one kernel to another for an error)

import triton
import triton.language as tl

# Taps are scalar loads, chosen by where(): a block of addresses would be loaded once for each
# element of it, although it holds `up` different taps.


@triton.jit
def _row(f_ptr, t, T: tl.constexpr, SIZE: tl.constexpr, FLIP: tl.constexpr):
    """Return where row t of T begins; a filter that is not flipped is read backwards."""
    if FLIP:
        return f_ptr + t * SIZE
    else:
        return f_ptr + (T - 1 - t) * SIZE


@triton.jit
def _tap(f_ptr, t: tl.constexpr, T: tl.constexpr, FLIP: tl.constexpr):
    """Load tap t of a row."""
    return tl.load(_row(f_ptr, t, T, 1, FLIP))


@triton.jit
def _tap_of_phase(
    f_ptr, phase, k: tl.constexpr, UP: tl.constexpr, T: tl.constexpr, FLIP: tl.constexpr
):
    """Load tap phase + k·UP; the caller masks what lies beyond the last."""
    w = _tap(f_ptr, k * UP, T, FLIP)
    for p in tl.static_range(1, UP):
        if k * UP + p < T:
            w = tl.where(phase == p, _tap(f_ptr, k * UP + p, T, FLIP), w)
    return w


@triton.jit
def separable(
    x_ptr, f_ptr, c, live, ix, tx, ay, first_y, H, W, C, SY,
    UPX: tl.constexpr, UPY: tl.constexpr, TX: tl.constexpr, TY: tl.constexpr, FLIP: tl.constexpr,
    ROWS: tl.constexpr, RH: tl.constexpr,
):  # fmt: skip
    """Filter each row of x once, and add it to the rows of the result that it reaches."""
    acc = tl.zeros((RH, live.shape[1]), tl.float32)
    for r in range(ROWS):
        iy = first_y + r
        row = x_ptr + iy.to(tl.int64) * (W * C)
        # Not `live & (iy >= 0)`: the interpreter of Triton 3.9 takes no scalar there.
        row_live = tl.where((iy >= 0) & (iy < H), live, False)
        h = tl.zeros(live.shape, tl.float32)
        for k in tl.static_range((TX + UPX - 1) // UPX):
            i = ix + k
            mask = row_live & (i >= 0) & (i < W)
            if k * UPX + UPX > TX:
                mask = mask & (tx < TX - k * UPX)
            x = tl.load(row + (i * C + c), mask=mask, other=0).to(tl.float32)
            h += _tap_of_phase(f_ptr, tx, k, UPX, TX, FLIP) * x
        ty = (iy + SY) * UPY - ay
        w = tl.zeros(ty.shape, tl.float32)
        for t in tl.static_range(TY):
            w = tl.where(ty == t, _tap(f_ptr, t, TY, FLIP), w)
        # Not a weight of zero: it would carry a NaN or an infinity to rows that do not see it.
        acc = tl.where((ty >= 0) & (ty < TY), acc + w * h, acc)
    return acc


@triton.jit
def square(
    x_ptr, f_ptr, c, live, ix, tx, iy, ty, H, W, C,
    UPX: tl.constexpr, UPY: tl.constexpr, TX: tl.constexpr, TY: tl.constexpr, FLIP: tl.constexpr,
    RH: tl.constexpr,
):  # fmt: skip
    """Add every tap of a filter that does not separate."""
    acc = tl.zeros((RH, live.shape[1]), tl.float32)
    for ky in range((TY + UPY - 1) // UPY):  # not unrolled: it would need too many registers
        i = iy + ky
        rows = x_ptr + i.to(tl.int64) * (W * C)
        row_mask = (i >= 0) & (i < H) & (ty < TY - ky * UPY)
        for kx in tl.static_range((TX + UPX - 1) // UPX):
            j = ix + kx
            mask = live & (j >= 0) & (j < W)
            if kx * UPX + UPX > TX:
                mask = mask & (tx < TX - kx * UPX)
            x = tl.load(rows + (j * C + c), mask=row_mask & mask, other=0).to(tl.float32)
            w = _tap_of_phase(_row(f_ptr, ky * UPY, TY, TX, FLIP), tx, kx, UPX, TX, FLIP)
            for p in tl.static_range(1, UPY):
                # The remainder keeps a row that is masked inside of the filter.
                row = _row(f_ptr, (ky * UPY + p) % TY, TY, TX, FLIP)
                w = tl.where(ty == p, _tap_of_phase(row, tx, kx, UPX, TX, FLIP), w)
            acc += w * x
    return acc
