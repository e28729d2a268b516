"""minibatch_stddev on the CPU: values, every derivative, errors."""

import pytest
import torch
from penalty_oracle import LAYOUTS, draw
from torch.autograd import gradcheck, gradgradcheck

from dgan_kernels import minibatch_stddev
from dgan_kernels import reference_minibatch_stddev as reference


def published(x, group, features, eps=1e-8):
    """One loop for each index of the formula, in float64."""
    n, c = x.shape[:2]
    groups = n // group
    y = torch.empty(n, features, *x.shape[2:], dtype=torch.float64)
    for m in range(groups):
        members = x[m::groups].double()
        for f, part in enumerate(members.split(c // features, 1)):
            y[m::groups, f] = (part.var(0, correction=0) + eps).sqrt().mean()
    return torch.cat([x.double(), y], 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("shape", "group_size", "features", "group"),
    [
        ((8, 3, 5, 4), 4, 1, 4), ((6, 4, 3), 4, 2, 3), ((5, 17, 2, 2), 4, 1, 1),
        ((3, 1, 3, 3), 4, 1, 3), ((4, 6), 2, 3, 2), ((1, 2, 2, 2), 4, 1, 1),
    ],
)  # fmt: skip
def test_against_the_published_formula(shape, group_size, features, group, dtype):
    x = draw(*shape, dtype=dtype)
    want = published(x, group, features)
    got = minibatch_stddev(x, group_size, features)
    assert got.dtype == dtype
    # One rounding to x's dtype, which relative to 1 is its eps; float32 sums behind float32.
    torch.testing.assert_close(got.double(), want, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_memory_order_stays():
    x = draw(4, 6, 5, 3).to(memory_format=torch.channels_last)
    for features in (1, 2):
        y = minibatch_stddev(x, num_channels=features)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert (
            torch.equal(y, minibatch_stddev(x.contiguous(), num_channels=features)) or features == 1
        )
        torch.testing.assert_close(y, minibatch_stddev(x.contiguous(), num_channels=features))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("group_size", "features"), [(4, 1), (2, 2), (1, 1)])
def test_gradcheck_to_second_order_and_forward_mode(layout, group_size, features):
    x = LAYOUTS[layout](draw(4, 2, 2, 2).double()).requires_grad_()
    f = lambda x: minibatch_stddev(x, group_size, features, 1e-2)  # noqa: E731
    assert gradcheck(f, x, check_forward_ad=True)
    assert gradgradcheck(f, x, check_fwd_over_rev=True)


def test_closed_derivatives_are_those_of_autograd():
    x, v = (draw(3, 2, 2, 5, seed=s).double().requires_grad_() for s in (0, 1))
    ds = draw(2, 2, seed=2).double().requires_grad_()
    s = reference.group_stddev(x, 1e-2)
    (dx,) = torch.autograd.grad(s, x, ds, create_graph=True)
    d_ds, d_x = torch.autograd.grad(dx, (ds, x), v)
    torch.testing.assert_close(reference.group_stddev_backward(ds, x, 1e-2), dx)
    torch.testing.assert_close(reference.group_stddev_tangent(v, x, 1e-2), d_ds)
    for got, want in zip(reference.group_stddev_second(v, ds, x, 1e-2), (d_ds, d_x)):
        torch.testing.assert_close(got, want)


def test_equal_samples_have_the_deviation_of_eps_and_no_gradient():
    x = torch.full((4, 3, 2, 2), 7.0, requires_grad=True)
    y = minibatch_stddev(x)
    assert torch.allclose(y[:, 3], torch.tensor(1e-4))
    assert torch.equal(torch.autograd.grad(y[:, 3].sum(), x)[0], torch.zeros_like(x))


def test_a_third_derivative_is_there():
    g = x = draw(4, 2).double().requires_grad_()
    g = minibatch_stddev(x, eps=0.1).pow(3).sum()
    for _ in range(3):
        (g,) = torch.autograd.grad(g.sum() + g.square().sum(), x, create_graph=True)
    assert g.abs().sum() > 0


@pytest.mark.parametrize("shape", [(0, 4), (0, 3, 5, 5), (2, 3, 0, 4)])
def test_empty(shape):
    x = torch.zeros(shape, requires_grad=True)
    y = minibatch_stddev(x)
    assert y.shape == (shape[0], shape[1] + 1, *shape[2:])
    assert torch.autograd.grad(y.sum(), x)[0].shape == shape


X = torch.zeros(4, 6, 2)
ERRORS = {
    "rank": ((X[0, 0],), {}, "x has shape (2,); accepted: [N, C]"),
    "dtype": ((X.int(),), {}, "x has dtype torch.int32; accepted: torch.float16"),
    "group_size": ((X, 0), {}, "group_size=0; accepted: an integer of at least 1"),
    "group_size type": ((X, 2.0), {}, "group_size=2.0; accepted: an integer of at least 1"),
    "num_channels": ((X, 4, 4), {}, "num_channels=4; accepted: a divisor of x's 6 channels"),
    "eps": ((X,), {"eps": 0.0}, "eps=0.0; accepted: a finite number above 0"),
    "backend": ((X,), {"backend": "cuda"}, "backend='cuda'; accepted: None, 'triton', 'reference'"),
}


@pytest.mark.parametrize(("args", "options", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_name_argument_value_and_what_is_accepted(args, options, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is compared below
        minibatch_stddev(*args, **options)
    assert str(raised.value).startswith(message)
