"""The upfirdn2d kernel over filters, factors, dtypes and layouts against float64.

Not collected by name: `test_interpreted.py` runs it with TRITON_INTERPRET=1.
"""

import pytest
import torch
from upfirdn2d_oracle import (
    CASES,
    ODD,
    SMOOTH,
    SQUARE,
    TOLERANCE,
    assert_close,
    channels_last,
    composed,
    definition,
    draw,
    fused_orders,
    linear_expected,
    linear_orders,
)

from dgan_kernels import upfirdn2d
from dgan_kernels.reference import ACTIVATIONS


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_case_and_order(case, order):
    filter, options = case
    # A program takes all channels in channels_last, and one without.
    x = draw(1, 2 if order == torch.channels_last else 1, 9, 7).to(memory_format=order)
    got = linear_orders(x, filter, **options)
    assert_close(got, linear_expected(x, filter, **options), torch.float32)
    assert got["y"].is_contiguous(memory_format=order)
    assert got["dx"].shape == x.shape


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", ["up", "square down"])
def test_every_dtype(name, dtype):
    filter, options = CASES[name]
    for x in (draw(2, 1, 4, 5), channels_last(draw(1, 5, 4, 6))):
        got = linear_orders(x.to(dtype), filter, **options)
        assert all(t.dtype == dtype for t in got.values())
        assert_close(got, linear_expected(x.to(dtype), filter, **options), dtype)


# No block divides these; the largest are wider than one. [N, C, H, W] -> which blocks are partial
SIZES = {
    "one pixel": (1, 1, 1, 1),
    "one channel": (1, 1, 17, 5),
    "a row of two blocks": (1, 1, 2, 131),
    "many channels": (1, 17, 3, 5),
    "two blocks of channels": (1, 67, 3, 5),
    "even channels": (1, 64, 2, 9),
}


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
def test_every_size(shape, order):
    x = draw(*shape).to(memory_format=order)
    if order == torch.contiguous_format and shape[1] > 8:
        x = x[:, :2]  # a program for each plane
    for filter in (SMOOTH, SQUARE):
        options = {"up": 2, "padding": [2, 1, 2, 1]}
        y = upfirdn2d(x, filter, backend="triton", **options)
        assert_close({"y": y}, {"y": definition(x, filter, **options)}, torch.float32)


LAYOUTS = {
    "transposed": lambda t: t.mT.contiguous().mT,
    "batch_inside": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "slice": lambda t: torch.cat([t, t], 2)[:, :, t.shape[2] :],
    "unaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "expanded": lambda t: t[:1, :1].expand(t.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout(layout):
    x = layout(draw(2, 2, 4, 5))
    filter = torch.stack([SMOOTH, ODD.new_zeros(4)], 1)[:, 0]  # strided, too
    got = linear_orders(x, filter, down=2, padding=1)
    assert_close(got, linear_expected(x, filter, down=2, padding=1), torch.float32)


@pytest.mark.parametrize(
    ("act", "name"), [*((act, "square up") for act in ACTIVATIONS), ("gelu", "down")]
)
def test_every_epilogue(act, name):
    filter, options = CASES[name]
    epilogue = {"act": act, "gain": 1.5, "clamp": 1.2}
    mine = {"act": act, "act_gain": 1.5, "clamp": 1.2}
    x, bias = 2 * draw(1, 2, 4, 3), draw(2, seed=3)
    layer = lambda x, b: upfirdn2d(x, filter, bias=b, backend="triton", **mine, **options)  # noqa: E731
    got = fused_orders(x, bias, filter, layer)
    want = fused_orders(x.double(), bias.double(), filter, composed(filter, epilogue, **options))
    # exp and division are good to some four units, and the formulas chain up to four of them.
    assert_close(got, want, torch.float32, roundings=4)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("channels", [3, 17])
def test_epilogue_in_channels_last(channels, dtype):
    filter, options = CASES["up"]
    x, bias = channels_last(draw(1, channels, 3, 5).to(dtype)), draw(channels, seed=3).to(dtype)
    layer = lambda x, b: upfirdn2d(x, filter, bias=b, act="silu", backend="triton", **options)  # noqa: E731
    got = fused_orders(x, bias, filter, layer)
    want = fused_orders(
        x.double(), bias.double(), filter, composed(filter, {"act": "silu"}, **options)
    )
    # The filtered image and its gradient are stored between: both bend what comes after.
    assert_close(got, want, dtype, roundings=4)


@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (2, 0, 5, 5)])
def test_empty(shape):
    for epilogue in ({}, {"act": "silu", "bias": torch.zeros(shape[1], requires_grad=True)}):
        x = torch.zeros(shape, requires_grad=True)
        y = upfirdn2d(x, SMOOTH, up=2, padding=[2, 1, 2, 1], backend="triton", **epilogue)
        (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        assert y.shape == (*shape[:2], 10, 10)
        assert dx.shape == shape


@pytest.mark.parametrize("filter", [SMOOTH, SQUARE])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_its_own_neighbours_alone(filter, value):
    x = draw(1, 1, 8, 9)
    x[0, 0, 5, 6] = value
    for options in ({"padding": [2, 1, 2, 1]}, {"up": 2, "padding": [2, 1, 2, 1]}):
        got = upfirdn2d(x, filter, backend="triton", **options)
        marked = (x - x != 0).float()
        reached = definition(marked, torch.ones_like(filter), **options) > 0
        assert torch.equal(~got.isfinite(), reached)


def test_repeats_bit_for_bit():
    x = draw(1, 2, 9, 7).bfloat16()
    first, again = (linear_orders(x, SQUARE, up=2, padding=2) for _ in range(2))
    assert all(torch.equal(first[k], again[k]) for k in first)
