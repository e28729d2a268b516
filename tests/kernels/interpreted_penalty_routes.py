"""Every route by which PyTorch differentiates, through the kernels of gradient penalties and
minibatch_stddev, against plain PyTorch.

Not collected by name: `test_interpreted.py` runs it with TRITON_INTERPRET=1.
"""

import pytest
import routes
import torch
import torch.autograd.forward_ad as fwd
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

from dgan_kernels import interpolate, minibatch_stddev, penalty_direction, squared_norm

# A whole float32 network stands behind each number, twice differentiated.
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


class Discriminator(nn.Module):
    """minibatch_stddev between two convolutions; smooth, so that curvature crosses it."""

    def __init__(self, backend):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 6, 3, 2, 1)
        self.last = nn.Conv2d(8, 1, 3, 2, 1)
        self.backend = backend

    def forward(self, x):
        # Groups of four: the deviation of two samples is |a|, without curvature.
        x = minibatch_stddev(self.first(x).tanh(), 4, 2, backend=self.backend)
        return self.last(x).mean((2, 3))

    def measure(self, g):
        """R1 and WGAN-GP in one number."""
        squares = squared_norm(g, backend=self.backend)
        return squares.mean() + (squares.sqrt() - 1).square().mean()


@pytest.fixture
def x():
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def direction(D, x):
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(D(leaf).sum(), leaf)
    squares = squared_norm(g, backend=D.backend)
    both = [
        penalty_direction(g, squares, kind, backend=D.backend)
        for kind in ("zero_centered", "one_centered")
    ]
    return (2 * both[0] + both[1]) / len(x)


def reverse_over_forward(D, x):
    with fwd.dual_level():
        u = direction(D, x)
        tangent = fwd.unpack_dual(D(fwd.make_dual(x, u))).tangent
    tangent.sum().backward()


def reverse_over_torch_func_jvp(D, x):
    params = dict(D.named_parameters())
    u = direction(D, x)
    jvp(lambda x: functional_call(D, params, (x,)), (x,), (u,))[1].sum().backward()


# The tangent is the kernel's own direction here, and vmap sees samples one by one.
BY_ITSELF = {
    routes.reverse_over_forward: reverse_over_forward,
    routes.reverse_over_torch_func_jvp: reverse_over_torch_func_jvp,
}
ROUTES = [BY_ITSELF.get(r, r) for r in routes.ROUTES if r is not routes.vmapped_samples]


@pytest.mark.parametrize("route", ROUTES)
def test_penalty_by(route, x):
    want, got = Discriminator("reference"), Discriminator("triton")
    routes.assert_same_gradients(route, want, got, x, CLOSE)


def layers(backend):
    return [
        lambda x: squared_norm(x, backend=backend),
        lambda x: minibatch_stddev(x, backend=backend).pow(2),
    ]


@pytest.mark.parametrize("layer", [0, 1], ids=["squared_norm", "minibatch_stddev"])
def test_forward_over_reverse_jacobian_and_vmap(layer):
    x, t = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
    want, got = (layers(b)[layer] for b in ("reference", "triton"))
    for transform in (
        lambda f: jvp(f, (x,), (t,)),
        lambda f: jvp(grad(lambda x: f(x).square().sum()), (x,), (t,)),
        lambda f: jacrev(f)(x),
        lambda f: hessian(lambda x: f(x).square().sum())(x),
        lambda f: vmap(f)(torch.stack([x, t])),
        lambda f: vmap(grad(lambda x: f(x).square().sum()), 3)(torch.stack([x, t], 3)),
    ):
        torch.testing.assert_close(transform(got), transform(want), **CLOSE)


def test_every_tangent_of_every_order():
    # With and without tangents of either factor, the kernels close on one another.
    x, t = torch.randn(3, 5), torch.randn(3, 5)
    f = lambda b: lambda x: squared_norm(x * x, backend=b)  # noqa: E731
    along = lambda f: lambda a: jvp(f, (x * a,), (t,))[1].pow(2).sum()  # noqa: E731
    got, want = (grad(grad(grad(along(f(b)))))(torch.tensor(1.3)) for b in ("triton", "reference"))
    torch.testing.assert_close(got, want)
    forward_twice = lambda b: jvp(lambda x: jvp(f(b), (x,), (t,))[1], (x,), (t,))[1]  # noqa: E731
    torch.testing.assert_close(forward_twice("triton"), forward_twice("reference"))


@pytest.mark.parametrize("grad_mode", [True, False])
def test_points_and_directions_are_constants(grad_mode):
    x = torch.randn(3, 4, requires_grad=True)
    mix = torch.rand(3, requires_grad=True)
    run = lambda x, mix: (  # noqa: E731
        interpolate(x, x * 2, mix, backend="triton"),
        penalty_direction(x, squared_norm(x), "one_centered", backend="triton"),
        penalty_direction(x, squared_norm(x), backend="triton"),
    )
    with torch.set_grad_enabled(grad_mode), fwd.dual_level():
        results = run(fwd.make_dual(x, torch.ones_like(x)), mix)
        assert all(fwd.unpack_dual(r).tangent is None for r in results)
    assert not any(r.requires_grad for r in results)
    for i in range(3):
        assert not grad(lambda x, i=i: run(x, mix)[i].sum())(x.detach()).any()
        assert not jvp(lambda x, i=i: run(x, mix)[i], (x.detach(),), (torch.ones(3, 4),))[1].any()
    batched = vmap(run)(torch.stack([x, 2 * x]), torch.stack([mix, mix]))
    for b, scale in enumerate((1, 2)):
        for got, want in zip(batched, run(scale * x, mix)):
            torch.testing.assert_close(got[b], want)
    torch._dynamo.reset()
    for got, want in zip(torch.compile(run, fullgraph=True, backend="aot_eager")(x, mix), results):
        torch.testing.assert_close(got, want)


def test_a_third_derivative_of_the_deviation_says_that_it_is_not_there():
    x = torch.randn(4, 3, requires_grad=True)
    (g,) = torch.autograd.grad(minibatch_stddev(x, backend="triton").sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"derivative 2 .* backend='reference'"):
        h.sum().backward()
    twice = lambda x: jvp(lambda x: minibatch_stddev(x), (x,), (x,))[1]  # noqa: E731
    with pytest.raises(NotImplementedError, match="no forward-mode rule"):
        jvp(twice, (x.detach(),), (x.detach(),))


def test_shapes_without_memory():
    with FakeTensorMode():
        x = torch.empty(8, 6, 4, 4, dtype=torch.bfloat16, requires_grad=True)
        s = squared_norm(x)
        y = minibatch_stddev(x, num_channels=2)
        assert (s.shape, s.dtype, y.shape, y.dtype) == ((8,), torch.float32, (8, 8, 4, 4), x.dtype)
        assert torch.autograd.grad(s.sum() + y.sum(), x)[0].shape == x.shape
        assert penalty_direction(x, s, "one_centered").shape == x.shape
        assert interpolate(x, x, s).shape == x.shape


def test_opcheck():
    from dgan_kernels import triton_gradient_penalty as p
    from dgan_kernels import triton_minibatch_stddev as m

    x, y = torch.randn(2, 12, requires_grad=True), torch.randn(12, 2, requires_grad=True).mT
    n = torch.rand(2, requires_grad=True)
    four = torch.randn(2, 3, 2, 5, requires_grad=True)
    v, ds = torch.randn(2, 3, 2, 5, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    for launch, args in (
        (p.SQUARED_NORM, (y,)), (p.DOT, (x, y, 2.0)), (p.SCALE, (y, n, 2.0)),
        (p.INTERPOLATE, (x.detach(), y.detach(), n.detach())),
        (p.DIRECTION, (x.detach(), n.detach(), True)),
        (m.FORWARD, (four, 1e-8)), (m.TANGENT, (v, four, 1e-8)),
        (m.BACKWARD, (ds, four, 1e-8)), (m.SECOND, (v, ds, four, 1e-8)),
    ):  # fmt: skip
        tests = ("test_schema", "test_faketensor", "test_autograd_registration")
        torch.library.opcheck(launch.op, args, test_utils=tests)
