"""Every route by which PyTorch differentiates, through the upfirdn2d kernel, against plain PyTorch.

Not collected by name: `test_interpreted.py` runs it with TRITON_INTERPRET=1.
"""

import pytest
import torch
import torch.autograd.forward_ad as fwd
from routes import ROUTES, assert_same_gradients
from torch import nn
from torch.func import grad, jvp, vmap
from upfirdn2d_oracle import CASES, SMOOTH, SQUARE, draw

from dgan_kernels import downsample2d, upfirdn2d, upsample2d

# A small float32 network stands behind each number: sums of 18 terms, twice differentiated.
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


class Discriminator(nn.Module):
    """Both launches, linear and fused, with curvature that crosses from one to the other."""

    def __init__(self, backend):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 2, 3, 1, 1, bias=False)
        self.bias = nn.Parameter(torch.randn(2))
        self.head = nn.Linear(2, 1)
        self.backend = backend

    def forward(self, x):
        x = self.conv(upsample2d(x, SQUARE, backend=self.backend)).square()
        options = {"bias": self.bias, "act": "silu", "act_gain": 1.5, "clamp": 4.0}
        x = downsample2d(x, SMOOTH, backend=self.backend, **options)
        return self.head(x.mean((2, 3)))


@pytest.fixture
def x():
    return draw(2, 1, 3, 4, seed=1)


@pytest.mark.parametrize("route", ROUTES)
def test_penalty_by(route, x):
    want, got = Discriminator("reference"), Discriminator("triton")
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


def test_forward_over_reverse(x):
    products = []
    for backend in ("reference", "triton"):
        D = Discriminator(backend)
        products.append(jvp(grad(lambda x, D=D: D(x).square().sum()), (x,), (torch.sin(x),))[1])
    torch.testing.assert_close(products[1], products[0], **CLOSE)


def test_linear_has_every_order():
    results = []
    for backend in ("reference", "triton"):
        x = draw(1, 1, 3, 2).requires_grad_()
        g = upfirdn2d(x, SMOOTH, padding=2, down=2, backend=backend).pow(4).sum()
        for _ in range(3):
            (g,) = torch.autograd.grad(g.sum(), x, create_graph=True)
        results.append(g)
    torch.testing.assert_close(results[1], results[0])


def test_a_third_derivative_through_a_curve_says_that_it_is_not_there():
    x = draw(1, 1, 2, 2).requires_grad_()
    g = upfirdn2d(x, SMOOTH, padding=2, act="silu", backend="triton")
    for _ in range(2):
        (g,) = torch.autograd.grad(g.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"derivative 2 .* backend='reference'"):
        g.sum().backward()


@pytest.mark.parametrize("inputs", ["x", "bias", "both"])
def test_tangents_of_either_argument(inputs):
    x, bias, tx, tb = draw(1, 2, 3, 2), draw(2), draw(1, 2, 3, 2, seed=1), draw(2, seed=1)
    for no_grad in (False, True):
        tangents = []
        for backend in ("reference", "triton"):
            with fwd.dual_level(), torch.set_grad_enabled(not no_grad):
                a = x if inputs == "bias" else fwd.make_dual(x, tx)
                b = bias if inputs == "x" else fwd.make_dual(bias, tb)
                y = upfirdn2d(a, SMOOTH, up=2, padding=2, bias=b, act="gelu", backend=backend)
                tangents.append(fwd.unpack_dual(y)[1])
        torch.testing.assert_close(tangents[1], tangents[0])


def test_compiled_forward_mode_keeps_its_tangent():
    def tangent(x, t, backend):
        with fwd.dual_level():
            y = upfirdn2d(fwd.make_dual(x, t), SMOOTH, padding=2, act="silu", backend=backend)
            return fwd.unpack_dual(y)[1]

    torch._dynamo.reset()
    x, t = draw(1, 1, 3, 2), draw(1, 1, 3, 2, seed=1)
    got = torch.compile(tangent, backend="aot_eager")(x, t, "triton")
    torch.testing.assert_close(got, tangent(x, t, "reference"))


@pytest.mark.parametrize("dim", [0, 3])
def test_vmap(dim):
    x, bias = draw(2, 1, 2, 3, 2).movedim(0, dim), draw(2, 2)
    for options in ({}, {"act": "silu"}):

        def layer(backend, options=options):
            options = {"padding": 1, "backend": backend, **options}
            return lambda x, bias: upfirdn2d(x, SQUARE, bias=bias, **options)

        want, got = (vmap(layer(b), (dim, 0))(x, bias) for b in ("reference", "triton"))
        torch.testing.assert_close(got, want)
    filters, image = torch.stack([SMOOTH, SMOOTH.flip(0)]), draw(1, 1, 4, 4)
    with pytest.raises(NotImplementedError, match="vmap over filter"):
        vmap(lambda f: upfirdn2d(image, f, backend="triton"))(filters)


def test_a_filter_with_a_tangent_is_refused():
    with fwd.dual_level(), pytest.raises(NotImplementedError, match="filter has a tangent"):
        upfirdn2d(draw(1, 1, 4, 4), fwd.make_dual(SMOOTH, SMOOTH), backend="triton")


def test_opcheck():
    from dgan_kernels.triton_upfirdn2d import FUSED, UPFIRDN2D, pack

    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    x, bias = draw(1, 2, 3, 2).requires_grad_(), draw(2).requires_grad_()
    for name in ("up", "square down"):
        filter, options = CASES[name]
        up, down = [options.get("up", 1)] * 2, [options.get("down", 1)] * 2
        constants = (up, down, [2, 1, 2, 1], False, 1.5)
        for image in (x, x.to(memory_format=torch.channels_last)):
            torch.library.opcheck(UPFIRDN2D.op, (image, pack(filter), *constants), test_utils=tests)
            args = (image, pack(filter), bias.view(1, 2, 1, 1), *constants, "silu", 1.0, 2.0)
            torch.library.opcheck(FUSED.op, args, test_utils=tests)
