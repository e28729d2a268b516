"""What the tangent pass replaces, as discriminators use it: frozen, strided, recomputed, in place.

Always one call of each operator: `test_operators.py` has the others.
"""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from around import Around, Case, Operator, name_of
from cheaper_cases import CHEAPER_CASES
from each_operator import EACH, each, on_many
from exactness import numbers, parameter_gradient, penalty_gradient, relative, written_out
from operator_cases import BATCH_NORM, CASES, INSTANCE_NORM, LAYER_NORM
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from dgan.objectives.forward_mode import value_and_tangent
from dgan.objectives.operators import CHEAPER, differentiable_tangents
from dgan.objectives.penalties import gradient_penalty
from dgan.objectives.smooth import smooth_activations
from dgan.parallel.recompute import recompute


@each
def test_inside_what_is_recomputed(operator: Operator, case: Case) -> None:
    network, x = nn.Sequential(Around(operator, case)), numbers(*case.shape, seed=9)
    wanted = penalty_gradient(network, x, "double")
    recompute(network, blocks=[network[0]])
    assert relative(penalty_gradient(network, x, "forward"), wanted) < 1e-12


@each
@pytest.mark.parametrize("frozen", [("weight",), ("bias",), ("a", "weight", "bias")])
def test_frozen_parameters(operator: Operator, case: Case, frozen: tuple[str, ...]) -> None:
    network, x = Around(operator, case), numbers(*case.shape, seed=9)
    for name in frozen:
        network.get_parameter(name).requires_grad_(False)
    wanted = penalty_gradient(network, x, "double")
    assert relative(penalty_gradient(network, x, "forward"), wanted) < 1e-12


def reversed_strides(x: Tensor) -> Tensor:
    order = list(range(x.ndim))[::-1]
    return x.permute(order).contiguous().permute(order)


def sliced(x: Tensor) -> Tensor:
    return torch.stack((x, -x), -1)[..., 0]


@each
@pytest.mark.parametrize("arrange", [reversed_strides, sliced])
def test_inputs_that_are_not_contiguous(operator: Operator, case: Case, arrange: Any) -> None:
    network, x = Around(operator, case), numbers(*case.shape, seed=9)
    wanted = penalty_gradient(network, x, "double")
    with torch.no_grad():
        network.a.set_(arrange(network.a))
    assert relative(penalty_gradient(network, arrange(x), "forward"), wanted) < 1e-12


CHANNELS_LAST = [
    (F.conv2d, CHEAPER_CASES[F.conv2d][1]),
    (F.group_norm, CHEAPER_CASES[F.group_norm][1]),
    (F.instance_norm, INSTANCE_NORM[1]),
    (F.batch_norm, BATCH_NORM[3]),
    *((op, CHEAPER_CASES[torch.add][3]) for op in (torch.add, torch.mul)),
    (torch.mul, Case("channels", (4, 3, 2, 5), lambda h, w, b: ((h, w), {}), (3, 1, 1))),
    (F.silu, Case("plain", (4, 3, 2, 5), lambda h, w, b: ((h * w,), {}), (3, 1, 1))),
]


@pytest.mark.parametrize(("operator", "case"), CHANNELS_LAST)
def test_channels_last(operator: Operator, case: Case) -> None:
    network, x = Around(operator, case), numbers(*case.shape, seed=9)
    wanted = penalty_gradient(network, x, "double")
    if x.ndim == 4:
        x = x.to(memory_format=torch.channels_last)
    assert relative(penalty_gradient(network, x, "forward"), wanted) < 1e-12


@each
def test_expanded_samples_and_directions(operator: Operator, case: Case) -> None:
    """All of one value, in memory once."""
    network = Around(operator, case)
    x, direction = numbers(1, *case.shape[1:], seed=9), numbers(1, *case.shape[1:], seed=8)
    x, direction = x.expand(case.shape), direction.expand(case.shape)
    _, wanted = value_and_tangent(network, x.clone(), direction.clone())
    _, found = value_and_tangent(network, x, direction)
    wanted, found = (parameter_gradient(network, t.square().sum()) for t in (wanted, found))
    assert relative(found, wanted) < 1e-12


class ThenInPlace(nn.Module):
    """What an operator gives is changed in place, and what it took is used again."""

    def __init__(self, operator: Operator, case: Case) -> None:
        super().__init__()
        self.around = Around(operator, case)

    def forward(self, x: Tensor) -> Tensor:
        h = (self.around.a * x).tanh() * 1.5
        args, kwargs = self.around.case.call(h, self.around.weight, self.around.bias)
        y = self.around.operator(*args, **kwargs)
        y.mul_(2).sin_()
        return (self.around.c * y.flatten(1).sum(1) * h.flatten(1).sum(1)).tanh()


IN_PLACE = {
    **{operator: case for operator, case in EACH.items() if operator is not torch.softmax},
    F.layer_norm: LAYER_NORM[4],
    F.instance_norm: INSTANCE_NORM[0],
    F.batch_norm: BATCH_NORM[3],
    F.group_norm: CHEAPER_CASES[F.group_norm][1],
    F.rms_norm: CHEAPER_CASES[F.rms_norm][1],
}
"""PyTorch's softmax keeps its output too; for the norms, without the copy that a scale makes."""


@pytest.mark.parametrize(("operator", "case"), IN_PLACE.items(), ids=map(name_of, IN_PLACE))
def test_results_may_be_changed_in_place(operator: Operator, case: Case) -> None:
    network, x = ThenInPlace(operator, case), numbers(*case.shape, seed=9)
    wanted = penalty_gradient(network, x, "double")
    assert relative(penalty_gradient(network, x, "forward"), wanted) < 1e-12


@each
def test_without_gradients(operator: Operator, case: Case) -> None:
    """Value and tangent are there under no_grad, and the tangent is the derivative."""
    network, x, direction = (
        Around(operator, case),
        numbers(*case.shape),
        numbers(*case.shape, seed=1),
    )
    with torch.no_grad(), written_out():
        value, tangent = value_and_tangent(network, x, direction)
        h = 1e-6
        slope = (network(x + h * direction) - network(x - h * direction)) / (2 * h)
    assert relative(value, network(x).detach()) < 1e-12
    assert relative(tangent, slope) < 1e-7


@pytest.mark.parametrize("recomputed", [False, True])
def test_rounded_kinks_stay_rounded(recomputed: bool) -> None:
    """Where leaky ReLU is softplus for a while, its own rule has no say."""
    network = nn.Sequential(Around(F.leaky_relu, EACH[F.leaky_relu]))
    x = network[0].input()
    with smooth_activations():
        wanted = penalty_gradient(network, x, "double")
        if recomputed:
            recompute(network, blocks=[network[0]])
        assert relative(penalty_gradient(network, x, "forward"), wanted) < 1e-12
    assert relative(penalty_gradient(network, x, "forward"), wanted) > 1e-3


class ChangesItsArgument(nn.Module):
    """An activation in place, or the same one and the name given to what it returns."""

    def __init__(self, operator: Operator, *, in_place: bool) -> None:
        super().__init__()
        self.operator, self.in_place = operator, in_place
        self.a = nn.Parameter(numbers(6, seed=1))

    def forward(self, x: Tensor) -> Tensor:
        h = 3 * (self.a * x).tanh()
        if self.in_place:
            self.operator(h, inplace=True)
        else:
            h = self.operator(h)
        return h.sin().sum(1)


@pytest.mark.parametrize("operator", [F.leaky_relu, F.silu, F.hardsigmoid], ids=name_of)
def test_in_place_changes_the_argument(operator: Operator) -> None:
    found, wanted = (
        penalty_gradient(ChangesItsArgument(operator, in_place=in_place), numbers(4, 6), "forward")
        for in_place in (True, False)
    )
    assert relative(found, wanted) < 1e-12


BY_HAND = [F.layer_norm, torch.softmax, F.leaky_relu, F.gelu, F.silu, F.group_norm, F.rms_norm]


@pytest.mark.parametrize("operator", BY_HAND, ids=name_of)
def test_a_third_derivative_is_refused(operator: Operator) -> None:
    """The hand-written backwards are first-order: no silent second one."""
    network = Around(operator, EACH[operator])
    loss = gradient_penalty(network, network.input(), method="forward").loss
    with pytest.raises(NotImplementedError, match=r"create_graph=True.*method='double'"):
        torch.autograd.grad(loss, network.a, create_graph=True)


class Work(TorchDispatchMode):
    """How many bytes operators allocated."""

    def __init__(self) -> None:
        super().__init__()
        self.allocated = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and not func._schema.is_mutable:
            outputs = result if isinstance(result, (tuple, list)) else (result,)
            self.allocated += sum(t.nbytes for t in outputs if isinstance(t, Tensor))
        return result


def bytes_of(operator: Operator, case: Case, *, replaced: bool) -> tuple[int, int]:
    """What a pass and its backward allocate, and what the graph keeps in between."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not tensor._is_zerotensor():
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    h, tangent = (numbers(*case.shape, seed=seed).requires_grad_() for seed in (1, 2))
    weight, bias = (numbers(*case.affine, seed=seed).requires_grad_() for seed in (3, 4))
    replacing = differentiable_tangents() if replaced else nullcontext()
    with Work() as work, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        with forward_ad.dual_level():
            args, kwargs = case.call(forward_ad.make_dual(h, tangent), weight, bias)
            with replacing:
                outputs = forward_ad.unpack_dual(operator(*args, **kwargs))
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    return work.allocated, sum(kept.values())


@pytest.mark.parametrize("operator", CHEAPER, ids=name_of)
def test_each_cheaper_rule_is_cheaper(operator: Operator) -> None:
    """A canary: a rule that saves nothing over PyTorch's forward mode is not needed."""
    case = on_many(CHEAPER_CASES[operator][0])
    found, wanted = (bytes_of(operator, case, replaced=replaced) for replaced in (True, False))
    assert found[0] < wanted[0] or found[1] < wanted[1], (found, wanted)
    assert CASES.keys().isdisjoint(CHEAPER)
