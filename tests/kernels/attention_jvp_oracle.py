"""What tests of attention_jvp share: inputs, the naive answer in float64, and tolerances."""

import math

import torch

from dgan_kernels import attention_jvp

# Per dtype, relative to the largest value of the answer. In 16 bits P, Ṡ and their cotangents are
# rounded on their way into a product, half a unit in the last place each (2⁻⁹ in bfloat16, 2⁻¹² in
# float16), and the saved outputs are too; a gradient has up to four such factors, and the results
# are rounded once more. In float32 sums of up to a hundred terms cost some eight units of 2⁻²³.
TOLERANCE = {torch.bfloat16: 2**-6, torch.float16: 2**-9, torch.float32: 2**-19}
NAMES = ("O", "Ȯ", "dQ", "dK", "dV", "dQ̇", "dK̇", "dV̇")
ALL = (True, True, True)


def inputs(length, keys, width, leading=(2, 3), tangents=ALL, dtype=torch.float64, device="cpu"):
    """Return six tensors, None for an absent tangent, and cotangents G and H."""
    generator = torch.Generator().manual_seed(length + keys + width)
    there = (True, True, True, *tangents)
    lengths = (length, keys, keys) * 2 + (length, length)
    shapes = [(*leading, n, width) for n in lengths]
    drawn = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    drawn = [t.to(dtype).to(device) for t in drawn]
    return [t if h else None for t, h in zip(drawn, there)], drawn[6:]


def naive(q, k, v, qt, kt, vt, scale=None, is_causal=False):
    """Attention, and its tangent as the derivative of its gradient: no forward mode, no rule."""
    logits = (1 / math.sqrt(q.shape[-1]) if scale is None else scale) * q @ k.mT
    if is_causal:
        unseen = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        logits = logits.masked_fill(unseen, -math.inf)
    output = logits.softmax(-1) @ v
    cotangent = torch.zeros_like(output, requires_grad=True)
    back = torch.autograd.grad(output, (q, k, v), cotangent, create_graph=True)
    along = sum((b * t).sum() for b, t in zip(back, (qt, kt, vt)) if t is not None)
    return output, torch.autograd.grad(along, cotangent, create_graph=True)[0]


def results(function, tensors, cotangents, **options):
    """Return both outputs and the gradients of all tensors that are there, by name."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    outputs = function(*leaves, **options)
    there = [t for t in leaves if t is not None]
    grads = torch.autograd.grad(outputs, there, cotangents, allow_unused=True)
    left = iter(zip(grads, there))
    filled = [None if t is None else next(left) for t in leaves]
    named = dict(zip(NAMES[2:], filled))
    zeros = {n: p[1].new_zeros(p[1].shape) if p[0] is None else p[0] for n, p in named.items() if p}
    return {"O": outputs[0].detach(), "Ȯ": outputs[1].detach()} | zeros


def expected(tensors, cotangents, **options):
    """Return the naive answer in float64."""
    wide = [None if t is None else t.double() for t in tensors]
    return results(naive, wide, [c.double() for c in cotangents], **options)


def errors(got, want):
    """Return each result's largest error, relative to the largest value of the answer."""
    assert got.keys() == want.keys()
    for name, answer in want.items():
        assert got[name].shape == answer.shape, name
    scale = {n: a.abs().max().item() or 1.0 for n, a in want.items()}
    return {n: (got[n].to(a) - a).abs().max().item() / scale[n] for n, a in want.items()}


def assert_close(tensors, cotangents, tolerance, backend, **options):
    """Compare all results of attention_jvp with the naive answer."""
    got = results(attention_jvp, tensors, cotangents, backend=backend, **options)
    assert {t.dtype for t in got.values()} == {tensors[0].dtype}
    found = errors(got, expected(tensors, cotangents, **options))
    assert max(found.values()) <= tolerance, {n: f"{e:.1e}" for n, e in found.items()}
