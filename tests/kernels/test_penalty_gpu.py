"""The kernels of gradient penalties and minibatch_stddev on a real GPU."""

import pytest
import torch
from penalty_oracle import (
    LAYOUTS,
    SHAPES,
    STORED,
    check_point_and_direction,
    check_squared_norm,
    check_stddev,
    draw,
    penalty_orders,
    point_and_direction,
    stddev_orders,
)

from dgan_kernels import interpolate, minibatch_stddev, squared_norm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_order(shape, dtype):
    x, v = (draw(*shape, dtype=dtype, seed=s, device="cuda") for s in (0, 1))
    check_squared_norm(x, v, penalty_orders(x, v, "triton"))
    check_point_and_direction(x, point_and_direction(x, "triton"))
    check_stddev(x, v, stddev_orders(x, v, "triton", eps=0.1), eps=0.1)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout(layout):
    x, v = (draw(2, 3, 5, 7, seed=s, device="cuda") for s in (0, 1))
    check_squared_norm(x, v, penalty_orders(layout(x), v, "triton"))
    check_point_and_direction(x, point_and_direction(layout(x), "triton"))
    check_stddev(x, v, stddev_orders(layout(x), v, "triton", eps=0.1), eps=0.1)


def test_nan_stays_and_zero_has_direction_zero():
    # The interpreter's comparisons are numpy's; these are a GPU's.
    x = torch.tensor([[0.0, 0.0], [float("nan"), 3.0], [3.0, 4.0]], device="cuda")
    for name, u in point_and_direction(x, "triton").items():
        if name != "between":
            assert u[0].tolist() == [0.0, 0.0]
            assert u[1].isnan().all()


def test_repeats_bit_for_bit():
    x, v = (draw(16, 3, 128, 128, seed=s, device="cuda") for s in (0, 1))
    for orders in (penalty_orders, stddev_orders):
        first, again = (orders(x, v, "triton") for _ in range(2))
        assert all(torch.equal(first[k], again[k]) for k in first)


def test_beyond_32_bit_offsets():
    free, _ = torch.cuda.mem_get_info()
    if free < 14 * 2**30:
        pytest.skip("needs 14 GiB of free GPU memory")
    for shape in ((3, 2**30), (1, 2**31 + 16)):  # many long rows, and one beyond 2³¹ elements
        x = torch.zeros(shape, dtype=torch.bfloat16, device="cuda").requires_grad_()
        x.data[-1, -1] = 3.0
        s = squared_norm(x, backend="triton")
        assert s.tolist() == [0.0] * (shape[0] - 1) + [9.0]
        (dx,) = torch.autograd.grad(s.sum(), x)
        assert dx[-1, -1] == 6
        assert dx[0, 0] == 0
        del dx
        mix = torch.ones(shape[0], device="cuda")
        assert interpolate(x, x, mix, backend="triton")[-1, -1] == 3


def test_compiled_by_inductor():
    def loss(x, backend):
        y = minibatch_stddev(x * 2, backend=backend)
        return squared_norm(y, backend=backend).sqrt().sum()

    x = draw(8, 16, 16, 16, device="cuda").requires_grad_()
    (got,) = torch.autograd.grad(torch.compile(loss, fullgraph=True)(x, "triton"), x)
    (want,) = torch.autograd.grad(loss(x, "reference"), x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_the_current_device_need_not_be_the_tensors():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x = draw(4, 8, device="cuda:1")
    torch.testing.assert_close(
        squared_norm(x, backend="triton"), squared_norm(x.cpu()).to(x.device)
    )
