"""What the tangent pass replaces, under autocast and in bfloat16."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from around import Around, Case, Operator, name_of
from cheaper_cases import CHEAPER_CASES
from each_operator import each, on_many
from exactness import numbers, penalty_gradient, relative
from torch import Tensor, nn
from torch.autograd import forward_ad

from dgan.objectives.operators import differentiable_tangents


class Narrow(nn.Module):
    """The operator on what a bfloat16 convolution or linear map gives."""

    def __init__(self, operator: Operator, case: Case) -> None:
        super().__init__()
        self.around, self.seen = Around(operator, case), []
        self.map = nn.Linear(case.shape[-1], case.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        h = self.map(x)
        args, kwargs = self.around.case.call(h, self.around.weight, self.around.bias)
        y = self.around.operator(*args, **kwargs)
        self.seen.append(y.dtype)
        return (self.around.c * y.float().tanh()).flatten(1).sum(1)


PRODUCTS = {*CHEAPER_CASES} - {F.leaky_relu, F.gelu, F.silu, F.group_norm, F.rms_norm}
PRODUCTS -= {torch.group_norm, torch.rms_norm, torch.mul, Tensor.mul, torch.add, Tensor.add}
FLOAT32 = {F.layer_norm, F.group_norm, torch.group_norm, F.rms_norm, torch.rms_norm, torch.softmax}


@each
def test_autocast(operator: Operator, case: Case) -> None:
    """As near to float64 as double backward under autocast comes."""
    case = on_many(case)
    network, x = Narrow(operator, case).float(), numbers(*case.shape, seed=9)
    wanted = penalty_gradient(copy.deepcopy(network).double(), x, "double")
    found = {}
    for method in ("double", "forward"):
        network.seen.clear()
        with torch.autocast("cpu", torch.bfloat16):
            found[method] = penalty_gradient(network, x.float(), method).double()
    if operator in PRODUCTS:
        assert network.seen == [torch.bfloat16] * 2
    if operator in FLOAT32:
        assert network.seen[1] == torch.float32
    errors = {method: relative(gradient, wanted) for method, gradient in found.items()}
    assert 1e-5 < errors["double"] < 0.1, "is autocast on?"
    assert errors["forward"] < 1.5 * errors["double"]


@each
def test_in_bfloat16_altogether(operator: Operator, case: Case) -> None:
    """The dtype stays, as FSDP2's mixed precision has it."""
    case = on_many(case)
    network, x = Narrow(operator, case), numbers(*case.shape, seed=9)
    wanted = penalty_gradient(network.double(), x, "double")
    network.bfloat16()
    network.seen.clear()
    double, forward = (
        penalty_gradient(network, x.bfloat16(), method).double() for method in ("double", "forward")
    )
    assert set(network.seen) == {torch.bfloat16}
    assert relative(forward, wanted) < 1.5 * relative(double, wanted)


NORMS = {
    F.layer_norm: ((8,), 1),
    F.group_norm: (2, 1),
    F.rms_norm: ((8,), None),
}


@pytest.mark.parametrize("operator", NORMS, ids=name_of)
def test_float32_scales_leave_the_dtype(operator: Operator) -> None:
    """As PyTorch on a CPU and under autocast; what follows expects bfloat16."""
    constant, bias = NORMS[operator]
    x, weight = numbers(4, 8).bfloat16(), torch.ones(8)
    arguments = (constant, weight) if bias is None else (constant, weight, weight)
    with forward_ad.dual_level(), differentiable_tangents():
        y = operator(forward_ad.make_dual(x, x), *arguments)
        assert y.dtype == forward_ad.unpack_dual(y).tangent.dtype == torch.bfloat16


@pytest.mark.parametrize("operator", NORMS, ids=name_of)
def test_statistics_are_taken_in_float32(operator: Operator) -> None:
    """Far from 0, where bfloat16 has few digits, only what goes in and out is rounded."""
    x = (numbers(64, 8) + 10).bfloat16()
    direction = numbers(64, 8, seed=1).bfloat16()

    def both(dtype: torch.dtype) -> list[Tensor]:
        with forward_ad.dual_level(), differentiable_tangents():
            dual = forward_ad.make_dual(x.to(dtype), direction.to(dtype))
            return [t.double() for t in forward_ad.unpack_dual(operator(dual, NORMS[operator][0]))]

    for found, wanted in zip(both(torch.bfloat16), both(torch.float64)):
        assert relative(found, wanted) < 2**-8


@pytest.mark.parametrize("operator", [F.gelu, partial(F.gelu, approximate="tanh"), F.silu])
def test_activations_of_large_float16(operator: Operator) -> None:
    """300² is beyond float16."""
    x = torch.tensor([-300.0, -3, 3, 300], dtype=torch.float16, requires_grad=True)
    with forward_ad.dual_level(), differentiable_tangents():
        pair = forward_ad.unpack_dual(operator(forward_ad.make_dual(x, torch.ones_like(x))))
    (gradient,) = torch.autograd.grad(pair, x, [torch.ones_like(x)] * 2)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient[::3], torch.tensor([0.0, 1], dtype=torch.float16))
