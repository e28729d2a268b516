"""Every route by which PyTorch differentiates, through the Triton kernels, against plain PyTorch.

Not collected by name: `test_interpreted.py` runs it with TRITON_INTERPRET=1.
"""

import pytest
import torch
import torch.autograd.forward_ad as fwd
from routes import ROUTES, assert_same_gradients
from torch import nn
from torch.func import grad, jacrev, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from dgan_kernels import bias_act
from dgan_kernels.checks import SMALLEST, runs_triton

# A whole float32 network stands behind each number: conv sums of 72 terms, twice differentiated.
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


class Discriminator(nn.Module):
    """Two fused layers, so that curvature crosses from one to the other."""

    def __init__(self, backend, act="silu"):
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(c, 8, 3, 2, 1, bias=False) for c in (3, 8))
        self.biases = nn.ParameterList(torch.randn(8) for _ in range(2))
        self.head = nn.Linear(8, 1)
        self.options = {"act": act, "gain": 1.5, "clamp": 4.0, "backend": backend}

    def forward(self, x):
        for conv, bias in zip(self.convs, self.biases):
            x = bias_act(conv(x), bias, **self.options)
        return self.head(x.mean((2, 3)))


@pytest.fixture
def x():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("act", ["leaky_relu", "silu"])
def test_penalty_by(route, act, x):
    want, got = Discriminator("reference", act), Discriminator("triton", act)
    assert_same_gradients(route, want, got, x, CLOSE)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_first_order(x, dynamic):
    torch._dynamo.reset()
    want, got = Discriminator("reference"), Discriminator("triton")
    want(x).sum().backward()
    layer = torch.compile(got, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    layer(x).sum().backward()
    for p, q in zip(want.parameters(), got.parameters()):
        torch.testing.assert_close(q.grad, p.grad, **CLOSE)


@pytest.mark.parametrize("act", ["leaky_relu", "gelu"])
def test_forward_over_reverse(act, x):
    # A Hessian-vector product, which a spectral estimate or a natural-gradient step would take.
    products = []
    for backend in ("reference", "triton"):
        D = Discriminator(backend, act)
        products.append(jvp(grad(lambda x, D=D: D(x).square().sum()), (x,), (torch.sin(x),))[1])
    torch.testing.assert_close(products[1], products[0], **CLOSE)


def test_per_sample_jacobian(x):
    jacobians = [jacrev(Discriminator(b))(x[:1]) for b in ("reference", "triton")]
    torch.testing.assert_close(jacobians[1], jacobians[0], **CLOSE)


@pytest.mark.parametrize("in_dims", [(0, None), (2, None), (None, 1), (1, 0)])
def test_vmap_over_any_dimension(in_dims):
    x, bias = torch.randn(3, 3, 3, 3), torch.randn(3, 3)
    x, bias = x if in_dims[0] is not None else x[0], bias if in_dims[1] is not None else bias[0]
    layer = lambda b: lambda x, bias: bias_act(x, bias, act="silu", backend=b)  # noqa: E731
    want, got = (vmap(layer(b), in_dims)(x, bias) for b in ("reference", "triton"))
    torch.testing.assert_close(got, want)
    sums = [
        vmap(grad(lambda x, bias, b=b: layer(b)(x, bias).pow(2).sum(), (0, 1)), in_dims)(x, bias)
        for b in ("reference", "triton")
    ]
    torch.testing.assert_close(sums[1], sums[0])


@pytest.mark.parametrize("inputs", ["x", "bias", "both"])
def test_tangents_of_either_argument(inputs):
    x, bias = torch.randn(3, 5, 4), torch.randn(5)
    tx, tb = torch.randn_like(x), torch.randn_like(bias)
    for no_grad in (False, True):
        tangents = []
        for backend in ("reference", "triton"):
            with fwd.dual_level(), torch.set_grad_enabled(not no_grad):
                a = x if inputs == "bias" else fwd.make_dual(x, tx)
                b = bias if inputs == "x" else fwd.make_dual(bias, tb)
                tangents.append(fwd.unpack_dual(bias_act(a, b, act="gelu", backend=backend))[1])
        torch.testing.assert_close(tangents[1], tangents[0])


def test_compiled_forward_mode_keeps_its_tangent():
    def tangent(x, t, backend):
        with fwd.dual_level():
            return fwd.unpack_dual(bias_act(fwd.make_dual(x, t), act="silu", backend=backend))[1]

    torch._dynamo.reset()
    x, t = torch.randn(4, 3), torch.randn(4, 3)
    got = torch.compile(tangent, backend="aot_eager")(x, t, "triton")
    torch.testing.assert_close(got, tangent(x, t, "reference"))


def test_a_third_derivative_says_that_it_is_not_there():
    x = torch.randn(4, 3, requires_grad=True)
    y = bias_act(x, act="silu", backend="triton")
    (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"derivative 2 .* backend='reference'"):
        h.sum().backward()
    cubed = lambda x: bias_act(x, act="silu").sum()  # noqa: E731
    for _ in range(3):
        cubed = (lambda f: grad(lambda x: f(x).sum()))(cubed)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        cubed(x.detach())


def test_piecewise_linear_activations_have_every_order():
    x = torch.randn(4, 3, requires_grad=True)
    results = []
    for backend in ("reference", "triton"):
        g = bias_act(x, act="leaky_relu", backend=backend).pow(4).sum()
        for _ in range(3):
            (g,) = torch.autograd.grad(g.sum(), x, create_graph=True)
        results.append(g)
    torch.testing.assert_close(results[1], results[0])


class CountSums(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ == "sum"
        return func(*args, **(kwargs or {}))


def test_the_bias_is_summed_only_when_asked_for():
    x, bias = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(3, requires_grad=True)
    y = bias_act(x, bias, act="silu", backend="triton")
    dy = torch.ones_like(y)
    with CountSums() as alone:
        torch.autograd.grad(y, x, dy, create_graph=True)
    with CountSums() as both:
        torch.autograd.grad(y, (x, bias), dy)
    assert (alone.count, both.count) == (0, 1)


def test_below_a_measured_size_none_chooses_pytorch(monkeypatch):
    x = torch.randn(3, 11)
    assert runs_triton(x, None, "bias_act")
    monkeypatch.setitem(SMALLEST, "bias_act", 34)
    assert not runs_triton(x, None, "bias_act")
    assert runs_triton(torch.randn(2, 17), None, "bias_act")
    assert runs_triton(x, None, "norm_act")  # another operator
    assert runs_triton(x, "triton", "bias_act")  # who asks for it gets it


def test_opcheck():
    from dgan_kernels.triton_bias_act import BACKWARD, FORWARD, SECOND

    x, dy, v = (torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(3))
    bias = torch.randn(3, requires_grad=True)
    constants = ("silu", 1.5, None, 1)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(FORWARD.op, (x, bias.view(1, 3, 1, 1), *constants), test_utils=tests)
    torch.library.opcheck(BACKWARD.op, (dy, x, bias.view(1, 3, 1, 1), *constants), test_utils=tests)
    torch.library.opcheck(SECOND.op, (v, dy, x, None, *constants), test_utils=tests)
