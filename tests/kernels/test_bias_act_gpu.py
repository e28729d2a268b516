"""bias_act's kernels on a real GPU."""

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

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

OPTIONS = {"gain": 1.5, "clamp": 4.0, "backend": "triton"}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_order_walk_and_layout(act, dtype):
    for shape in SHAPES.values():
        tensors = inputs(shape, dtype, "cuda")
        want = expected(*tensors, act=act, **OPTIONS)
        terms = tensors[0].numel() // shape[1]
        assert_close(all_orders(*tensors, act=act, **OPTIONS), want, dtype, terms)
        if len(shape) == 4:
            x, bias, dy, v = tensors
            x = x.to(memory_format=torch.channels_last)
            got = all_orders(x, bias, dy, v, act=act, **OPTIONS)
            assert got["y"].is_contiguous(memory_format=torch.channels_last)
            assert_close(got, want, dtype, terms)


@pytest.mark.parametrize("shared", [False, True], ids=["noise each", "noise shared"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_scaled_every_order_tile_and_layout(act, dtype, shared):
    for shape in (*SCALED_SHAPES.values(), (2, 96, 33, 64)):
        x, tensors = scaled_inputs(shape, dtype, "cuda", shared_noise=shared)
        want = scaled_expected(x, tensors, act=act, **OPTIONS)
        terms = x.numel() // min(shape[:2])
        assert_close(scaled_orders(x, tensors, act=act, **OPTIONS), want, dtype, terms)
        if len(shape) == 4:
            x = x.to(memory_format=torch.channels_last)
            got = scaled_orders(x, tensors, act=act, **OPTIONS)
            assert got["y"].is_contiguous(memory_format=torch.channels_last)
            assert_close(got, want, dtype, terms)
        for one in ("scale", "noise"):
            some = tensors | dict.fromkeys({"scale", "noise", "bias"} - {one})
            want_one = scaled_expected(x, some, act=act, **OPTIONS)
            assert_close(scaled_orders(x, some, act=act, **OPTIONS), want_one, dtype, terms)


def test_scaled_repeats_bit_for_bit():
    x, tensors = scaled_inputs((8, 128, 64, 64), torch.bfloat16, "cuda")
    first, again = (scaled_orders(x, tensors, act="silu", **OPTIONS) for _ in range(2))
    assert all(torch.equal(first[k], again[k]) for k in first)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_nan_passes_the_clamp(act):
    # The interpreter cannot show this: its minimum and maximum pass NaN where a GPU's do not.
    x = torch.tensor([[float("nan"), 1.0]], device="cuda")
    y = bias_act(x, act=act, clamp=0.5, backend="triton")
    assert y.isnan().tolist() == [[True, False]]


def test_empty():
    x = torch.zeros(0, 3, 5, 5, device="cuda", requires_grad=True)
    bias = torch.zeros(3, device="cuda", requires_grad=True)
    dx, db = torch.autograd.grad(bias_act(x, bias, act="silu", backend="triton").sum(), (x, bias))
    assert dx.shape == x.shape
    assert db.tolist() == [0.0] * 3


def test_beyond_32_bit_offsets():
    # 2³¹ elements and a few more: an offset in 32 bits would wrap to the tensor's beginning.
    free, _ = torch.cuda.mem_get_info()
    if free < 10 * 2**30:
        pytest.skip("needs 10 GiB of free GPU memory")
    for shape in ((2**16 + 1, 2**15), (2, 2, 2**29 + 16)):
        x = torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
        bias = torch.arange(shape[1], device="cuda").remainder(7).to(x.dtype)
        y = bias_act(x, bias, act="relu", backend="triton")
        assert torch.equal(y[-1].flatten(1)[:, -1] if y.ndim == 3 else y[-1], bias)
        assert torch.equal(y[0].flatten(1)[:, 0] if y.ndim == 3 else y[0], bias)
        del x, y
    # Positions that lie 2³¹ elements into a sample, and a sample that begins there.
    for shape in ((1, 2, 2**30 + 16), (2**15 + 1, 2**8, 2**8)):
        x = torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
        scale = torch.ones(shape[:2], dtype=x.dtype, device="cuda")
        bias = torch.arange(shape[1], device="cuda").remainder(7).to(x.dtype)
        y = bias_act(x, bias, scale=scale, act="relu", backend="triton")
        assert torch.equal(y[-1, :, -1], bias)
        assert torch.equal(y[0, :, 0], bias)
        del x, y


def test_compiled_by_inductor():
    x = torch.randn(4, 16, 32, 32, device="cuda", requires_grad=True)
    bias = torch.randn(16, device="cuda", requires_grad=True)
    layer = lambda x, b, backend: bias_act(x * 2, b, act="silu", backend=backend) + 1  # noqa: E731
    got = torch.compile(layer, fullgraph=True)(x, bias, "triton").square().sum()
    want = layer(x, bias, "reference").square().sum()
    for a, b in zip(torch.autograd.grad(got, (x, bias)), torch.autograd.grad(want, (x, bias))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_scaled_compiled_by_inductor():
    x, tensors = scaled_inputs((4, 16, 32, 32), device="cuda")
    leaves = [t.requires_grad_() for t in (x, *(tensors[k] for k in ("scale", "noise", "bias")))]

    def layer(x, scale, noise, bias, backend):
        y = bias_act(x * 2, bias, scale=scale, noise=noise, act="silu", backend=backend)
        return (y + 1).square().sum()

    got = torch.autograd.grad(torch.compile(layer, fullgraph=True)(*leaves, "triton"), leaves)
    want = torch.autograd.grad(layer(*leaves, "reference"), leaves)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_the_current_device_need_not_be_the_tensors():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x = torch.randn(4, 8, device="cuda:1")
    torch.testing.assert_close(
        bias_act(x, act="silu", backend="triton"), bias_act(x, act="silu", backend="reference")
    )
