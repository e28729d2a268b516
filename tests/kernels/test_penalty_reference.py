"""squared_norm, interpolate and penalty_direction on the CPU: values, derivatives, errors."""

import pytest
import torch
from penalty_oracle import (
    LAYOUTS,
    SHAPES,
    STORED,
    check_point_and_direction,
    check_squared_norm,
    draw,
    penalty_orders,
    point_and_direction,
)
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, jvp

from dgan_kernels import interpolate, penalty_direction, squared_norm
from dgan_kernels import reference_gradient_penalty as reference


@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_against_the_formulas(shape, dtype):
    x, v = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1)
    check_squared_norm(x, v, penalty_orders(x, v, None))
    check_point_and_direction(x, point_and_direction(x, None))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout(layout):
    x, v = draw(2, 3, 5, 7), draw(2, 3, 5, 7, seed=1)
    check_squared_norm(x, v, penalty_orders(layout(x), v, None))
    points = point_and_direction(layout(x), None)
    check_point_and_direction(x, points)
    if layout in (LAYOUTS["contiguous"], LAYOUTS["channels_last"]):
        assert points["between"].stride() == points["one_sided=True"].stride() == layout(x).stride()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck_to_second_order_and_forward_mode(layout):
    x = LAYOUTS[layout](draw(2, 3, 2, 2).double()).requires_grad_()
    assert gradcheck(squared_norm, x, check_forward_ad=True)
    assert gradgradcheck(squared_norm, x, check_fwd_over_rev=True)
    (g,) = torch.autograd.grad(squared_norm(x).square().sum(), x, create_graph=True)
    assert gradcheck(
        lambda g: torch.autograd.grad(squared_norm(g).sum(), g, create_graph=True)[0], g
    )


def test_closed_rules_are_those_of_autograd():
    # What the kernels' derivative rules are built of: dot and scale are products.
    x, y = draw(2, 5).double().requires_grad_(), draw(2, 5, seed=1).double().requires_grad_()
    w = draw(2, seed=2).double().requires_grad_()
    assert gradcheck(lambda x, y: reference.dot(x, y, 1.5), (x, y))
    assert gradcheck(lambda x, w: reference.scale(x, w, 1.5), (x, w))
    torch.testing.assert_close(reference.dot(x, x, 1.0), squared_norm(x))


@pytest.mark.parametrize("kind", ["zero_centered", "one_centered"])
@pytest.mark.parametrize("one_sided", [False, True])
def test_the_direction_is_the_penaltys_derivative(kind, one_sided):
    if one_sided and kind == "zero_centered":
        return
    g = (draw(5, 3, 2).double() * torch.linspace(0.05, 2, 5)[:, None, None]).requires_grad_()
    norms = squared_norm(g).sqrt()
    assert (norms < 1).any()
    assert (norms > 1).any()
    excess = (norms - 1).clamp(min=0) if one_sided else norms - 1
    penalty = 0.5 * norms.square() if kind == "zero_centered" else excess.square()
    (want,) = torch.autograd.grad(penalty.sum(), g)
    g = g.detach()
    got = penalty_direction(g, squared_norm(g), kind, one_sided=one_sided)
    torch.testing.assert_close(got, want)


def test_zero_has_direction_zero_and_nan_stays():
    g = torch.tensor([[0.0, 0.0], [float("nan"), 3.0], [3.0, 4.0]])
    for one_sided in (False, True):
        u = penalty_direction(g, squared_norm(g), "one_centered", one_sided=one_sided)
        assert u[0].tolist() == [0.0, 0.0]
        assert u[1].isnan().all()
        torch.testing.assert_close(u[2], torch.tensor([4.8, 6.4]))
    assert penalty_direction(g, squared_norm(g)).data_ptr() == g.data_ptr()


POINTS = {
    "interpolate": lambda x, y, n: interpolate(x, y, n),
    "penalty_direction": lambda x, y, n: penalty_direction(x, n, "one_centered"),
    "penalty_direction of R1": lambda x, y, n: penalty_direction(x, n),
}


@pytest.mark.parametrize("name", POINTS)
def test_no_gradient_is_lost_in_silence(name):
    run, constants = POINTS[name], (draw(3, 4), draw(3, 4), torch.rand(3))
    want = run(*constants)
    taken = (0, 1, 2) if name == "interpolate" else (0, 2)
    for i in taken:
        arguments = [t.clone().requires_grad_(i == j) for j, t in enumerate(constants)]
        with pytest.raises(ValueError, match=r"requires a gradient, and .* has none for it"):
            run(*arguments)
        with torch.no_grad():  # where none is asked for
            assert torch.equal(run(*arguments), want)
        with forward_ad.dual_level():
            arguments = list(constants)
            arguments[i] = forward_ad.make_dual(constants[i], torch.ones_like(constants[i]))
            with pytest.raises(ValueError, match="has none for it"):
                run(*arguments)
        along = lambda t, i=i: run(*constants[:i], t, *constants[i + 1 :]).sum()  # noqa: E731
        with pytest.raises(ValueError, match="has none for it"):
            jvp(along, (constants[i],), (torch.ones_like(constants[i]),))
        with pytest.raises(ValueError, match="has none for it"):
            grad(along)(constants[i])


def test_the_ends_of_an_interpolation_are_exact():
    real, fake = draw(2, 300), 1e4 * draw(2, 300, seed=1)
    got = interpolate(real, fake, torch.tensor([0.0, 1.0]))
    assert torch.equal(got[0], fake[0])
    assert torch.equal(got[1], real[1])


def test_float64_stays_and_16_bits_do_not_overflow():
    assert squared_norm(draw(2, 3).double()).dtype == torch.float64
    x = torch.full((1, 9000), 200.0, dtype=torch.float16)
    assert squared_norm(x).tolist() == [9000 * 200.0**2]


@pytest.mark.parametrize("shape", [(0, 4), (0, 3, 5, 5), (2, 3, 0, 4)])
def test_empty(shape):
    x = torch.zeros(shape)
    assert torch.equal(squared_norm(x), torch.zeros(shape[0]))
    assert interpolate(x, x, torch.zeros(shape[0])).shape == shape
    assert penalty_direction(x, squared_norm(x), "one_centered").shape == shape


X, N = torch.zeros(2, 3, 4), torch.zeros(2)
ERRORS = {
    "x dtype": (squared_norm, (X.int(),), {}, "x has dtype torch.int32; accepted: torch.float16"),
    "x rank": (squared_norm, (N,), {}, "x has shape (2,); accepted: [N, C] or [N, C, *spatial]"),
    "backend": (squared_norm, (X,), {"backend": "cuda"}, "backend='cuda'; accepted: None, 'triton"),
    "no kernel": (squared_norm, (X,), {"backend": "triton"}, "backend='triton': x is on cpu"),
    "real": (interpolate, (N, N, N), {}, "real has shape (2,); accepted: [N, C]"),
    "fake": (interpolate, (X, X[:1], N), {}, "fake has shape (1, 3, 4); accepted: (2, 3, 4), that"),
    "fake dtype": (interpolate, (X, X.half(), N), {}, "fake has dtype torch.float16; accepted: to"),
    "mix": (interpolate, (X, X, X), {}, "mix has shape (2, 3, 4); accepted: [2], one for each sam"),
    "mix dtype": (interpolate, (X, X, N.half()), {}, "mix has dtype torch.float16; accepted: torc"),
    "device": (interpolate, (X, X, N.to("meta")), {}, "mix is on meta; accepted: cpu, where real "),
    "kind": (penalty_direction, (X, N, "r1"), {}, "kind='r1': accepted: zero_centered, one_center"),
    "squares": (penalty_direction, (X, X), {}, "squares has shape (2, 3, 4); accepted: [2], one f"),
    "squares dtype": (
        penalty_direction, (X, N.double()), {},
        "squares has dtype torch.float64; accepted: torch.float32",
    ),
    "one_sided": (
        penalty_direction, (X, N), {"one_sided": True},
        "one_sided=True with kind='zero_centered'; accepted: only with kind='one_centered'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "args", "options", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_name_argument_value_and_what_is_accepted(call, args, options, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is compared below
        call(*args, **options)
    assert str(raised.value).startswith(message)
