"""What the tangent pass replaces, against double backward and against PyTorch's own operators."""

import pytest
import torch
import torch.nn.functional as F
from around import Around, Case, Operator, name_of
from cheaper_cases import CHEAPER_CASES
from exactness import first, numbers, parameter_gradient, penalty_gradient, relative, written_out
from operator_cases import CASES as WRONG_CASES
from operator_cases import GLU, NATIVE_SOFTMAX, SILENTLY_WRONG, TOLERANCE
from torch import Tensor
from torch.autograd import forward_ad

from dgan.objectives.operators import CHEAPER, COMPOSITES, OPERATORS, differentiable_tangents

WRONG = [*OPERATORS, *COMPOSITES]
TABLE = [*WRONG, *CHEAPER]
CASES = {**WRONG_CASES, **CHEAPER_CASES}
EVERY_CASE = [
    pytest.param(operator, case, id=f"{index}-{name_of(operator)}-{case.name}")
    for index, operator in enumerate(TABLE)
    for case in CASES.get(operator, ())
]


def test_every_entry_of_the_table_has_a_case() -> None:
    missing = [name_of(operator) for operator in TABLE if not CASES.get(operator)]
    assert not missing, f"give these operators of the table a case here: {missing}"
    extra = [name_of(operator) for operator in CASES if operator not in TABLE]
    assert not extra, f"these cases belong to no operator of the table: {extra}"


@pytest.mark.parametrize(("operator", "case"), EVERY_CASE)
def test_the_replacement_equals_the_operator(operator: Operator, case: Case) -> None:
    """Value, first derivatives and what happens to running statistics."""
    results = []
    for replaced in (False, True):
        h = numbers(*case.shape, seed=9).requires_grad_()
        weight = (1 + numbers(*case.affine, seed=3) / 2).requires_grad_()
        bias = (numbers(*case.affine, seed=4) / 2).requires_grad_()
        args, kwargs = case.call(h, weight, bias)
        torch.manual_seed(3)
        with written_out():
            if replaced:
                with differentiable_tangents():
                    output = first(operator(*args, **kwargs))
            else:
                output = first(operator(*args, **kwargs))
        seen = torch.autograd.grad(
            (output * numbers(*output.shape, seed=7)).sum(),
            (h, weight, bias),
            materialize_grads=True,
            allow_unused=True,
        )
        left = [a for a in args if isinstance(a, Tensor) and not a.requires_grad]
        results.append([output, *seen, *left])
    for found, wanted in zip(results[1], results[0], strict=True):
        tolerance = TOLERANCE.get(operator, 1e-12)
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "operator", [op for op in TABLE if "softmax" in name_of(op) or "softmin" in name_of(op)]
)
def test_softmax_in_another_dtype(operator: Operator) -> None:
    if operator is F.gumbel_softmax:
        pytest.skip("gumbel_softmax takes no dtype")
    x = numbers(4, 6).float()
    wanted = operator(x, -1, dtype=torch.float64)
    with differentiable_tangents():
        results = [operator(x, -1, dtype=torch.float64)]
        if CASES[operator] is NATIVE_SOFTMAX:
            results.append(operator(x, -1, torch.float64))
    for found in results:
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("operator", "case"), EVERY_CASE)
def test_the_penalty_equals_double_backward(operator: Operator, case: Case) -> None:
    # PyTorch cannot differentiate hardsigmoid twice: by hand, x/6 + 1/2 between 0 and 1.
    by_hand = {F.hardsigmoid: lambda x: (x / 6 + 0.5).clamp(0, 1)}
    network, x = Around(operator, case), numbers(*case.shape, seed=9)
    wanted = penalty_gradient(Around(by_hand.get(operator, operator), case), x, "double")
    error = relative(penalty_gradient(network, x, "forward"), wanted)
    assert error < TOLERANCE.get(operator, 1e-12)


def left_to_pytorch(network: Around) -> Tensor | None:
    """The penalty's gradient by PyTorch's own forward mode; None where it raises."""
    x = network.input().requires_grad_()
    with written_out():
        torch.manual_seed(3)
        (gradient,) = torch.autograd.grad(network(x).sum(), x)
        torch.manual_seed(3)
        try:
            with forward_ad.dual_level():
                dual = network(forward_ad.make_dual(x.detach(), gradient))
                tangent = forward_ad.unpack_dual(dual).tangent
            assert tangent is not None
            return parameter_gradient(network, tangent.sum() / len(x))
        except (RuntimeError, NotImplementedError):
            return None


@pytest.mark.parametrize("operator", WRONG, ids=name_of)
def test_pytorch_itself_still_fails(operator: Operator) -> None:
    """A canary: what fails here needs no replacement any more."""
    case = CASES[operator][0]
    found = left_to_pytorch(Around(operator, case))
    fixed = f"torch {torch.__version__} fixed {name_of(operator)}: remove it from the table"
    if operator in SILENTLY_WRONG:
        wanted = penalty_gradient(Around(operator, case), numbers(*case.shape, seed=9), "double")
        assert found is None or relative(found, wanted) > 1e-3, fixed
    else:
        assert found is None, fixed


def test_the_canary_sees_an_operator_that_is_right() -> None:
    case = GLU[0]
    network = Around(F.silu, case)
    found = left_to_pytorch(network)
    assert found is not None
    assert relative(found, penalty_gradient(network, network.input(), "double")) < 1e-10
