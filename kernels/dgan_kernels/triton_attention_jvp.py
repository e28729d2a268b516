"""attention_jvp in Triton: forward, and backward through the value and the tangent.

In the notation of `reference_attention_jvp`, with R = Ṡ − μ, ε = rowsum(H∘O) and
δ = rowsum(G∘O + H∘Ȯ), both read off the outputs:

    Ȯ = (P∘R)V + PV̇       dṠ = P∘(E − ε)       dS = P∘(GVᵀ + HV̇ᵀ + (E − ε)∘R − δ)

One kernel goes over blocks of queries for O and Ȯ, one for ε, δ, dQ and dQ̇, and one over blocks
of keys for dK, dV, dK̇ and dV̇; each result is written once, by one program. A program has BM
queries by BN keys of the matrices, all in registers, and D channels padded to BD. Products take
operands of the inputs' dtype and add up in float32. Strides count elements; channels are adjacent.
"""
# ruff: noqa: ANN001, ANN201, ANN202 - Triton gives annotations a meaning of its own
# pyright: reportGeneralTypeIssues=false
# (pyright takes a call from one kernel to another for an error)

import triton
import triton.language as tl

from dgan_kernels.checks import INTERPRETED

_WIDEN = tl.constexpr(INTERPRETED)  # the interpreter multiplies bfloat16 as if it were integers


@triton.jit
def _tile(
    ptr, batch, start, rows, H, stride_n, stride_h, stride_l,
    D: tl.constexpr, B: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Return pointers to [B, BD] elements from row ``start`` of one head, and their mask."""
    # Only the tile's corner needs 64 bits.
    corner = ptr + (batch // H).to(tl.int64) * stride_n + (batch % H).to(tl.int64) * stride_h
    corner += tl.cast(start, tl.int64) * stride_l
    row, channel = tl.arange(0, B), tl.arange(0, BD)
    mask = (row < rows - start)[:, None] & (channel < D)[None, :]
    return corner + row[:, None] * stride_l + channel[None, :], mask


@triton.jit
def _load(
    ptr, batch, start, rows, H, stride_n, stride_h, stride_l,
    D: tl.constexpr, B: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    at, mask = _tile(ptr, batch, start, rows, H, stride_n, stride_h, stride_l, D, B, BD)
    return tl.load(at, mask=mask, other=0.0)


@triton.jit
def _store(
    ptr, x, batch, start, rows, H, stride_n, stride_h, stride_l,
    D: tl.constexpr, B: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    at, mask = _tile(ptr, batch, start, rows, H, stride_n, stride_h, stride_l, D, B, BD)
    tl.store(at, x.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _dot(a, b, acc, DOT: tl.constexpr):
    """Return acc + ab."""
    a = a.to(b.dtype)
    if _WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=DOT)


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, qt_ptr, kt_ptr, vt_ptr, o_ptr, ot_ptr, lse_ptr, mu_ptr,
    L, S, H, scale, qn, qh, ql, kn, kh, kl, vn, vh, vl, on, oh, ol,
    HAS_QT: tl.constexpr, HAS_KT: tl.constexpr, HAS_VT: tl.constexpr, CAUSAL: tl.constexpr,
    DOT: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Compute O, Ȯ, lse (of logits in base 2) and μ of BM queries."""
    blocks = tl.cdiv(L, BM)
    batch, start_m = tl.program_id(0) // blocks, (tl.program_id(0) % blocks) * BM
    rows = start_m + tl.arange(0, BM)
    q = _load(q_ptr, batch, start_m, L, H, qn, qh, ql, D, BM, BD)
    if HAS_QT:
        qt = _load(qt_ptr, batch, start_m, L, H, qn, qh, ql, D, BM, BD)
    o = tl.zeros((BM, BD), tl.float32)
    ot = tl.zeros((BM, BD), tl.float32)
    top = tl.full((BM,), -float("inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    mu = tl.zeros((BM,), tl.float32)
    end = tl.minimum(S, start_m + BM) if CAUSAL else S
    for start_n in range(0, end, BN):
        columns = start_n + tl.arange(0, BN)
        k = tl.trans(_load(k_ptr, batch, start_n, S, H, kn, kh, kl, D, BN, BD))
        s = _dot(q, k, tl.zeros((BM, BN), tl.float32), DOT) * (scale * 1.4426950408889634)
        seen = (columns < S)[None, :]
        if CAUSAL:
            seen = seen & (columns[None, :] <= rows[:, None])
        s = tl.where(seen, s, -float("inf"))
        st = tl.zeros((BM, BN), tl.float32)
        if HAS_QT:
            st = _dot(qt, k, st, DOT)
        if HAS_KT:
            kt = tl.trans(_load(kt_ptr, batch, start_n, S, H, kn, kh, kl, D, BN, BD))
            st = _dot(q, kt, st, DOT)
        st *= scale
        # Key 0 is seen by every query, so that the maximum is finite from the first block on.
        new_top = tl.maximum(top, tl.max(s, 1))
        shrink = tl.exp2(top - new_top)
        p = tl.exp2(s - new_top[:, None])
        top = new_top
        total = total * shrink + tl.sum(p, 1)
        v = _load(v_ptr, batch, start_n, S, H, vn, vh, vl, D, BN, BD)
        if HAS_QT or HAS_KT:
            # Ṡ is centred by the mean so far, as in Welford's variance: without that, 16-bit
            # operands would lose the digits in which Ṡ differs from a large mean.
            step = tl.sum(p * (st - mu[:, None]), 1) / total
            mu += step
            ot = (ot - step[:, None] * o) * shrink[:, None]
            ot = _dot(p * (st - mu[:, None]), v, ot, DOT)
        else:
            ot *= shrink[:, None]
        if HAS_VT:
            vt = _load(vt_ptr, batch, start_n, S, H, vn, vh, vl, D, BN, BD)
            ot = _dot(p, vt, ot, DOT)
        o = _dot(p, v, o * shrink[:, None], DOT)
    scaled = 1 / total
    _store(o_ptr, o * scaled[:, None], batch, start_m, L, H, on, oh, ol, D, BM, BD)
    _store(ot_ptr, ot * scaled[:, None], batch, start_m, L, H, on, oh, ol, D, BM, BD)
    at = batch.to(tl.int64) * L + rows
    tl.store(lse_ptr + at, top + tl.log2(total), mask=rows < L)
    tl.store(mu_ptr + at, mu, mask=rows < L)


@triton.jit
def query_kernel(
    g_ptr, h_ptr, q_ptr, k_ptr, v_ptr, qt_ptr, kt_ptr, vt_ptr, o_ptr, ot_ptr, lse_ptr, mu_ptr,
    eps_ptr, delta_ptr, dq_ptr, dqt_ptr,
    L, S, H, scale, qn, qh, ql, kn, kh, kl, vn, vh, vl, on, oh, ol,
    HAS_QT: tl.constexpr, HAS_KT: tl.constexpr, HAS_VT: tl.constexpr, CAUSAL: tl.constexpr,
    DOT: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Compute ε, δ, dQ and dQ̇ of BM queries; dQ and dQ̇ have O's strides."""
    blocks = tl.cdiv(L, BM)
    batch, start_m = tl.program_id(0) // blocks, (tl.program_id(0) % blocks) * BM
    rows = start_m + tl.arange(0, BM)
    at = batch.to(tl.int64) * L + rows
    g = _load(g_ptr, batch, start_m, L, H, on, oh, ol, D, BM, BD)
    h = _load(h_ptr, batch, start_m, L, H, on, oh, ol, D, BM, BD)
    o = _load(o_ptr, batch, start_m, L, H, on, oh, ol, D, BM, BD).to(tl.float32)
    ot = _load(ot_ptr, batch, start_m, L, H, on, oh, ol, D, BM, BD).to(tl.float32)
    eps = tl.sum(h.to(tl.float32) * o, 1)
    delta = tl.sum(g.to(tl.float32) * o + h.to(tl.float32) * ot, 1)
    tl.store(eps_ptr + at, eps, mask=rows < L)
    tl.store(delta_ptr + at, delta, mask=rows < L)
    # An lse of infinity makes P zero in rows that do not exist.
    lse = tl.load(lse_ptr + at, mask=rows < L, other=float("inf"))
    mu = tl.load(mu_ptr + at, mask=rows < L, other=0.0)
    q = _load(q_ptr, batch, start_m, L, H, qn, qh, ql, D, BM, BD)
    if HAS_QT:
        qt = _load(qt_ptr, batch, start_m, L, H, qn, qh, ql, D, BM, BD)
    dq = tl.zeros((BM, BD), tl.float32)
    dqt = tl.zeros((BM, BD), tl.float32)
    end = tl.minimum(S, start_m + BM) if CAUSAL else S
    for start_n in range(0, end, BN):
        columns = start_n + tl.arange(0, BN)
        k = _load(k_ptr, batch, start_n, S, H, kn, kh, kl, D, BN, BD)
        v = tl.trans(_load(v_ptr, batch, start_n, S, H, vn, vh, vl, D, BN, BD))
        s = _dot(q, tl.trans(k), tl.zeros((BM, BN), tl.float32), DOT)
        p = tl.exp2(s * (scale * 1.4426950408889634) - lse[:, None])
        seen = (columns < S)[None, :]
        if CAUSAL:
            seen = seen & (columns[None, :] <= rows[:, None])
        p = tl.where(seen, p, 0.0)
        ds = _dot(g, v, tl.zeros((BM, BN), tl.float32), DOT) - delta[:, None]
        if HAS_VT:
            vt = tl.trans(_load(vt_ptr, batch, start_n, S, H, vn, vh, vl, D, BN, BD))
            ds = _dot(h, vt, ds, DOT)
        if HAS_QT or HAS_KT:
            st = tl.zeros((BM, BN), tl.float32)
            if HAS_QT:
                st = _dot(qt, tl.trans(k), st, DOT)
            if HAS_KT:
                kt = _load(kt_ptr, batch, start_n, S, H, kn, kh, kl, D, BN, BD)
                st = _dot(q, tl.trans(kt), st, DOT)
            dst = _dot(h, v, tl.zeros((BM, BN), tl.float32), DOT) - eps[:, None]
            ds += dst * (st * scale - mu[:, None])
            dst *= p
            if HAS_QT:
                dqt = _dot(dst, k, dqt, DOT)
            if HAS_KT:
                dq = _dot(dst, kt, dq, DOT)
        dq = _dot(p * ds, k, dq, DOT)
    _store(dq_ptr, dq * scale, batch, start_m, L, H, on, oh, ol, D, BM, BD)
    if HAS_QT:
        _store(dqt_ptr, dqt * scale, batch, start_m, L, H, on, oh, ol, D, BM, BD)


@triton.jit
def key_kernel(
    g_ptr, h_ptr, q_ptr, k_ptr, v_ptr, qt_ptr, kt_ptr, vt_ptr, lse_ptr, mu_ptr, eps_ptr, delta_ptr,
    dk_ptr, dv_ptr, dkt_ptr, dvt_ptr,
    L, S, H, scale, qn, qh, ql, kn, kh, kl, vn, vh, vl, on, oh, ol, dn, dh, dl,
    HAS_QT: tl.constexpr, HAS_KT: tl.constexpr, HAS_VT: tl.constexpr, CAUSAL: tl.constexpr,
    DOT: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    TO_KEY: tl.constexpr, TO_VALUE: tl.constexpr,
):  # fmt: skip
    """Compute dK and dK̇, or dV and dV̇, or all, of BN keys, all with strides dn, dh, dl.

    Wide heads take a launch for each half: four sums would not fit in a thread's registers. The
    matrices are transposed, [BN, BM]: so each is the left operand of the product it goes to.
    """
    blocks = tl.cdiv(S, BN)
    batch, start_n = tl.program_id(0) // blocks, (tl.program_id(0) % blocks) * BN
    columns = start_n + tl.arange(0, BN)
    k = _load(k_ptr, batch, start_n, S, H, kn, kh, kl, D, BN, BD)
    if HAS_KT:
        kt = _load(kt_ptr, batch, start_n, S, H, kn, kh, kl, D, BN, BD)
    if TO_KEY:
        v = _load(v_ptr, batch, start_n, S, H, vn, vh, vl, D, BN, BD)
        if HAS_VT:
            vt = _load(vt_ptr, batch, start_n, S, H, vn, vh, vl, D, BN, BD)
    dk = tl.zeros((BN, BD), tl.float32)
    dv = tl.zeros((BN, BD), tl.float32)
    dkt = tl.zeros((BN, BD), tl.float32)
    dvt = tl.zeros((BN, BD), tl.float32)
    first = (start_n // BM) * BM if CAUSAL else 0
    for start_m in range(first, L, BM):
        rows = start_m + tl.arange(0, BM)
        at = batch.to(tl.int64) * L + rows
        q = _load(q_ptr, batch, start_m, L, H, qn, qh, ql, D, BM, BD)
        g = _load(g_ptr, batch, start_m, L, H, on, oh, ol, D, BM, BD)
        h = _load(h_ptr, batch, start_m, L, H, on, oh, ol, D, BM, BD)
        # An lse of infinity makes P zero in rows that do not exist; keys that do not are not
        # written.
        lse = tl.load(lse_ptr + at, mask=rows < L, other=float("inf"))
        s = _dot(k, tl.trans(q), tl.zeros((BN, BM), tl.float32), DOT)
        p = tl.exp2(s * (scale * 1.4426950408889634) - lse[None, :])
        if CAUSAL:
            p = tl.where(columns[:, None] <= rows[None, :], p, 0.0)
        if TO_VALUE:
            dv = _dot(p, g, dv, DOT)
            if HAS_VT:
                dvt = _dot(p, h, dvt, DOT)
        if HAS_QT or HAS_KT:
            st = tl.zeros((BN, BM), tl.float32)
            if HAS_QT:
                qt = _load(qt_ptr, batch, start_m, L, H, qn, qh, ql, D, BM, BD)
                st = _dot(k, tl.trans(qt), st, DOT)
            if HAS_KT:
                st = _dot(kt, tl.trans(q), st, DOT)
            st = st * scale - tl.load(mu_ptr + at, mask=rows < L, other=0.0)[None, :]
            if TO_VALUE:
                dv = _dot(p * st, h, dv, DOT)
        if TO_KEY:
            delta = tl.load(delta_ptr + at, mask=rows < L, other=0.0)
            ds = _dot(v, tl.trans(g), tl.zeros((BN, BM), tl.float32), DOT) - delta[None, :]
            if HAS_VT:
                ds = _dot(vt, tl.trans(h), ds, DOT)
            if HAS_QT or HAS_KT:
                eps = tl.load(eps_ptr + at, mask=rows < L, other=0.0)
                dst = _dot(v, tl.trans(h), tl.zeros((BN, BM), tl.float32), DOT) - eps[None, :]
                ds += dst * st
                dst *= p
                if HAS_QT:
                    dk = _dot(dst, qt, dk, DOT)
                if HAS_KT:
                    dkt = _dot(dst, q, dkt, DOT)
            dk = _dot(p * ds, q, dk, DOT)
    if TO_KEY:
        _store(dk_ptr, dk * scale, batch, start_n, S, H, dn, dh, dl, D, BN, BD)
        if HAS_KT:
            _store(dkt_ptr, dkt * scale, batch, start_n, S, H, dn, dh, dl, D, BN, BD)
    if TO_VALUE:
        _store(dv_ptr, dv, batch, start_n, S, H, dn, dh, dl, D, BN, BD)
        if HAS_VT:
            _store(dvt_ptr, dvt, batch, start_n, S, H, dn, dh, dl, D, BN, BD)
