"""bias_act with scale and noise, by every route by which PyTorch differentiates.

Not collected by name: `test_interpreted.py` runs it with TRITON_INTERPRET=1.
"""

import pytest
import torch
import torch.autograd.forward_ad as fwd
from routes import ROUTES, assert_same_gradients
from torch import nn
from torch.func import grad, jvp, vjp, vmap

from dgan_kernels import bias_act, modulated_conv2d

# A whole float32 network stands behind each number: conv sums of 54 terms, twice differentiated.
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


@pytest.fixture
def x():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Modulated(nn.Module):
    """Two layers with scales and noise that depend on x, and on parameters, as in a generator."""

    def __init__(self, backend, act="silu"):
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(c, 6, 3, 2, 1, bias=False) for c in (3, 6))
        self.styles = nn.ModuleList(nn.Linear(3, 6) for _ in range(2))
        self.biases = nn.ParameterList(torch.randn(6) for _ in range(2))
        self.strengths = nn.ParameterList(torch.tensor(s) for s in (0.7, 0.4))
        self.register_buffer("fixed", torch.randn(1, 1, 4, 4))
        self.options = {"act": act, "gain": 1.5, "clamp": 4.0, "backend": backend}

    def forward(self, x):
        style = x.mean((2, 3))
        for i, noise in enumerate((x[:, :1, ::2, ::2], self.fixed)):
            scale, noise = 1 + self.styles[i](style), self.strengths[i] * noise
            y = self.convs[i](x)
            x = bias_act(y, self.biases[i], scale=scale, noise=noise, **self.options)
        return x.square().mean((1, 2, 3))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("act", ["leaky_relu", "silu"])
def test_penalty_by(route, act, x):
    want, got = Modulated("reference", act), Modulated("triton", act)
    assert_same_gradients(route, want, got, x, CLOSE)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_first_order(x, dynamic):
    torch._dynamo.reset()
    want, got = Modulated("reference"), Modulated("triton")
    want(x).sum().backward()
    layer = torch.compile(got, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    layer(x).sum().backward()
    for p, q in zip(want.parameters(), got.parameters()):
        torch.testing.assert_close(q.grad, p.grad, **CLOSE)


@pytest.mark.parametrize("act", ["leaky_relu", "gelu"])
def test_forward_over_reverse(act, x):
    products = []
    for backend in ("reference", "triton"):
        D = Modulated(backend, act)
        products.append(jvp(grad(lambda x, D=D: D(x).square().sum()), (x,), (torch.sin(x),))[1])
    torch.testing.assert_close(products[1], products[0], **CLOSE)


def scaled_layer(backend):
    def layer(x, scale, noise, bias):
        return bias_act(x, bias, scale=scale, noise=noise, act="silu", gain=1.5, backend=backend)

    return layer


def operands():
    generator = torch.Generator().manual_seed(3)
    shapes = ((2, 3, 4), (2, 3), (1, 1, 4), (3,))
    return [0.5 * torch.randn(s, generator=generator) for s in shapes]


@pytest.mark.parametrize("only", [None, 0, 1, 2, 3])
def test_vmap(only):
    tensors = operands()
    in_dims = tuple(i % 2 if only in (None, i) else None for i in range(4))
    batched = [
        t if d is None else torch.stack([t, 2 * t, -t], min(d, t.ndim))
        for t, d in zip(tensors, in_dims)
    ]
    results = []
    for backend in ("reference", "triton"):
        first = grad(lambda *ts, b=backend: scaled_layer(b)(*ts).pow(2).sum(), (0, 1, 2, 3))
        squares = lambda *ts, f=first: sum(g.square().sum() for g in f(*ts))  # noqa: E731
        results.append([vmap(f, in_dims)(*batched) for f in (first, grad(squares, (0, 1, 2, 3)))])
    torch.testing.assert_close(results[1], results[0], **CLOSE)


@pytest.mark.parametrize("act", ["leaky_relu", "silu"])
@pytest.mark.parametrize("names", [(), ("noise",), ("scale", "noise")], ids=str)
@pytest.mark.parametrize("batched", ["dy", "v"])
def test_vmap_over_one_cotangent(batched, names, act):
    # The double backward's share of dy does not depend on dy, and needs its batch all the same.
    x, scale, noise, _ = operands()
    others = {"scale": scale, "noise": noise}
    dy, v = torch.randn(2, *x.shape), torch.randn(2, *x.shape)
    dy, v = (dy, v[0]) if batched == "dy" else (dy[0], v)

    def shares(dy, v, backend):
        def gradient(dy, x, *rest):
            options = {**dict(zip(names, rest)), "act": act, "backend": backend}
            return vjp(lambda x: bias_act(x, **options), x)[1](dy)[0]

        return vjp(gradient, dy, x, *(others[n] for n in names))[1](v)

    dims = (0, None) if batched == "dy" else (None, 0)
    want, got = (
        vmap(lambda dy, v, b=b: shares(dy, v, b), dims)(dy, v) for b in ("reference", "triton")
    )
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("only", [None, 0, 1, 2, 3])
def test_tangents(only):
    tensors, tangents = operands(), [torch.cos(t) for t in operands()]
    results = []
    for backend in ("reference", "triton"):
        with fwd.dual_level(), torch.no_grad():
            duals = [
                fwd.make_dual(t, tangent) if only in (None, i) else t
                for i, (t, tangent) in enumerate(zip(tensors, tangents))
            ]
            results.append(fwd.unpack_dual(scaled_layer(backend)(*duals)).tangent)
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("only", [None, 0, 1, 2, 3, 4])
def test_tangents_of_gradients(only):
    primals = [torch.ones(2, 3, 4), *operands()]
    tangents = [torch.cos(t) if only in (None, i) else None for i, t in enumerate(primals)]
    results = []
    for backend in ("reference", "triton"):
        with fwd.dual_level():
            dy, *leaves = (
                t.clone().requires_grad_() if d is None else fwd.make_dual(t.requires_grad_(), d)
                for t, d in zip(primals, tangents)
            )
            y = scaled_layer(backend)(*leaves)
            first = torch.autograd.grad(y, leaves, dy, create_graph=True)
            results.append([fwd.unpack_dual(g).tangent for g in first])
    torch.testing.assert_close(results[1], results[0])


def test_a_third_derivative_with_scale_says_that_it_is_not_there():
    x, scale = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    layer = lambda x: bias_act(x, scale=scale, act="leaky_relu", backend="triton")  # noqa: E731
    (g,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.square().sum() + g.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"derivative 2 .* backend='reference'"):
        h.sum().backward()
    with pytest.raises(NotImplementedError, match=r"forward-mode .* backend='reference'"):
        jvp(lambda x: jvp(layer, (x,), (x,))[1], (x.detach(),), (x.detach(),))


def test_opcheck():
    from dgan_kernels.triton_bias_act_scaled import BACKWARD, FORWARD, SECOND, TANGENT

    shapes = ((2, 3, 4), (2, 3, 1), (1, 1, 4), (1, 3, 1))
    layer, tangents = ([torch.randn(s, requires_grad=True) for s in shapes] for _ in range(2))
    dy = torch.randn(2, 3, 4, requires_grad=True)
    constants = ("silu", 1.5, 2.0)
    some = (layer[0], layer[1], None, None)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    for launch, args in (
        (FORWARD, (*layer, *constants)),
        (TANGENT, (*tangents, *layer, *constants)),
        (BACKWARD, (dy, *layer, *constants)),
        (BACKWARD, (dy, *some, *constants)),
        (SECOND, (*tangents, dy, *layer, *constants)),
    ):
        torch.library.opcheck(launch.op, args, test_utils=tests)


def test_what_follows_a_modulated_convolution_is_one_launch():
    x, weight, styles = torch.randn(2, 3, 6, 6), torch.randn(5, 3, 3, 3), torch.randn(2, 3)
    noise, bias = torch.randn(2, 1, 6, 6), torch.randn(5)
    node = modulated_conv2d(
        x.requires_grad_(), weight, styles, noise=noise, bias=bias, padding=1, act="leaky_relu",
        gain=2.0, clamp=3.0, backend="triton",
    ).grad_fn  # fmt: skip
    steps = []
    while type(node).__name__ != "ConvolutionBackward0":
        steps.append(type(node).__name__)
        node = node.next_functions[0][0]
    views = ("View", "Permute", "Reshape", "UnsafeView")
    assert [s for s in steps if not s.startswith(views)] == ["EagerBackward"]  # a Launch


def test_modulated_convolution_under_autocast():
    generator = torch.Generator().manual_seed(4)
    draw = lambda *s: torch.randn(s, generator=generator, requires_grad=True)  # noqa: E731
    tensors = draw(2, 3, 6, 6), draw(5, 3, 3, 3), draw(2, 3)
    noise, bias = draw(2, 1, 6, 6), draw(5)
    results = []
    for backend in ("reference", "triton"):
        with torch.autocast("cpu", torch.bfloat16):
            y = modulated_conv2d(
                *tensors, noise=noise, bias=bias, padding=1, act="silu", backend=backend
            )
        assert y.dtype == torch.bfloat16
        leaves = (*tensors, noise, bias)
        first = torch.autograd.grad(y.float().sum(), leaves, create_graph=True)
        results.append([y, *first, *torch.autograd.grad(first[0].square().sum(), leaves)])
    for got, want in zip(*reversed(results)):
        # Each of a chain of bfloat16 steps rounds by 2⁻⁸, in other places in the two.
        assert (got - want).abs().max() <= 2**-4 * want.abs().max()
