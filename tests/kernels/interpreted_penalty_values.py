"""squared_norm, interpolate, penalty_direction, minibatch_stddev: kernels against float64.

Not collected by name: `test_interpreted.py` runs it with TRITON_INTERPRET=1.
"""

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

from dgan_kernels import interpolate, minibatch_stddev, penalty_direction, squared_norm

every_dtype = pytest.mark.parametrize("dtype", STORED, ids=str)


@every_dtype
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_squared_norm_every_order(shape, dtype):
    x, v = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1)
    check_squared_norm(x, v, penalty_orders(x, v, "triton"))


@every_dtype
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_points_and_directions(shape, dtype):
    x = draw(*shape, dtype=dtype)
    x[0] /= 4 * x[0].numel() ** 0.5  # a norm below 1, where the one-sided penalty is 0
    check_point_and_direction(x, point_and_direction(x, "triton"))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout(layout):
    x, v = draw(2, 3, 5, 7), draw(2, 3, 5, 7, seed=1)
    strides = torch.empty_like(layout(x)).stride()
    for second in (v, layout(v)):
        got = penalty_orders(layout(x), second, "triton")
        check_squared_norm(x, v, got)
    points = point_and_direction(layout(x), "triton")
    check_point_and_direction(x, points)
    for options in ({"eps": 0.1}, {"num_channels": 3, "eps": 0.1}):
        check_stddev(x, v, stddev_orders(layout(x), v, "triton", **options), **options)
    if layout in (LAYOUTS["contiguous"], LAYOUTS["channels_last"], LAYOUTS["transposed"]):
        assert got["dx"].stride() == points["between"].stride() == strides
        assert points["one_sided=True"].stride() == strides
        assert (
            minibatch_stddev(layout(x), backend="triton").stride()[1:]
            == tuple(layout(draw(2, 4, 5, 7)).stride()[1:])
            or layout is LAYOUTS["transposed"]
        )


@pytest.mark.parametrize("shape", [(0, 4), (0, 3, 5, 5), (2, 3, 0, 4)])
def test_empty(shape):
    x = torch.zeros(shape, requires_grad=True)
    s = squared_norm(x, backend="triton")
    (dx,) = torch.autograd.grad(s.sum(), x, create_graph=True)
    assert torch.equal(s, torch.zeros(shape[0]))
    assert torch.autograd.grad(dx.square().sum(), x)[0].shape == dx.shape == x.shape
    n, g = torch.zeros(shape[0]), x.detach()
    assert interpolate(g, g, n, backend="triton").shape == x.shape
    assert penalty_direction(g, n, "one_centered", backend="triton").shape == x.shape
    y = minibatch_stddev(x, backend="triton")
    assert y.shape == (shape[0], shape[1] + 1, *shape[2:])
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("one_sided", [False, True])
def test_zero_has_direction_zero_and_nan_stays(one_sided):
    gradient = torch.tensor([[0.0, 0.0], [float("nan"), 3.0], [3.0, 4.0]])
    squares = squared_norm(gradient, backend="triton")
    assert squares.isnan().tolist() == [False, True, False]
    u = penalty_direction(gradient, squares, "one_centered", one_sided=one_sided, backend="triton")
    assert u[0].tolist() == [0.0, 0.0]
    assert u[1].isnan().all()
    torch.testing.assert_close(u[2], torch.tensor([4.8, 6.4]))


def test_the_ends_of_an_interpolation_are_exact():
    real, fake = draw(2, 300), 1e4 * draw(2, 300, seed=1)
    got = interpolate(real, fake, torch.tensor([0.0, 1.0]), backend="triton")
    assert torch.equal(got[0], fake[0])
    assert torch.equal(got[1], real[1])


def test_sums_of_16_bits_do_not_overflow():
    x = torch.full((1, 9000), 200.0, dtype=torch.float16)
    assert squared_norm(x, backend="triton").tolist() == [9000 * 200.0**2]


STDDEV = {
    "one_sample": ((1, 3, 2, 2), {}),
    "divides": ((8, 17, 3, 3), {}),
    "reduced_to_3": ((6, 3, 5), {}),
    "prime": ((5, 4, 3, 3), {}),
    "one_channel": ((4, 1, 3, 3), {}),
    "vectors": ((12, 6), {"group_size": 12, "num_channels": 2}),
    "several_blocks": ((4, 17, 9, 11), {"eps": 1e-4}),  # 1,683 features in blocks of 512
    # Of two samples σ = |a| has no curvature: its terms, of size 1/σ, cancel, so bound them.
    "pairs_and_sets": ((6, 6, 5, 3), {"group_size": 2, "num_channels": 3, "eps": 0.1}),
    "beyond_the_kernels": ((65, 2), {"group_size": 65}),
}


@every_dtype
@pytest.mark.parametrize(("shape", "options"), STDDEV.values(), ids=STDDEV.keys())
def test_minibatch_stddev_every_order(shape, options, dtype):
    x, v = 2 * draw(*shape, dtype=dtype) + 3, draw(*shape, dtype=dtype, seed=1)
    if options.get("eps", 1e-8) < 1e-6 and shape[0] > 1:
        x[0] += 1  # two equal values would make 1/σ³ of 10¹²
    check_stddev(x, v, stddev_orders(x, v, "triton", **options), **options)


def test_equal_samples_have_the_deviation_of_eps():
    x = torch.full((4, 3, 2, 2), 7.0, requires_grad=True)
    y = minibatch_stddev(x, backend="triton")
    assert torch.allclose(y[:, 3], torch.tensor(1e-4))
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert torch.equal(dx, torch.ones_like(x))
    (h,) = torch.autograd.grad(dx.square().sum(), x)
    assert torch.equal(h, torch.zeros_like(x))


def test_nan_of_one_sample_is_its_groups():
    x = draw(4, 3)
    x[1, 1] = float("nan")
    y = minibatch_stddev(x, group_size=2, backend="triton")
    assert y[:, 3].isnan().tolist() == [False, True, False, True]


def test_repeats_bit_for_bit():
    x, v = draw(2, 3, 53, 61), draw(2, 3, 53, 61, seed=1)
    for orders in (penalty_orders, stddev_orders):
        first, again = (orders(x, v, "triton") for _ in range(2))
        assert all(torch.equal(first[k], again[k]) for k in first)
