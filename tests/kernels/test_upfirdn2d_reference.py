"""upfirdn2d on the CPU: values, StyleGAN's contract, derivatives, errors; no Triton anywhere."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from upfirdn2d_oracle import (
    CASES,
    LONG,
    ODD,
    SMOOTH,
    SQUARE,
    TILTED,
    assert_close,
    channels_last,
    definition,
    draw,
    linear_expected,
    linear_orders,
)

from dgan_kernels import bias_act, downsample2d, filter2d, upfirdn2d, upsample2d


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_is_the_definition(case, order):
    filter, options = case
    x = draw(2, 3, 9, 7).to(memory_format=order)
    for image in (x, x.double()):
        got = linear_orders(image, filter, backend=None, **options)
        assert got["y"].is_contiguous(memory_format=order)
        assert_close(got, linear_expected(image, filter, **options), torch.float32, roundings=4)
    exact = upfirdn2d(x.double(), filter, **options)
    torch.testing.assert_close(exact, definition(x, filter, **options), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["up", "down", "tilted"])
def test_narrow_dtypes(name, dtype):
    filter, options = CASES[name]
    x = draw(2, 3, 8, 6).to(dtype)
    y = upfirdn2d(x, filter, **options)
    assert y.dtype == dtype
    want = definition(x, filter, **options)
    # Taps and result are rounded to x's dtype: half a unit in the last place each, of their size.
    unit = torch.finfo(dtype).eps
    assert (y - want).abs().max() < 2 * unit * want.abs().max()


@pytest.mark.parametrize("up", [1, 2, 3])
@pytest.mark.parametrize("taps", [ODD, SMOOTH, LONG, draw(12)], ids=len)
def test_is_scipys_upfirdn(taps, up):
    signal = pytest.importorskip("scipy.signal", reason="scipy comes with scikit-learn")
    x, n = draw(1, 1, 7, 9).double(), len(taps)
    for down in (1, 2):
        got = upfirdn2d(x, taps, up=up, down=down, padding=(n - 1, n - up) * 2)
        want = x[0, 0].numpy()
        for axis in (0, 1):
            want = signal.upfirdn(taps.double().numpy(), want, up, down, axis=axis)
        torch.testing.assert_close(got[0, 0], torch.from_numpy(want))


# What StyleGAN's functions of these names give, worked out by hand on x = [1, 2, 3, 4], one axis.
ROW = torch.tensor([[1.0, 2, 3, 4]])
BY_HAND = {
    "zeros after each pixel": (upfirdn2d, None, {"up": (2, 1)}, [1, 0, 2, 0, 3, 0, 4, 0]),
    "every second, from the first": (upfirdn2d, None, {"down": (2, 1)}, [1, 3]),
    "negative padding crops": (upfirdn2d, None, {"padding": [-1, -2, 0, 0]}, [2]),
    "padding": (upfirdn2d, None, {"padding": (1, 0)}, [0, 1, 2, 3, 4, 0]),
    "convolution": (upfirdn2d, [1, 2], {}, [4, 7, 10]),
    "correlation": (upfirdn2d, [1, 2], {"flip_filter": True}, [5, 8, 11]),
    "gain": (upfirdn2d, [1, 1], {"gain": 0.5}, [1.5, 2.5, 3.5]),
    "upsample": (upsample2d, [1, 3, 3, 1], {"up": (2, 1)}, [3, 5, 7, 9, 11, 13, 15, 12]),
    "downsample": (downsample2d, [1, 1], {"down": (2, 1)}, [3, 7]),
    "filter": (filter2d, [1, 1, 1], {}, [3, 6, 9, 7]),
}  # fmt: skip


@pytest.mark.parametrize(("function", "taps", "options", "want"), BY_HAND.values(), ids=BY_HAND)
def test_stylegans_contract_by_hand(function, taps, options, want):
    filter = None if taps is None else torch.tensor([taps], dtype=torch.float32)
    want = torch.tensor(want, dtype=torch.float32)
    if function is upsample2d:  # gain up², on one axis: 2 · [1, 3, 3, 1] / 8 keeps the brightness
        filter, want = filter / 8, want / 4
    assert torch.equal(function(ROW[None, None], filter, **options)[0, 0, 0], want)


def test_resampling_keeps_brightness_and_size():
    x = torch.ones(1, 2, 8, 6)
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    for filter in (SMOOTH, SQUARE):
        up, down, same = upsample2d(x, filter), downsample2d(x, filter), filter2d(x, filter)
        assert (up.shape[2:], down.shape[2:], same.shape[2:]) == ((16, 12), (4, 3), (8, 6))
        assert up[inside].eq(1).all()
        assert same[inside].eq(1).all()
        assert down[:, :, 1:-1, 1:-1].eq(1).all()


def test_bias_act_differs_from_stylegans_in_the_default_gain_alone():
    x, bias = draw(2, 3, 4, 4), draw(3)
    assert torch.equal(
        bias_act(x, bias, act="leaky_relu"), F.leaky_relu(x + bias.view(1, 3, 1, 1), 0.2)
    )


def test_the_epilogue_is_bias_act():
    x, bias = draw(2, 3, 5, 5), draw(3)
    got = upsample2d(x, SMOOTH, bias=bias, act="silu", act_gain=1.5, clamp=0.7)
    want = bias_act(upsample2d(x, SMOOTH), bias, act="silu", gain=1.5, clamp=0.7)
    assert torch.equal(got, want)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_gradcheck_to_second_order_and_forward_mode(case):
    filter, options = case
    x, bias = draw(1, 1, 3, 4).double().requires_grad_(), draw(1).double().requires_grad_()
    f = lambda x, bias: upfirdn2d(x, filter, bias=bias, act="tanh", **options)  # noqa: E731
    assert gradcheck(f, (x, bias), check_forward_ad=True)
    assert gradgradcheck(f, (x, bias), check_fwd_over_rev=True)


def test_any_sizes():
    chance = random.Random(1)
    tried = 0
    while tried < 60:
        shape = (
            chance.randint(1, 2),
            chance.choice([1, 3, 17]),
            *chance.choices(range(1, 10), k=2),
        )
        x = draw(*shape)
        x = channels_last(x) if chance.random() < 0.5 else x
        filter = draw(*chance.choice([1, 2]) * [chance.randint(1, 8)])
        options = {
            "up": chance.choices([1, 1, 2, 3], k=2),
            "down": chance.choices([1, 2, 3], k=2),
            "padding": [chance.randint(-4, 12) for _ in range(4)],
            "flip_filter": chance.random() < 0.5,
        }
        try:
            got = linear_orders(x, filter, backend=None, **options)
        except ValueError as error:
            assert "padding" in str(error)  # noqa: PT017 - most of these sizes leave an image
            continue
        tried += 1
        assert_close(got, linear_expected(x, filter, **options), torch.float32, roundings=8)


def test_shapes_without_memory_or_elements():
    x = torch.empty(2, 3, 4, 4, device="meta")
    assert upsample2d(x, SMOOTH.to("meta")).shape == (2, 3, 8, 8)
    x = torch.zeros(0, 3, 4, 4, requires_grad=True)
    y = upsample2d(x, SMOOTH)
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert (y.shape, dx.shape) == ((0, 3, 8, 8), x.shape)


@pytest.mark.parametrize("resample", [upsample2d, filter2d])  # one convolution, and more
def test_a_filter_may_change_between_calls(resample):
    x, taps = draw(1, 2, 4, 4).requires_grad_(), SMOOTH.clone()
    (want,) = torch.autograd.grad(resample(x, taps).sum(), x)
    before = resample(x, taps)
    taps.mul_(2)
    torch.testing.assert_close(resample(x, taps), 4 * before)
    torch.testing.assert_close(torch.autograd.grad(before.sum(), x)[0], want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("resample", [upsample2d, downsample2d])
def test_16_bits_are_rounded_once(resample, dtype):
    x = draw(2, 3, 8, 8).to(dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    taps = torch.tensor([1.0, 2.0, 2.0, 1.0]) / 4  # products of them are exact in 8 bits
    y, want = resample(x, taps), resample(exact, taps)
    dy = draw(*y.shape).to(dtype)
    (dx,) = torch.autograd.grad(y, x, dy)
    (dx_want,) = torch.autograd.grad(want, exact, dy.double())
    half_ulp = torch.finfo(dtype).eps / 2
    for got, exactly in ((y, want), (dx, dx_want)):
        error = (got.double() - exactly).abs().max()
        assert error <= 1.01 * half_ulp * exactly.abs().max()


def test_what_inference_mode_leaves_can_be_differentiated():
    taps = draw(3)
    with torch.inference_mode():
        downsample2d(draw(1, 1, 4, 4), taps)
    x = draw(1, 1, 4, 4).requires_grad_()
    downsample2d(x, taps).sum().backward()
    assert x.grad is not None


def test_autocast_does_not_change_the_dtype():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert upsample2d(draw(1, 2, 4, 4), SMOOTH).dtype == torch.float32


X = torch.zeros(2, 3, 4, 4)
ERRORS = {
    "rank": ((X[0], SMOOTH), {}, "x has shape (3, 4, 4); accepted: [N, C, H, W]"),
    "dtype": ((X.int(), SMOOTH), {}, "x has dtype torch.int32; accepted: torch.float16"),
    "no pixels": ((X[:, :, :0], SMOOTH), {}, "x has shape (2, 3, 0, 4); accepted: [N, C, H, W]"),
    "filter rank": ((X, SQUARE[None]), {}, "filter has shape (1, 4, 4); accepted: [taps], app"),
    "no taps": ((X, SMOOTH[:0]), {}, "filter has shape (0,); accepted: [taps]"),
    "filter dtype": ((X, SMOOTH.double()), {}, "filter has dtype torch.float64; accepted: torc"),
    "filter device": ((X, SMOOTH.to("meta")), {}, "filter is on meta; accepted: cpu, where x is"),
    "filter gradient": ((X, SMOOTH.clone().requires_grad_()), {}, "filter requires a gradient"),
    "up": ((X, SMOOTH), {"up": 0}, "up=0; accepted: an integer of at least 1, or two, (x, y)"),
    "down": ((X, SMOOTH), {"down": (1, 2, 3)}, "down=(1, 2, 3); accepted: an integer of at leas"),
    "fraction": ((X, SMOOTH), {"up": 1.5}, "up=1.5; accepted: an integer of at least 1"),
    "padding": ((X, SMOOTH), {"padding": [1, 2, 3]}, "padding=[1, 2, 3]; accepted: an integer,"),
    "nothing left": ((X, SMOOTH), {"padding": -1}, "padding=(-1, -1, -1, -1) leaves 2 by 2 pixe"),
    "gain": ((X, SMOOTH), {"gain": float("inf")}, "gain=inf; accepted: a finite number"),
    "act": ((X, SMOOTH), {"act": "swish"}, "act='swish': "),
    "act_gain": ((X, SMOOTH), {"act_gain": float("nan")}, "act_gain=nan; accepted: a finite"),
    "clamp": ((X, SMOOTH), {"clamp": -1.0}, "clamp=-1.0; accepted: None, or a number of at le"),
    "bias": ((X, SMOOTH), {"bias": torch.zeros(4)}, "bias has shape (4,); accepted: [3]"),
    "backend": ((X, SMOOTH), {"backend": "triton"}, "backend='triton': x is on cpu, and kernels"),
}  # fmt: skip


@pytest.mark.parametrize(("args", "options", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_name_argument_value_and_what_is_accepted(args, options, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is compared below
        upfirdn2d(*args, **options)
    assert str(raised.value).startswith(message)


def test_the_filters_shape_names_both_sides():
    # [rows, columns]: a filter that is not square must not be taken for its transpose.
    assert upfirdn2d(X, TILTED).shape == (2, 3, 3, 2)
