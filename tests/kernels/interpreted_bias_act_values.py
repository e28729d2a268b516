"""Every activation, order, dtype and layout of the Triton kernels against float64.

Not collected by name: `test_interpreted.py` runs it with TRITON_INTERPRET=1.
"""

import pytest
import torch
from bias_act_oracle import (
    SCALED_SHAPES,
    SHAPES,
    TOLERANCE,
    all_orders,
    assert_close,
    expected,
    inputs,
    scaled_expected,
    scaled_inputs,
    scaled_orders,
)

from dgan_kernels import bias_act
from dgan_kernels.reference import ACTIVATIONS

OPTIONS = {"gain": 1.5, "clamp": 4.0, "backend": "triton"}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_order(act, dtype):
    for name in ("image", "aligned"):
        tensors = inputs(SHAPES[name], dtype)
        got = all_orders(*tensors, act=act, **OPTIONS)
        assert all(t.dtype == dtype or t.ndim == 0 for t in got.values())
        want = expected(*tensors, act=act, **OPTIONS)
        assert_close(got, want, dtype, terms=tensors[0].numel() // tensors[0].shape[1])


@pytest.mark.parametrize("act", ["leaky_relu", "silu"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_walk(shape, act):
    tensors = inputs(shape)
    for options in (OPTIONS, {"backend": "triton"}):
        got = all_orders(*tensors, act=act, **options)
        want = expected(*tensors, act=act, **options)
        assert_close(got, want, torch.float32, terms=tensors[0].numel() // shape[1])


@pytest.mark.parametrize("act", ["linear", "gelu"])
def test_without_bias(act):
    x, _, dy, v = inputs(SHAPES["image"])
    got = all_orders(x, None, dy, v, act=act, backend="triton")
    assert_close(got, expected(x, None, dy, v, act=act), torch.float32)


LAYOUTS = {
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.mT.contiguous().mT,
    "batch_inside": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "flipped_slice": lambda t: torch.cat([t, t], 2)[:, :, t.shape[2] :],
    "unaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("shape", [(3, 5, 7, 3), (2, 16, 4, 5)])
def test_every_layout(shape, layout):
    x, bias, dy, v = inputs(shape)
    want = expected(x, bias, dy, v, act="silu", **OPTIONS)
    got = all_orders(layout(x), bias, dy, v, act="silu", **OPTIONS)  # dy's memory differs from x's
    assert_close(got, want, torch.float32, terms=60)
    got = all_orders(layout(x), bias, layout(dy), layout(v), act="silu", **OPTIONS)
    assert_close(got, want, torch.float32, terms=60)
    plain = torch.empty_like(layout(x))  # keeps the strides of dense memory, as every op should
    assert got["y"].stride() == got["dx"].stride() == got["d_x"].stride() == plain.stride()


@pytest.mark.parametrize("dim", [0, 2, -1])
def test_every_dim(dim):
    tensors = inputs((3, 5, 7), dim=dim)
    got = all_orders(*tensors, act="tanh", dim=dim, backend="triton")
    want = expected(*tensors, act="tanh", dim=dim)
    assert_close(got, want, torch.float32, terms=35)


def test_strided_bias_and_expanded_cotangent():
    x, _, dy, v = inputs(SHAPES["image"])
    bias = torch.randn(10)[::2]
    dy = dy[:1, :1, :1, :1].expand_as(x)
    got = all_orders(x, bias, dy, v, act="silu", backend="triton")
    assert_close(got, expected(x, bias, dy, v, act="silu"), torch.float32, terms=63)


@pytest.mark.parametrize("shape", [(0, 4), (0, 3, 5, 5), (2, 3, 0, 4)])
def test_empty(shape):
    x = torch.zeros(shape, requires_grad=True)
    bias = torch.zeros(shape[1], requires_grad=True)
    y = bias_act(x, bias, act="silu", backend="triton")
    dx, db = torch.autograd.grad(y.sum(), (x, bias), create_graph=True)
    assert y.shape == dx.shape == x.shape
    assert torch.equal(db, torch.zeros(shape[1]))
    assert torch.autograd.grad(dx.square().sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_nan_and_infinity_pass_as_in_pytorch(act):
    x = torch.tensor([[float("nan"), float("inf"), 100.0, -100.0]])
    options = {"act": act, "clamp": 256.0}
    got = bias_act(x, backend="triton", **options).double()
    # In float64: PyTorch's float32 gelu makes NaN of infinity on the CPU.
    torch.testing.assert_close(got, bias_act(x.double(), **options), equal_nan=True)


@pytest.mark.parametrize("act", ["tanh", "gelu_tanh", "elu", "softplus"])
def test_small_results_keep_their_digits(act):
    # exp(u) - 1 and log(1 + e) written plainly would lose every digit here.
    x = torch.cat([-torch.logspace(-12, 1, 300), torch.linspace(-14, -10, 50)])[:, None]
    x = x if act == "softplus" else x[:300]
    got = bias_act(x, act=act, backend="triton").double()
    want = bias_act(x.double(), act=act)
    if act == "gelu_tanh":  # 1 + tanh cancels far out, in PyTorch's own kernel too
        keep = x > -2
        got, want = got[keep], want[keep]
    assert ((got - want) / want).abs().max() < 2**-19


def test_clamp_passes_the_gradient_at_the_bound_as_torch_does():
    tensors = inputs((4, 3))
    tensors[0][:] = torch.tensor([[1.0], [-1.0], [2.0], [0.5]])
    tensors[1][:] = 0
    options = {"act": "linear", "gain": 2.0, "clamp": 2.0}
    got = all_orders(*tensors, backend="triton", **options)
    want = expected(*tensors, **options)
    assert torch.equal(got["dx"].double(), want["dx"])
    assert (want["dx"][:2] != 0).all()
    assert (want["dx"][2] == 0).all()


def test_repeats_bit_for_bit():
    tensors = inputs(SHAPES["planes"], torch.bfloat16)
    first, again = (all_orders(*tensors, act="silu", **OPTIONS) for _ in range(2))
    assert all(torch.equal(first[k], again[k]) for k in first)


def assert_scaled(x, tensors, **options):
    """All orders with scale and noise are those of float64; returns them."""
    options = {**OPTIONS, **options}
    got = scaled_orders(x, tensors, **options)
    terms = x.numel() // min(x.shape[0], x.shape[options.get("dim", 1)])
    assert_close(got, scaled_expected(x, tensors, **options), x.dtype, terms)
    return got


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_scaled_every_order(act, dtype):
    x, tensors = scaled_inputs(SCALED_SHAPES["image"], dtype)
    got = assert_scaled(x, tensors, act=act)
    assert all(t.dtype == dtype or t.ndim == 0 for t in got.values())


@pytest.mark.parametrize("shared", [False, True], ids=["noise each", "noise shared"])
@pytest.mark.parametrize("act", ["leaky_relu", "silu"])
@pytest.mark.parametrize("shape", SCALED_SHAPES.values(), ids=SCALED_SHAPES.keys())
def test_scaled_every_tile(shape, act, shared):
    assert_scaled(*scaled_inputs(shape, shared_noise=shared), act=act)


@pytest.mark.parametrize("kept", ["scale", "noise", "scale noise", "scale bias", "noise bias"])
@pytest.mark.parametrize("act", ["linear", "leaky_relu", "gelu"])
def test_scaled_some_operands(kept, act):
    x, tensors = scaled_inputs(SCALED_SHAPES["image"])
    tensors |= {k: None for k in ("scale", "noise", "bias") if k not in kept.split()}
    assert_scaled(x, tensors, act=act, clamp=None)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("shape", [(3, 3, 7, 3), (2, 16, 4, 5)])
def test_scaled_every_layout(shape, layout):
    x, tensors = scaled_inputs(shape)
    assert_scaled(layout(x), tensors, act="silu")  # dy's memory differs from x's
    same = {k: layout(t) if k in ("dy", "v") else t for k, t in tensors.items()}
    got = assert_scaled(layout(x), same, act="silu")
    plain = torch.empty_like(layout(x))
    if plain.stride(2) == plain.shape[3] * plain.stride(3):  # else the rows do not follow
        assert got["y"].stride() == got["dx"].stride() == got["d_x"].stride() == plain.stride()


@pytest.mark.parametrize(("shape", "dim"), [((3, 5, 7), 2), ((3, 5, 7), -1), ((2, 3, 5, 4), 2)])
def test_scaled_every_dim(shape, dim):
    assert_scaled(*scaled_inputs(shape, dim=dim), act="tanh", dim=dim)


def test_noise_where_channels_come_first():
    x, tensors = scaled_inputs((3, 5, 7), dim=0)
    assert_scaled(x, tensors | {"scale": None}, act="tanh", dim=0)


def test_strided_operands_and_expanded_cotangent():
    x, tensors = scaled_inputs(SCALED_SHAPES["image"])
    tensors["scale"] = tensors["scale"].T.contiguous().T
    tensors["noise"] = tensors["noise"][..., :1].expand_as(tensors["noise"])
    tensors["bias"] = torch.randn(10)[::2]
    tensors["dy"] = tensors["dy"][:1, :1, :1, :1].expand_as(x)
    assert_scaled(x, tensors, act="silu")


@pytest.mark.parametrize("shape", [(0, 4), (0, 3, 5, 5), (2, 3, 0, 4), (2, 0, 3)])
def test_scaled_empty(shape):
    x, scale, bias = torch.zeros(shape), torch.zeros(shape[:2]), torch.zeros(shape[1])
    noise = torch.zeros(1, 1, *shape[2:])
    leaves = [t.requires_grad_() for t in (x, scale, noise, bias)]
    y = bias_act(x, bias, act="silu", scale=scale, noise=noise, backend="triton")
    first = torch.autograd.grad(y.sum(), leaves, create_graph=True)
    assert all(torch.equal(g, torch.zeros_like(t)) for g, t in zip(first, leaves))
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    assert all(torch.equal(g, torch.zeros_like(t)) for g, t in zip(second, leaves))


def test_scaled_nan_stays_where_it_is():
    x, tensors = scaled_inputs(SCALED_SHAPES["image"])
    x[0, 0, 0, 0] = float("nan")
    y = bias_act(x, scale=tensors["scale"], act="relu", clamp=1.0, backend="triton")
    assert torch.equal(y.isnan(), x.isnan())


def test_scaled_repeats_bit_for_bit():
    x, tensors = scaled_inputs(SCALED_SHAPES["tiles"], torch.bfloat16)
    first, again = (scaled_orders(x, tensors, act="silu", **OPTIONS) for _ in range(2))
    assert all(torch.equal(first[k], again[k]) for k in first)
