"""The kernels of bias_act with scale and noise: forward, tangent, backward, double backward.

x is [N, C, P], its positions P as one dimension. A program has a tile [BC, BP] of one sample, so
that sums over positions, and over channels, are sums along an axis of it: they are stored, one for
each tile, and PyTorch adds them in a fixed order. The formulas are in `reference_bias_act_scaled`.
"""
# ruff: noqa: ANN001, ANN201, ANN202 - Triton gives annotations a meaning of its own
# pyright: reportGeneralTypeIssues=false
# (pyright takes a call from one kernel to another for an error)

import triton
import triton.language as tl

from dgan_kernels import triton_activations as activations


@triton.jit
def _tile(x_n, x_c, x_p, C, P, BC: tl.constexpr, BP: tl.constexpr):
    """Return this program's sample, channels [BC], positions [BP], offsets [BC, BP] and mask."""
    blocks_p = tl.cdiv(P, BP)
    blocks_c = tl.cdiv(C, BC)
    first_p = (tl.program_id(0) % blocks_p) * BP
    first_c = (tl.program_id(0) // blocks_p % blocks_c) * BC
    sample = (tl.program_id(0) // blocks_p // blocks_c).to(tl.int64)
    start = sample * x_n + first_c.to(tl.int64) * x_c + first_p.to(tl.int64) * x_p
    rows = tl.arange(0, BC).to(tl.int64) * x_c
    columns = tl.arange(0, BP).to(tl.int64) * x_p
    c, p = first_c + tl.arange(0, BC), first_p + tl.arange(0, BP)
    mask = (c < C)[:, None] & (p < P)[None, :]
    return sample, c, p, start + rows[:, None] + columns[None, :], mask


@triton.jit
def _operands(
    s_ptr, n_ptr, b_ptr, sample, c, p, C, P, noise_n,
    HAS_SCALE: tl.constexpr, HAS_NOISE: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Return the scale [BC, 1], and noise + bias; or what their tangents are."""
    s = tl.zeros(c.shape, tl.float32)[:, None]
    shift = tl.zeros(c.shape, tl.float32)[:, None]
    if HAS_SCALE:
        s = tl.load(s_ptr + sample * C + c, mask=c < C, other=0).to(tl.float32)[:, None]
    if HAS_BIAS:
        shift = tl.load(b_ptr + c, mask=c < C, other=0).to(tl.float32)[:, None]
    if HAS_NOISE:
        noise = tl.load(n_ptr + sample * noise_n + p, mask=p < P, other=0).to(tl.float32)
        shift = shift + noise[None, :]
    return s, shift


@triton.jit
def _passed(t, u, gain, clamp, ACT: tl.constexpr, HAS_CLAMP: tl.constexpr):
    """Return gain · t, and 0 where the clamp holds y(u)."""
    t = t * gain
    if HAS_CLAMP:
        t = tl.where(tl.abs(gain * activations.value(u, ACT)) <= clamp, t, 0.0)
    return t


@triton.jit
def _store_sums(
    to_scale, to_shift, channel_ptr, position_ptr, sample, c, p, C, P,
    HAS_SCALE: tl.constexpr, HAS_NOISE: tl.constexpr, HAS_BIAS: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Store this tile's share of the gradients of scale, bias and noise.

    channel_ptr is [N, blocks of P, 2, C], of scale and bias; position_ptr [N, blocks of C, P].
    """
    blocks_p = tl.cdiv(P, BP)
    row = (sample * blocks_p + tl.program_id(0) % blocks_p) * 2
    if HAS_SCALE:
        tl.store(channel_ptr + row * C + c, tl.sum(to_scale, axis=1), mask=c < C)
    if HAS_BIAS:
        tl.store(channel_ptr + (row + 1) * C + c, tl.sum(to_shift, axis=1), mask=c < C)
    if HAS_NOISE:
        row = (tl.program_id(0) // blocks_p).to(tl.int64)
        tl.store(position_ptr + row * P + p, tl.sum(to_shift, axis=0), mask=p < P)


@triton.jit
def forward_kernel(
    x_ptr, s_ptr, n_ptr, b_ptr, y_ptr, x_n, x_c, x_p, C, P, noise_n, gain, clamp,
    ACT: tl.constexpr, HAS_CLAMP: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_NOISE: tl.constexpr,
    HAS_BIAS: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Compute y from x."""
    sample, c, p, offsets, mask = _tile(x_n, x_c, x_p, C, P, BC, BP)
    s, shift = _operands(
        s_ptr, n_ptr, b_ptr, sample, c, p, C, P, noise_n, HAS_SCALE, HAS_NOISE, HAS_BIAS
    )
    u = tl.load(x_ptr + offsets, mask=mask, other=0).to(tl.float32)
    if HAS_SCALE:
        u *= s
    y = gain * activations.value(u + shift, ACT)
    if HAS_CLAMP:
        # Not tl.minimum: it would turn NaN into the bound and hide it.
        y = tl.where(y > clamp, clamp, tl.where(y < -clamp, -clamp, y))
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def tangent_kernel(
    tx_ptr, x_ptr, s_ptr, n_ptr, b_ptr, ts_ptr, tn_ptr, tb_ptr, ty_ptr,
    x_n, x_c, x_p, C, P, noise_n, gain, clamp,
    ACT: tl.constexpr, HAS_CLAMP: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_NOISE: tl.constexpr,
    HAS_BIAS: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Compute the tangent of y from those of x, scale, noise and bias."""
    sample, c, p, offsets, mask = _tile(x_n, x_c, x_p, C, P, BC, BP)
    s, shift = _operands(
        s_ptr, n_ptr, b_ptr, sample, c, p, C, P, noise_n, HAS_SCALE, HAS_NOISE, HAS_BIAS
    )
    ts, tshift = _operands(
        ts_ptr, tn_ptr, tb_ptr, sample, c, p, C, P, noise_n, HAS_SCALE, HAS_NOISE, HAS_BIAS
    )
    x = tl.load(x_ptr + offsets, mask=mask, other=0).to(tl.float32)
    tu = tl.load(tx_ptr + offsets, mask=mask, other=0).to(tl.float32)
    u = x
    if HAS_SCALE:
        u = x * s
        tu = tu * s + x * ts
    u += shift
    ty = _passed(tu + tshift, u, gain, clamp, ACT, HAS_CLAMP) * activations.first(u, ACT)
    tl.store(ty_ptr + offsets, ty.to(ty_ptr.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    dy_ptr, x_ptr, s_ptr, n_ptr, b_ptr, dx_ptr, channel_ptr, position_ptr,
    x_n, x_c, x_p, C, P, noise_n, gain, clamp,
    ACT: tl.constexpr, HAS_CLAMP: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_NOISE: tl.constexpr,
    HAS_BIAS: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Compute dx, and the sums of the other gradients, from dy and x."""
    sample, c, p, offsets, mask = _tile(x_n, x_c, x_p, C, P, BC, BP)
    s, shift = _operands(
        s_ptr, n_ptr, b_ptr, sample, c, p, C, P, noise_n, HAS_SCALE, HAS_NOISE, HAS_BIAS
    )
    dy = tl.load(dy_ptr + offsets, mask=mask, other=0).to(tl.float32)
    x = tl.load(x_ptr + offsets, mask=mask, other=0).to(tl.float32)
    u = x * s + shift if HAS_SCALE else x + shift
    e = _passed(dy, u, gain, clamp, ACT, HAS_CLAMP) * activations.first(u, ACT)
    dx = e * s if HAS_SCALE else e
    tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    _store_sums(
        e * x, e, channel_ptr, position_ptr, sample, c, p, C, P,
        HAS_SCALE, HAS_NOISE, HAS_BIAS, BC, BP,
    )  # fmt: skip


@triton.jit
def second_kernel(
    v_ptr, dy_ptr, x_ptr, s_ptr, n_ptr, b_ptr, vs_ptr, vn_ptr, vb_ptr,
    ddy_ptr, dx_ptr, channel_ptr, position_ptr,
    x_n, x_c, x_p, C, P, noise_n, gain, clamp,
    ACT: tl.constexpr, HAS_CLAMP: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_NOISE: tl.constexpr,
    HAS_BIAS: tl.constexpr, CURVED: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Compute d_dy, d_x and the sums from v, dy, x, and the cotangents of the sums."""
    sample, c, p, offsets, mask = _tile(x_n, x_c, x_p, C, P, BC, BP)
    s, shift = _operands(
        s_ptr, n_ptr, b_ptr, sample, c, p, C, P, noise_n, HAS_SCALE, HAS_NOISE, HAS_BIAS
    )
    vs, vshift = _operands(
        vs_ptr, vn_ptr, vb_ptr, sample, c, p, C, P, noise_n, HAS_SCALE, HAS_NOISE, HAS_BIAS
    )
    v = tl.load(v_ptr + offsets, mask=mask, other=0).to(tl.float32)
    dy = tl.load(dy_ptr + offsets, mask=mask, other=0).to(tl.float32)
    x = tl.load(x_ptr + offsets, mask=mask, other=0).to(tl.float32)
    u = x * s + shift if HAS_SCALE else x + shift
    tu = v * s + x * vs + vshift if HAS_SCALE else v + vshift
    slope = activations.first(u, ACT)
    passed = _passed(dy, u, gain, clamp, ACT, HAS_CLAMP)
    ddy = _passed(tu, u, gain, clamp, ACT, HAS_CLAMP) * slope
    tl.store(ddy_ptr + offsets, ddy.to(ddy_ptr.dtype.element_ty), mask=mask)
    k = passed * tu * activations.second(u, ACT) if CURVED else tl.zeros(u.shape, tl.float32)
    e = passed * slope
    dx = k * s + e * vs if HAS_SCALE else k
    tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    _store_sums(
        k * x + e * v, k, channel_ptr, position_ptr, sample, c, p, C, P,
        HAS_SCALE, HAS_NOISE, HAS_BIAS, BC, BP,
    )  # fmt: skip
