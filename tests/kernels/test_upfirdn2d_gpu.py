"""The upfirdn2d kernel on a real GPU."""

import pytest
import torch
from upfirdn2d_oracle import (
    CASES,
    SMOOTH,
    TOLERANCE,
    assert_close,
    channels_last,
    composed,
    draw,
    fused_orders,
    linear_expected,
    linear_orders,
)

from dgan_kernels import upfirdn2d, upsample2d

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_case_order_and_dtype(case, dtype):
    filter, options = case
    filter = None if filter is None else filter.cuda()
    for shape in ((2, 3, 9, 7), (1, 17, 33, 131), (2, 64, 16, 16)):
        x = draw(*shape).to("cuda", dtype)
        for image in (x, channels_last(x)):
            got = linear_orders(image, filter, **options)
            assert_close(got, linear_expected(image, filter, **options), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("act", ["leaky_relu", "silu"])
def test_epilogue(act, dtype):
    filter, options = SMOOTH.cuda(), {"up": 2, "padding": [2, 1, 2, 1], "gain": 4.0}
    for shape in ((2, 3, 9, 7), (2, 64, 16, 16)):
        x, bias = draw(*shape).to("cuda", dtype), draw(shape[1], seed=3).to("cuda", dtype)
        want = fused_orders(
            x.double(), bias.double(), filter, composed(filter, {"act": act}, **options)
        )
        for image in (x, channels_last(x)):
            layer = lambda x, b: upfirdn2d(  # noqa: E731
                x, filter, bias=b, act=act, backend="triton", **options
            )
            got = fused_orders(image, bias, filter, layer)
            if act == "leaky_relu":
                # Where z is rounded across the corner the slopes differ: values are compared.
                got, want = ({k: r[k] for k in ("y", "d_x", "d_b")} for r in (got, want))
            assert_close(got, want, dtype, roundings=4)


def test_beyond_32_bit_offsets():
    # 2³¹ elements and a few more: an offset in 32 bits would wrap to the tensor's beginning.
    free, _ = torch.cuda.mem_get_info()
    if free < 10 * 2**30:
        pytest.skip("needs 10 GiB of free GPU memory")
    for shape, order in (
        ((2, 1, 2**15 + 1, 2**15), torch.contiguous_format),
        ((1, 64, 2**12 + 1, 2**13), torch.channels_last),
    ):
        x = torch.zeros(shape, dtype=torch.bfloat16, device="cuda").to(memory_format=order)
        x[-1, -1, -1, -1] = 1
        y = upfirdn2d(x, gain=2.0, backend="triton")
        assert y[-1, -1, -1, -1] == 2
        assert y.count_nonzero() == 1
        del x, y


def test_compiled_by_inductor():
    x = torch.randn(4, 16, 32, 32, device="cuda", requires_grad=True)
    filter = SMOOTH.cuda()
    layer = lambda x, b: upsample2d(x * 2, filter, act="silu", backend=b) + 1  # noqa: E731
    got = torch.compile(layer, fullgraph=True)(x, "triton").square().sum()
    want = layer(x, "reference").square().sum()
    torch.testing.assert_close(*(torch.autograd.grad(t, x)[0] for t in (got, want)))


def test_the_current_device_need_not_be_the_tensors():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x, filter = torch.randn(1, 8, 4, 4, device="cuda:1"), SMOOTH.to("cuda:1")
    results = [upsample2d(x, filter, backend=b) for b in ("triton", "reference")]
    torch.testing.assert_close(*results)
