"""norm_act's kernels on a real GPU."""

import pytest
import torch
from norm_act_oracle import AFFINE, CASES, TOLERANCE, all_orders, assert_close, expected, inputs

from dgan_kernels import norm_act
from dgan_kernels.reference import ACTIVATIONS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

# Sizes of real networks: groups on the chip, at its edge, and beyond it.
LARGE = {
    "instance 64x64": ((4, 32, 64, 64), {"norm": "instance"}),
    "instance 128x128": ((2, 16, 128, 128), {"norm": "instance"}),
    "group of 8192": ((2, 64, 16, 16), {"norm": "group", "groups": 2}),
    "group in two sweeps": ((2, 64, 33, 31), {"norm": "group", "groups": 2}),
    "layer": ((4, 300, 1152), {"norm": "layer"}),
    "wide layer": ((8, 40, 8192), {"norm": "layer"}),
    "wider layer": ((4, 5, 10000), {"norm": "rms"}),
    "pixel": ((4, 512, 32, 32), {"norm": "pixel"}),
    "batch": ((8, 48, 65, 65), {"norm": "batch"}),
}


def check(shape, options, affine, act, dtype):
    tensors = inputs(shape, options, affine, dtype, "cuda")
    got = all_orders(*tensors, act=act, backend="triton", **options)
    want = expected(tensors, act=act, **options)
    assert_close(got, want, dtype, terms=tensors[0].numel())
    again = all_orders(*tensors, act=act, backend="triton", **options)
    assert all(torch.equal(got[name], again[name]) for name in got)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_norm_affine_and_order(act, dtype):
    for shape, options in CASES.values():
        for affine in AFFINE:
            check(shape, options, affine, act, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("act", ["leaky_relu", "silu"])
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE.keys())
def test_sizes_of_real_networks(case, act, dtype):
    for affine in ("none", "shared", "per_sample"):
        check(*case, affine, act, dtype)


def test_beyond_32_bit_offsets():
    # 2³¹ elements and a few more: an offset in 32 bits would wrap to the tensor's beginning.
    free, _ = torch.cuda.mem_get_info()
    if free < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    for shape in ((2**18 + 1, 2, 64, 64), (2, 2, 2**29 + 16)):
        x = torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
        last = x[-1, -1].view(-1)
        last[0] = 1
        y = norm_act(x, norm="instance", backend="triton")
        want = norm_act(last[None, None].float(), norm="instance", backend="reference").to(y.dtype)
        torch.testing.assert_close(y[-1, -1].view(-1), want[0, 0])
        assert not y[0].any()
        del x, y


def test_compiled_by_inductor():
    x = torch.randn(4, 16, 32, 32, device="cuda", requires_grad=True)
    weight, bias = (torch.randn(16, device="cuda", requires_grad=True) for _ in range(2))
    leaves = (x, weight, bias)

    def layer(x, weight, bias, backend):
        options = {"norm": "group", "groups": 4, "act": "silu", "backend": backend}
        return norm_act(x * 2, weight, bias, **options) + 1

    got = torch.compile(layer, fullgraph=True)(*leaves, "triton").square().sum()
    want = layer(*leaves, "reference").square().sum()
    for a, b in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
