"""attention_jvp in plain PyTorch, in blocks of queries: memory linear in both lengths.

With the factor a, the softmax P of a block's logits S = a QKᵀ, and J(U) = P∘(U − rowsum(P∘U)),
softmax's symmetric Jacobian applied to U:

    Ṡ = a(Q̇Kᵀ + QK̇ᵀ)     O = PV      Ȯ = J(Ṡ)V + PV̇

and for cotangents G of O and H of Ȯ, with E = HVᵀ:

    dṠ = J(E)            dS = J(GVᵀ + HV̇ᵀ + E∘(Ṡ − μ) − Ṡ rowsum(P∘E))    μ = rowsum(P∘Ṡ)
    dQ = a(dS K + dṠ K̇)  dK = a(dSᵀQ + dṠᵀQ̇)      dV = PᵀG + J(Ṡ)ᵀH
    dQ̇ = a dṠ K          dK̇ = a dṠᵀQ              dV̇ = PᵀH

A row of a block is whole, so the backward pass takes its softmax anew and keeps the inputs alone;
P and Ṗ too where there is but one block, whose size is bounded.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dgan_kernels.checks import SIXTEEN_BITS

BLOCK = 2**18
"""How many logits a block has, over all heads: its five or six matrices then fit in a CPU cache."""
FEWEST_ROWS = 32
"""Queries of a head in a block at the least: fewer, and the products become slow."""

Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
"""Query, key, value and their tangents, each [N, heads, length, d]."""


def forward(inputs: Inputs, scale: float, is_causal: bool) -> tuple[Tensor | None, ...]:
    """Return O and Ȯ, for 4-dimensional inputs, and what `backward` would compute again."""
    kept: tuple[Tensor | None, ...] = ()
    query, flat = inputs[0], _flat(inputs)
    output, moved = (torch.empty_like(flat[0], dtype=query.dtype) for _ in range(2))
    with torch.autocast(query.device.type, enabled=False):
        for rows, keys in (blocks := list(_blocks(flat, is_causal))):
            q, k, v, qt, kt, vt = _part(flat, rows, keys)
            p, pt = _weights(q, k, qt, kt, scale, rows, is_causal)
            kept = (p, pt) if len(blocks) == 1 else ()
            output[:, rows] = p @ v
            moved[:, rows] = _sum(_times(pt, v), _times(p, vt), like=q)
    return output.view(query.shape), moved.view(query.shape), *kept


def backward(
    grad: Tensor,
    grad_moved: Tensor,
    inputs: Inputs,
    kept: tuple[Tensor | None, ...],
    scale: float,
    is_causal: bool,
) -> list[Tensor | None]:
    """Return dQ, dK, dV, dQ̇, dK̇, dV̇ for the cotangents ``grad`` of O and ``grad_moved`` of Ȯ.

    ``kept`` is what `forward` returned beside them.
    """
    flat = _flat(inputs)
    grads = [None if x is None else torch.zeros_like(x) for x in flat]
    cotangents = [x.reshape(flat[0].shape) for x in (grad, grad_moved)]
    with torch.autocast(grad.device.type, enabled=False):
        for rows, keys in _blocks(flat, is_causal):
            g, h = (_wide(x[:, rows]) for x in cotangents)
            block, to_block = (_part(x, rows, keys) for x in (flat, grads))
            q, k, _, qt, kt, _ = block
            weights = kept or _weights(q, k, qt, kt, scale, rows, is_causal)
            _block_backward(g, h, block, to_block, weights, scale)
    pairs = zip(grads, inputs)
    return [None if d is None or x is None else d.to(x.dtype).view(x.shape) for d, x in pairs]


def _block_backward(
    g: Tensor,
    h: Tensor,
    block: list,
    to_block: list,
    weights: Sequence[Tensor | None],
    scale: float,
) -> None:
    """Add what these rows send back to ``to_block``: views of dQ, dK, dV, dQ̇, dK̇, dV̇."""
    q, k, v, qt, kt, vt = block
    dq, dk, dv, dqt, dkt, dvt = to_block
    p, pt = weights
    assert p is not None
    dv.baddbmm_(p.mT, g)
    ds = g @ v.mT  # first GVᵀ + HV̇ᵀ, the cotangent of P
    if vt is not None:
        dvt.baddbmm_(p.mT, h)
        ds.baddbmm_(h, vt.mT)
    ds = _centred(p, ds)
    if pt is not None:
        dv.baddbmm_(pt.mT, h)
        e = h @ v.mT
        dst = _centred(p, e).mul_(scale)
        # J(E∘(Ṡ − μ) − Ṡε) = Ṗ∘(E − ε) − P rowsum(Ṗ∘(E − ε)), with ε = rowsum(P∘E)
        e.sub_((p * e).sum(-1, keepdim=True)).mul_(pt)
        ds.add_(e).addcmul_(p, e.sum(-1, keepdim=True), value=-1)
        if qt is not None:
            dqt.baddbmm_(dst, k)
            dk.baddbmm_(dst.mT, qt)
        if kt is not None:
            dkt.baddbmm_(dst.mT, q)
            dq.baddbmm_(dst, kt)
    dq.baddbmm_(ds.mul_(scale), k)
    dk.baddbmm_(ds.mT, q)


def _blocks(flat: list, is_causal: bool) -> Iterator[tuple[slice, slice]]:
    """Yield the rows of each block, and the keys that they see."""
    heads, length, _ = flat[0].shape
    keys = flat[1].shape[1]
    step = max(FEWEST_ROWS, BLOCK // max(1, heads * keys))
    for start in range(0, length, step):
        end = min(start + step, length)
        yield slice(start, end), slice(0, min(end, keys) if is_causal else keys)


def _part(flat: list, rows: slice, keys: slice) -> list:
    spans = (rows, keys, keys, rows, keys, keys)
    return [None if x is None else x[:, span] for x, span in zip(flat, spans)]


def _weights(
    q: Tensor,
    k: Tensor,
    qt: Tensor | None,
    kt: Tensor | None,
    scale: float,
    rows: slice,
    is_causal: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return P and Ṗ = J(Ṡ), which is None where neither query nor key has a tangent."""
    logits = (q @ k.mT).mul_(scale)
    if is_causal:
        row = torch.arange(rows.start, rows.stop, device=q.device)[:, None]
        logits.masked_fill_(torch.arange(k.shape[1], device=q.device) > row, -torch.inf)
    p = logits.softmax(-1)
    if qt is None and kt is None:
        return p, None
    moved = _sum(_times(qt, k.mT), None if kt is None else q @ kt.mT, like=p)
    return p, _centred(p, moved.mul_(scale))


def _centred(p: Tensor, u: Tensor) -> Tensor:
    """J(u)."""
    return torch._softmax_backward_data(u, p, -1, p.dtype)


def _times(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    return None if left is None or right is None else left @ right


def _sum(left: Tensor | None, right: Tensor | None, like: Tensor) -> Tensor:
    """The sum of those that are there."""
    if left is None or right is None:
        there = right if left is None else left
        return torch.zeros_like(like) if there is None else there
    return left.add_(right)


def _flat(inputs: Inputs) -> list:
    """[N, heads, length, d] as [N·heads, length, d]."""
    return [None if x is None else _wide(x).reshape(-1, *x.shape[2:]) for x in inputs]


def _wide(x: Tensor) -> Tensor:
    """In at least float32: sums over keys would lose digits."""
    return x.float() if x.dtype in SIXTEEN_BITS else x
