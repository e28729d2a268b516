"""Derivatives of the kernels of gradient penalties and minibatch_stddev, in ways that
`interpreted_matrix.py` does not take.

Not collected by name: `test_interpreted.py` runs it with TRITON_INTERPRET=1.
"""

import pytest
import torch
from torch.func import grad, hessian, jacrev, jvp, vmap

from dgan_kernels import interpolate, minibatch_stddev, penalty_direction, squared_norm

# Reductions in float32, twice differentiated.
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


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
    # Of three levels the middle one adds up two terms: neither may lose its tangent.
    along = lambda f: lambda x: jvp(f, (x,), (t,))[1]  # noqa: E731
    got, want = (along(along(along(f(b))))(x) for b in ("triton", "reference"))
    torch.testing.assert_close(got, want)


def test_points_and_directions():
    x, mix = torch.randn(3, 4), torch.rand(3)
    run = lambda x, mix: (  # noqa: E731
        interpolate(x, x * 2, mix, backend="triton"),
        penalty_direction(x, squared_norm(x), "one_centered", backend="triton"),
        penalty_direction(x, squared_norm(x), backend="triton"),
    )
    results = run(x, mix)
    batched = vmap(run)(torch.stack([x, 2 * x]), torch.stack([mix, mix]))
    for b, scale in enumerate((1, 2)):
        for got, want in zip(batched, run(scale * x, mix)):
            torch.testing.assert_close(got[b], want)
    torch._dynamo.reset()
    for got, want in zip(torch.compile(run, fullgraph=True, backend="aot_eager")(x, mix), results):
        torch.testing.assert_close(got, want)
