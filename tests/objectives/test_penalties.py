"""Gradient penalties against closed forms and finite differences, in float64."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import dgan
from dgan.networks import build
from dgan.objectives.penalties import gradient_penalty
from dgan.parallel import shard
from dgan.parallel.world import launch

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Hidden(nn.Module):
    """v · tanh(W x + b), whose gradient with respect to x is Wᵀ (v ∘ (1 − tanh²))."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(numbers(7, 5, seed=1))
        self.b = nn.Parameter(numbers(7, seed=2))
        self.v = nn.Parameter(numbers(7, seed=3))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w.T + self.b).tanh() @ self.v

    def gradient(self, x: Tensor) -> Tensor:
        return (self.v * (1 - (x @ self.w.T + self.b).tanh() ** 2)) @ self.w


def by_hand(gradient: Tensor, kind: str) -> Tensor:
    r = gradient.flatten(1).norm(dim=1)
    return (r**2).mean() / 2 if kind == "zero_centered" else ((r - 1) ** 2).mean()


@pytest.mark.parametrize("method", ["auto", "double"])
@pytest.mark.parametrize("kind", ["zero_centered", "one_centered"])
def test_hidden_layer_equals_the_differentiated_formula(kind: Any, method: Any) -> None:
    network, x = Hidden(), numbers(6, 5)
    output = dgan.gradient_penalty(network, x, kind=kind, method=method)
    expected = by_hand(network.gradient(x), kind)
    torch.testing.assert_close(output.loss, expected, **EXACT)
    torch.testing.assert_close(output.logits, network(x), **EXACT)
    torch.testing.assert_close(output.norms, network.gradient(x).norm(dim=1).detach(), **EXACT)
    assert not output.norms.requires_grad
    parameters = list(network.parameters())
    found = torch.autograd.grad(output.loss, parameters)
    # One ordinary backward through the formula: no second derivative of anything.
    for result, wanted in zip(found, torch.autograd.grad(expected, parameters)):
        torch.testing.assert_close(result, wanted, **EXACT)


def test_linear_and_quadratic_by_pencil() -> None:
    x = numbers(4, 3)
    w = torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64, requires_grad=True)
    output = gradient_penalty(lambda x: x @ w, x)
    assert output.loss.item() == pytest.approx(12.5)
    assert output.norms.tolist() == pytest.approx([5.0] * 4)
    assert torch.autograd.grad(output.loss, w)[0].tolist() == pytest.approx([3.0, 0.0, 4.0])
    output = gradient_penalty(lambda x: x @ w, x, kind="one_centered")
    assert output.loss.item() == pytest.approx(16.0)
    # d(r − 1)² = 2 (r − 1) w / r
    assert torch.autograd.grad(output.loss, w)[0].tolist() == pytest.approx([4.8, 0.0, 6.4])
    # D = ½ Σ aⱼxⱼ²: ∇D = a∘x, penalty ½ mean Σ aⱼ²xⱼ², its derivative aⱼ mean xⱼ².
    a = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    output = gradient_penalty(lambda x: 0.5 * (a * x**2).sum(1), x)
    assert output.loss.item() == pytest.approx((a * x).square().sum().item() / 8)
    expected = a.detach() * (x**2).mean(0)
    torch.testing.assert_close(torch.autograd.grad(output.loss, a)[0], expected, **EXACT)


def test_one_centered_where_the_gradient_vanishes() -> None:
    """A square root's derivative is infinite at 0: such a sample must add (0 − 1)² and no NaN."""
    a = torch.tensor([2.0, 0.5], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[0.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    output = gradient_penalty(lambda x: 0.5 * (a * x**2).sum(1), x, kind="one_centered")
    assert output.norms.tolist() == pytest.approx([0.0, 6.0])
    assert output.loss.item() == pytest.approx((1 + 25) / 2)
    # Of the second sample alone: 2 (r − 1) dr/da₁ / 2 = 5 · 3.
    assert torch.autograd.grad(output.loss, a)[0].tolist() == pytest.approx([15.0, 0.0])


NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "r3gan": ("r3gan", {"widths": (6, 4, 2), "blocks": (1, 2, 1), "groups": (3, 2, 1)}),
    "mlp": ("mlp", {"widths": (9, 8)}),
    "coupled": ("dcgan", {"widths": (6, 4)}),
    "uncoupled": ("dcgan", {"widths": (6, 4), "norm": "none"}),
    "layer norm": ("dcgan", {"widths": (6, 4), "norm": "layer"}),
    "instance norm": ("dcgan", {"widths": (6, 4), "norm": "instance"}),
    "stylegan2": ("stylegan2", {"widths": (6, 4, 2), "group_size": 2}),
}


def network_and_batch(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    family, options = NETWORKS[name]
    sizes = {"resolution": 16, "channels": 2, "classes": 3}
    network = build("discriminator", family, seed=0, **sizes, **options).double()
    for seed, parameter in enumerate(network.parameters()):
        parameter.data = parameter + 0.3 * numbers(*parameter.shape, seed=seed)
    return network, numbers(4, 2, 16, 16, seed=99), torch.tensor([0, 2, 1, 2])


def slope(
    value: Callable[[], Tensor], parameters: Sequence[Tensor], direction: Sequence[Tensor]
) -> float:
    """The central difference of `value` as the parameters move along `direction`."""
    h = 1e-6
    ends = []
    for sign in (1, -2, 1):
        for parameter, step in zip(parameters, direction):
            parameter.data.add_(step, alpha=sign * h)
        ends.append(value().item())
    return (ends[0] - ends[1]) / (2 * h)


@pytest.mark.parametrize("kind", ["zero_centered", "one_centered"])
@pytest.mark.parametrize("name", NETWORKS)
def test_parameter_gradients_equal_finite_differences(name: str, kind: Any) -> None:
    network, x, labels = network_and_batch(name)
    parameters = list(network.parameters())

    def value() -> Tensor:
        """The penalty by first derivatives alone."""
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(leaf, labels).sum(), leaf)
        return by_hand(gradient, kind)

    loss = gradient_penalty(network, x, labels, kind=kind).loss
    torch.testing.assert_close(loss, value(), **EXACT)
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    for seed in range(3):
        direction = [numbers(*p.shape, seed=seed) for p in parameters]
        along = sum((g * d).sum().item() for g, d in zip(gradients, direction))
        assert along == pytest.approx(slope(value, parameters, direction), rel=1e-6)
        assert abs(along) > 1e-3


def test_one_backward_serves_the_penalty_and_the_loss() -> None:
    network, x, labels = network_and_batch("r3gan")
    parameters = list(network.parameters())
    output = gradient_penalty(network, x, labels)
    (F.softplus(-output.logits).mean() + 3 * output.loss).backward()
    alone = torch.autograd.grad(F.softplus(-network(x, labels)).mean(), parameters)
    penalty = torch.autograd.grad(
        gradient_penalty(network, x, labels).loss, parameters, materialize_grads=True
    )
    for parameter, first, second in zip(parameters, alone, penalty):
        torch.testing.assert_close(parameter.grad, first + 3 * second, **EXACT)


def test_conditions_are_passed_on_in_order() -> None:
    network, x, labels = network_and_batch("mlp")
    norms = gradient_penalty(network, x, labels).norms
    assert not torch.allclose(norms, gradient_penalty(network, x, labels.flip(0)).norms)
    scale, none = numbers(4), None
    output = gradient_penalty(lambda x, s, y: (s[:, None] * x).sum(1), x.flatten(1), scale, none)
    torch.testing.assert_close(output.norms, scale.abs() * x[0].numel() ** 0.5, **EXACT)


def test_patch_logits_are_summed_for_each_sample() -> None:
    weight = numbers(1, 2, 3, 3, seed=4).requires_grad_()
    x = numbers(3, 2, 6, 5)
    output = gradient_penalty(lambda x: F.conv2d(x, weight).square(), x)
    assert output.logits.shape == (3, 1, 4, 3)
    assert output.norms.shape == (3,)
    # ∇ Σ (w ∗ x)² = 2 wᵀ ∗ (w ∗ x)
    gradient = 2 * F.conv_transpose2d(F.conv2d(x, weight), weight)
    torch.testing.assert_close(output.loss, by_hand(gradient, "zero_centered"), **EXACT)


def test_the_input_is_left_alone() -> None:
    """The penalty's gradient must not flow into the generator that made x."""
    made_by = torch.ones(1, dtype=torch.float64, requires_grad=True)
    network, x = Hidden(), made_by * numbers(4, 5)
    output = gradient_penalty(network, x)
    (output.loss + output.logits.sum()).backward()
    assert made_by.grad is None
    plain = numbers(4, 5)
    gradient_penalty(network, plain).loss.backward()
    assert not plain.requires_grad
    assert plain.grad is None


def test_the_discriminator_is_called_once() -> None:
    calls = []
    network = Hidden()
    network.register_forward_hook(lambda *_: calls.append(None))
    gradient_penalty(network, numbers(4, 5)).loss.backward()
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_of_half_precision_are_summed_in_float32(dtype: torch.dtype) -> None:
    w = torch.full((4096,), 8.0, dtype=dtype, requires_grad=True)
    # 4096 · 8² = 2¹⁸ is above float16's largest number; bfloat16's eight bits lose what is added.
    output = gradient_penalty(lambda x: x @ w, torch.zeros(2, 4096, dtype=dtype))
    assert output.norms.dtype == output.loss.dtype == torch.float32
    assert output.norms.tolist() == [512.0, 512.0]
    assert output.loss.item() == 2**17


def test_running_statistics_move_once() -> None:
    network, x, labels = network_and_batch("coupled")
    other, *_ = network_and_batch("coupled")
    gradient_penalty(network, x, labels).loss.backward()
    other(x, labels)
    for mine, theirs in zip(network.buffers(), other.buffers()):
        torch.testing.assert_close(mine, theirs, **EXACT)


@pytest.mark.parametrize(
    ("discriminator", "x", "options", "error", "message"),
    [
        (Hidden(), torch.ones(2, 5, dtype=torch.uint8), {}, TypeError, "x is torch.uint8"),
        (Hidden(), torch.ones(0, 5), {}, ValueError, "x holds no samples"),
        (lambda x: numbers(2).requires_grad_(), torch.ones(2, 5), {}, ValueError, "not depend on"),
        (lambda x: x.detach().sum(1), torch.ones(2, 5), {}, ValueError, "output is detached"),
        (
            Hidden(),
            numbers(2, 5),
            {"kind": "zero_centred"},
            ValueError,
            "kind is 'zero_centred'; choose from zero_centered, one_centered",
        ),
        (Hidden(), numbers(2, 5), {"method": "exact"}, ValueError, "method is 'exact'; .*double"),
    ],
)
def test_what_cannot_be_penalised_is_explained(
    discriminator: Any, x: Tensor, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        gradient_penalty(discriminator, x, **options)


def test_a_sharded_discriminator_must_keep_its_weights() -> None:
    network, x, labels = network_and_batch("r3gan")
    expected = gradient_penalty(network, x, labels).loss
    with launch(precision="float64") as world:
        for options in ({}, {"reshard_after_forward": False}):
            careless, *_ = network_and_batch("r3gan")
            fully_shard(careless, mesh=world.mesh, **options)
            with pytest.raises(ValueError, match=r"FSDP2 frees .* method='forward' is exact here"):
                gradient_penalty(careless, x, labels, method="double")
        shard(network, world.mesh, keep_for_double_backward=True)
        output = gradient_penalty(network, x, labels, method="double")
        output.loss.backward()
        torch.testing.assert_close(output.loss, expected, **EXACT)


@pytest.mark.parametrize("method", ["forward", "difference"])
def test_two_penalties_share_a_backward(method: Any) -> None:
    """R1 and R2 in one loss: the second call must leave alone what the first one's graph saved."""
    network, x, labels = network_and_batch("r3gan")
    parameters = list(network.parameters())
    first = gradient_penalty(network, x, labels, method=method)
    second = gradient_penalty(network, 0.5 * x, labels, method=method)
    both = torch.autograd.grad(first.loss + second.loss + first.logits.sum(), parameters)
    first = gradient_penalty(network, x, labels, method=method)
    alone = torch.autograd.grad(first.loss + first.logits.sum(), parameters)
    second = gradient_penalty(network, 0.5 * x, labels, method=method)
    rest = torch.autograd.grad(second.loss + 0 * second.logits.sum(), parameters)
    for together, one, other in zip(both, alone, rest):
        torch.testing.assert_close(together, one + other, **EXACT)


@pytest.mark.parametrize("kind", ["zero_centered", "one_centered"])
@pytest.mark.parametrize("method", ["double", "forward", "difference"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(method: Any, kind: Any, bad: float) -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    network[2].weight.data[0, 1] = bad
    output = gradient_penalty(network, torch.randn(2, 4), kind=kind, method=method)
    output.loss.backward()
    assert not output.loss.isfinite()
    assert not output.norms.isfinite().any()
    assert not all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
