"""Every norm, activation, order, dtype and layout of the Triton kernels against float64.

Not collected by name: `test_interpreted.py` runs it with TRITON_INTERPRET=1.
"""

import pytest
import torch
from norm_act_oracle import AFFINE, CASES, TOLERANCE, all_orders, assert_close, expected, inputs

from dgan_kernels import norm_act, triton_norm_launch
from dgan_kernels.reference import ACTIVATIONS


def check(shape, options, affine, act, dtype=torch.float32):
    tensors = inputs(shape, options, affine, dtype)
    got = all_orders(*tensors, act=act, backend="triton", **options)
    assert all(t.dtype == dtype or t.ndim == 0 for t in got.values())
    want = expected(tensors, act=act, **options)
    assert_close(got, want, dtype, terms=tensors[0].numel())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize(("affine", "act"), [("shared", "silu"), ("per_sample", "leaky_relu")])
def test_every_norm(case, affine, act):
    check(*case, affine, act)


@pytest.mark.parametrize("case", ["instance", "layer", "batch"])
@pytest.mark.parametrize("affine", AFFINE)
def test_every_affine(case, affine):
    check(*CASES[case], affine, "gelu")


@pytest.mark.parametrize("case", ["instance", "pixel", "batch"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_dtype(case, dtype):
    check(*CASES[case], "shared", "silu", dtype)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_activation(act):
    check(*CASES["instance"], "shared", act)
    check(*CASES["batch"], "shared", act)


@pytest.mark.parametrize("act", ["leaky_relu", "silu"])
@pytest.mark.parametrize("case", ["instance", "group", "group of vectors", "batch"])
@pytest.mark.parametrize("affine", ["none", "shared"])
def test_two_sweeps(case, act, affine, monkeypatch):
    # As if the chip held 8 elements, and a program of a sweep took 32.
    monkeypatch.setattr(triton_norm_launch, "RESIDENT", 4)
    monkeypatch.setattr(triton_norm_launch, "SWEEP", 32)
    monkeypatch.setattr(triton_norm_launch, "COMBINE", 2)
    check(*CASES[case], affine, act)


@pytest.mark.parametrize("shape", [(2, 3, 129, 65), (1, 1, 2, 8192)])
def test_a_group_that_does_not_fit(shape):
    check(shape, {"norm": "instance"}, "shared", "silu")


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_more_channels_than_fit(norm):
    check((3, 8200), {"norm": norm}, "shared", "silu")
    check((2, 8200, 2), {"norm": norm, "dim": 1}, "per_sample", "leaky_relu")


@pytest.mark.parametrize("affine", ["none", "shared", "per_sample"])
@pytest.mark.parametrize("case", ["layer", "pixel"])
def test_programs_that_sum_over_several_tiles(case, affine, monkeypatch):
    monkeypatch.setattr(triton_norm_launch, "PROGRAMS", 2)
    monkeypatch.setattr(triton_norm_launch, "TILE", 64)
    monkeypatch.setattr(triton_norm_launch, "SWEEP", 64)
    check(*CASES[case], affine, "silu")


LAYOUTS = {
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "batch_inside": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "unaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("case", ["instance", "pixel", "batch"])
def test_every_layout(case, layout):
    shape, options = CASES[case]
    x, weight, bias, dy, v, vw, vb = inputs(shape, options)
    want = expected((x, weight, bias, dy, v, vw, vb), act="silu", **options)
    got = all_orders(
        layout(x), weight, bias, dy, layout(v), vw, vb, act="silu", backend="triton", **options
    )
    assert_close(got, want, torch.float32, terms=x.numel())


def test_channels_last_is_read_in_place_where_a_position_is_a_group():
    x = torch.randn(2, 8, 3, 5).to(memory_format=torch.channels_last)
    y = norm_act(x, norm="pixel", act="relu", backend="triton")
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, norm_act(x.contiguous(), norm="pixel", act="relu"))


def test_strided_weight_and_expanded_cotangent():
    shape, options = CASES["instance"]
    x, _, bias, dy, v, vw, vb = inputs(shape, options)
    weight = torch.randn(10)[::2]
    dy = dy[:1, :1, :1, :1].expand_as(x)
    tensors = (x, weight, bias, dy, v, vw, vb)
    got = all_orders(*tensors, act="silu", backend="triton", **options)
    assert_close(got, expected(tensors, act="silu", **options), torch.float32, terms=x.numel())


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 0)])
@pytest.mark.parametrize("norm", ["instance", "layer", "pixel", "batch"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_empty(shape, norm, per_sample):
    x = torch.zeros(shape, requires_grad=True)
    weight = torch.ones((shape[0], 4) if per_sample else 4, requires_grad=True)
    y = norm_act(x, weight, norm=norm, act="silu", dim=1, backend="triton")
    dx, dw = torch.autograd.grad(y.sum(), (x, weight), create_graph=True)
    assert y.shape == dx.shape == x.shape
    assert torch.equal(dw, torch.zeros_like(weight))
    assert torch.autograd.grad(dx.square().sum(), x)[0].shape == x.shape


def test_statistics_are_centred():
    # A mean of squares minus a square of means would lose every digit of this variance.
    x = torch.randn(2, 3, 40, 40) + 4096
    for norm, dim in (("instance", 1), ("batch", 1), ("layer", -1)):
        got = norm_act(x, norm=norm, dim=dim, backend="triton")
        want = norm_act(x.double(), norm=norm, dim=dim)
        # x itself is good to 2⁻¹², and so is its mean, which shifts all of a group.
        assert (got - want).abs().max() < 2**-10


@pytest.mark.parametrize("case", ["group", "layer", "batch"])
def test_repeats_bit_for_bit(case):
    shape, options = CASES[case]
    tensors = inputs(shape, options, dtype=torch.bfloat16)
    first, again = (all_orders(*tensors, act="silu", backend="triton", **options) for _ in range(2))
    assert all(torch.equal(first[k], again[k]) for k in first)


@pytest.mark.parametrize("norm", ["instance", "pixel", "batch"])
def test_nan_stays_in_its_group(norm):
    x = torch.randn(2, 4, 3, 3)
    x[0, 1, 2, 2] = float("nan")
    got = norm_act(x, norm=norm, act="relu", backend="triton").isnan()
    assert torch.equal(got, norm_act(x, norm=norm, act="linear").isnan())
