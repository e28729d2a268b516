"""bias_act's kernels on a real GPU."""

import pytest
import torch
from bias_act_oracle import SHAPES, TOLERANCE, all_orders, assert_close, expected, inputs

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


def test_compiled_by_inductor():
    x = torch.randn(4, 16, 32, 32, device="cuda", requires_grad=True)
    bias = torch.randn(16, device="cuda", requires_grad=True)
    layer = lambda x, b, backend: bias_act(x * 2, b, act="silu", backend=backend) + 1  # noqa: E731
    got = torch.compile(layer, fullgraph=True)(x, bias, "triton").square().sum()
    want = layer(x, bias, "reference").square().sum()
    for a, b in zip(torch.autograd.grad(got, (x, bias)), torch.autograd.grad(want, (x, bias))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_current_device_need_not_be_the_tensors():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x = torch.randn(4, 8, device="cuda:1")
    torch.testing.assert_close(
        bias_act(x, act="silu", backend="triton"), bias_act(x, act="silu", backend="reference")
    )
