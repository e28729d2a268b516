"""Every route by which PyTorch differentiates, through norm_act's kernels, against plain PyTorch.

Not collected by name: `test_interpreted.py` runs it with TRITON_INTERPRET=1.
"""

import pytest
import torch
import torch.autograd.forward_ad as fwd
from routes import ROUTES, assert_same_gradients, vmapped_samples
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from dgan_kernels import norm_act

# A whole float32 network stands behind each number: conv sums of 72 terms, twice differentiated.
CLOSE = {"rtol": 5e-4, "atol": 5e-5}

# Groups on the chip, with rows and with columns for channels; and two sweeps, which keep
# statistics.
NORMS = {
    "group": {"norm": "group", "groups": 2, "act": "silu"},
    "pixel": {"norm": "pixel", "act": "leaky_relu"},
    "batch": {"norm": "batch", "act": "silu"},
}


class Discriminator(nn.Module):
    """Two fused layers, so that curvature crosses from one to the other."""

    def __init__(self, backend, norm):
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(c, 4, 3, 2, 1, bias=False) for c in (3, 4))
        self.weights = nn.ParameterList(1 + 0.5 * torch.randn(4) for _ in range(2))
        self.biases = nn.ParameterList(torch.randn(4) for _ in range(2))
        self.head = nn.Linear(4, 1)
        self.options = NORMS[norm] | {"backend": backend, "eps": 0.1}

    def forward(self, x):
        for conv, weight, bias in zip(self.convs, self.weights, self.biases):
            x = norm_act(conv(x), weight, bias, **self.options)
        return self.head(x.square().mean((2, 3)))


@pytest.fixture
def x():
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("norm", NORMS)
def test_penalty_by(route, norm, x):
    if route is vmapped_samples and norm == "batch":
        return  # a sample alone has other statistics
    want, got = Discriminator("reference", norm), Discriminator("triton", norm)
    assert_same_gradients(route, want, got, x, CLOSE)


@pytest.mark.parametrize("norm", NORMS)
def test_compiled_first_order(norm, x):
    torch._dynamo.reset()
    want, got = Discriminator("reference", norm), Discriminator("triton", norm)
    want(x).sum().backward()
    torch.compile(got, fullgraph=True, backend="aot_eager")(x).sum().backward()
    for p, q in zip(want.parameters(), got.parameters()):
        torch.testing.assert_close(q.grad, p.grad, **CLOSE)


@pytest.mark.parametrize("norm", NORMS)
def test_forward_over_reverse(norm, x):
    # A Hessian-vector product, in x and in the parameters, which a spectral estimate would take.
    products = []
    for backend in ("reference", "triton"):
        D = Discriminator(backend, norm)
        params = {k: p.detach() for k, p in D.named_parameters()}
        loss = lambda p, x, D=D: functional_call(D, p, (x,)).square().sum()  # noqa: E731
        tangents = {k: torch.cos(p) for k, p in params.items()}, torch.sin(x)
        products.append(jvp(grad(loss, (0, 1)), (params, x), tangents)[1])
    torch.testing.assert_close(products[1], products[0], **CLOSE)


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


@pytest.mark.parametrize("norm", NORMS)
def test_a_third_derivative_says_that_it_is_not_there(norm):
    x = torch.randn(3, 4, 2, requires_grad=True)
    layer = lambda x: norm_act(x, backend="triton", **NORMS[norm])  # noqa: E731
    (g,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"derivative 2 .* backend='reference'"):
        h.sum().backward()
    twice = lambda x: jvp(layer, (x,), (torch.ones_like(x),))[1]  # noqa: E731
    with pytest.raises(NotImplementedError, match="no forward-mode rule"):
        jvp(twice, (x.detach(),), (torch.ones_like(x),))


@pytest.mark.parametrize("over", ["group", "channels", "batch"])
@pytest.mark.parametrize("affine", [False, True])
def test_opcheck(over, affine):
    from dgan_kernels.triton_norm_act import BACKWARD, FORWARD, JVP, SECOND, STATISTICS

    x, dy, v = (torch.randn(2, 1, 3, 4, requires_grad=True) for _ in range(3))
    weight, bias = (torch.randn(2, 1, 3, 1, requires_grad=True) for _ in range(2))
    shift = torch.randn(2, 2, 1, 3, requires_grad=True)
    if not affine:
        weight = bias = shift = None
    constants = (over, True, "silu", 1e-5, None)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    stats = None
    if over == "batch":
        torch.library.opcheck(STATISTICS.op, (x, *constants), test_utils=tests)
        stats = STATISTICS(x.detach(), *constants)
    rest = (x, stats, weight, bias, *constants)
    calls = {FORWARD: (), JVP: (v, shift), BACKWARD: (dy,), SECOND: (v, shift, dy)}
    for launch, args in calls.items():
        torch.library.opcheck(launch.op, (*args, *rest), test_utils=tests)
