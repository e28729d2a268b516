"""norm_act's derivatives in ways that `interpreted_matrix.py` does not take.

Not collected by name: `test_interpreted.py` runs it with TRITON_INTERPRET=1.
"""

import pytest
import torch
import torch.autograd.forward_ad as fwd
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from dgan_kernels import norm_act

# Norms of float32, twice differentiated.
CLOSE = {"rtol": 5e-4, "atol": 5e-5}

# Groups on the chip, with rows and with columns for channels; and two sweeps, which keep
# statistics.
NORMS = {
    "group": {"norm": "group", "groups": 2, "act": "silu"},
    "pixel": {"norm": "pixel", "act": "leaky_relu"},
    "batch": {"norm": "batch", "act": "silu"},
}


@pytest.mark.parametrize("norm", NORMS)
def test_jacobians_and_hessian(norm):
    x, weight = torch.randn(2, 4, 3, 2), torch.randn(4)
    results = []
    for backend in ("reference", "triton"):
        layer = lambda x, w, b=backend: norm_act(x, w, backend=b, eps=0.1, **NORMS[norm])  # noqa: E731
        total = lambda w: layer(x, w).square().sum()  # noqa: B023, E731
        results.append(
            (jacrev(layer, 1)(x, weight), jacfwd(layer)(x, weight), hessian(total)(weight))
        )
    torch.testing.assert_close(results[1], results[0], **CLOSE)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_vmap_of_gradients_over_any_dimension(norm, per_sample):
    x = torch.randn(2, 4, 3, 2, 5)
    weight = torch.randn((5, 2, 4) if per_sample else (5, 4))
    for in_dims, args in (((None, 0), (x[..., 0], weight)), ((4, 0), (x, weight))):
        results = []
        for backend in ("reference", "triton"):
            layer = lambda x, w, b=backend: norm_act(x, w, w, backend=b, **NORMS[norm])  # noqa: E731
            loss = lambda x, w: layer(x, w).pow(2).sum()  # noqa: B023, E731
            results.append((vmap(layer, in_dims)(*args), vmap(grad(loss, (0, 1)), in_dims)(*args)))
        torch.testing.assert_close(results[1], results[0], **CLOSE)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("inputs", [(0,), (1,), (2,), (0, 1, 2)])
def test_tangents_of_any_argument(norm, inputs):
    primals = (torch.randn(3, 4, 2, 5), torch.randn(4), torch.randn(4))
    tangents = [torch.randn_like(t) for t in primals]
    for no_grad in (False, True):
        results = []
        for backend in ("reference", "triton"):
            with fwd.dual_level(), torch.set_grad_enabled(not no_grad):
                duals = [
                    fwd.make_dual(p, t) if i in inputs else p
                    for i, (p, t) in enumerate(zip(primals, tangents))
                ]
                y = norm_act(*duals, backend=backend, **NORMS[norm])
                results.append(fwd.unpack_dual(y).tangent)
        torch.testing.assert_close(results[1], results[0], **CLOSE)


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_of_a_tangent(norm):
    generator = torch.Generator().manual_seed(2)
    shapes = 2 * [(3, 4, 2, 5), (4,), (4,)]
    leaves = [torch.randn(s, generator=generator).requires_grad_() for s in shapes]
    results = []
    for backend in ("reference", "triton"):
        layer = lambda *t, b=backend: norm_act(*t, backend=b, **NORMS[norm])  # noqa: E731
        tangent = jvp(layer, tuple(leaves[:3]), tuple(leaves[3:]))[1]
        results.append(torch.autograd.grad(tangent.square().sum(), leaves))
    torch.testing.assert_close(results[1], results[0], **CLOSE)


def test_compiled_forward_mode_keeps_its_tangent():
    def tangent(x, t, backend):
        with fwd.dual_level():
            y = norm_act(fwd.make_dual(x, t), backend=backend, **NORMS["group"])
            return fwd.unpack_dual(y).tangent

    torch._dynamo.reset()
    x, t = torch.randn(4, 4), torch.randn(4, 4)
    got = torch.compile(tangent, backend="aot_eager")(x, t, "triton")
    torch.testing.assert_close(got, tangent(x, t, "reference"), **CLOSE)
