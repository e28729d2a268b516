"""Regularisers against the papers' formulas, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from dgan.networks import build
from dgan.objectives.losses import LOSSES
from dgan.objectives.regularizers import (
    advance_history_,
    advanced,
    clip_weights_,
    consistency,
    diversity,
    historical_average,
    lecam,
    orthogonal,
    orthogonal_gradient,
    path_length,
    top_k,
    top_k_weights,
)
from dgan.parallel import shard
from dgan.parallel.fsdp import reshard
from dgan.parallel.world import launch

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Generator(nn.Module):
    """A mapping and a synthesis of 2 channels of 3×2 pixels, w = tanh(M z)."""

    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Parameter(numbers(5, 4, seed=1))
        self.first = nn.Parameter(numbers(7, 5, seed=2))
        self.second = nn.Parameter(numbers(12, 7, seed=3))

    def forward(self, offset: Tensor, z: Tensor) -> Tensor:
        w = (z @ self.mapping.T).tanh() + offset
        return ((w @ self.first.T).tanh() @ self.second.T).view(-1, 2, 3, 2)


def lengths_by_jacobian(generator: Generator, z: Tensor, y: Tensor) -> Tensor:
    """‖Jᵀy‖ with the Jacobian of each sample written out."""
    w = (z @ generator.mapping.T).tanh()
    slopes = 1 - (w @ generator.first.T).tanh() ** 2
    jacobians = generator.second @ (slopes[:, :, None] * generator.first)  # [N, 12, 5]
    return (y.flatten(1)[:, None] @ jacobians).squeeze(1).norm(dim=1) / 6**0.5


@pytest.mark.parametrize("method", ["double", "forward"])
@pytest.mark.parametrize("average", [0.0, 3.0])
def test_path_length_is_equation_4_of_stylegan2(average: float, method: Any) -> None:
    generator, z, y = Generator(), numbers(6, 4), numbers(6, 2, 3, 2, seed=9)
    a = torch.tensor(average, dtype=torch.float64)
    lengths = lengths_by_jacobian(generator, z, y)
    expected = (lengths - a).square().mean()

    offset = torch.zeros(6, 5, dtype=torch.float64)
    output = path_length(generator, offset, z, noise=y, average=a, method=method)
    # A mean of 0 is taken as 10⁻⁶.
    exact = EXACT if average else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(output.loss, expected, **exact)
    torch.testing.assert_close(output.norms, lengths.detach(), **EXACT)
    # Every parameter, the mapping's too, which the latents come from.
    parameters = list(generator.parameters())
    found = torch.autograd.grad(output.loss, parameters)
    for result, wanted in zip(found, torch.autograd.grad(expected, parameters)):
        torch.testing.assert_close(result, wanted, **exact)


def test_path_length_of_a_style_based_generator() -> None:
    """Its operators, in latents z: the tangent's way and the second derivative's agree."""
    sizes: dict[str, Any] = {"resolution": 8, "channels": 1, "classes": 2}
    options = {"z_dim": 5, "w_dim": 6, "mapping_layers": 2, "widths": (6, 4)}
    generator = build("generator", "stylegan2", seed=0, **sizes, **options).double()
    parameters = list(generator.parameters())
    z, labels, y = numbers(3, 5), torch.tensor([0, 1, 1]), numbers(3, 1, 8, 8, seed=1)
    results = []
    for method in ("double", "forward"):
        a = torch.tensor(0.2)
        output = path_length(generator, z, labels, noise=y, average=a, method=method)
        gradients = torch.autograd.grad(output.loss, parameters, materialize_grads=True)
        results.append([output.loss, output.norms, *gradients])
    assert results[0][0] > 1e-3
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, **EXACT)


def sharded_path_length() -> list[Tensor]:
    with launch(precision="float64") as world:
        generator = shard(Generator(), world.mesh)
        rows = slice(3 * world.rank, 3 * world.rank + 3)
        path_length(
            generator,
            torch.zeros(3, 5, dtype=torch.float64),
            numbers(6, 4)[rows],
            noise=numbers(6, 2, 3, 2, seed=9)[rows],
            average=torch.tensor(3.0, dtype=torch.float64),
        ).loss.backward()
        reshard(generator)
        return [parameter.grad.full_tensor() for parameter in generator.parameters()]


def test_path_length_of_a_sharded_generator() -> None:
    generator = Generator()
    lengths = lengths_by_jacobian(generator, numbers(6, 4), numbers(6, 2, 3, 2, seed=9))
    loss = (lengths - 3.0).square().mean()
    expected = torch.autograd.grad(loss, list(generator.parameters()))
    for found in run_ranks(2, sharded_path_length):
        for result, wanted in zip(found, expected):
            torch.testing.assert_close(result, wanted, **EXACT)


def test_running_means() -> None:
    mean = torch.tensor(2.0, dtype=torch.float64)
    value = torch.tensor(7.0, requires_grad=True)
    result = advanced(mean, value, 0.75)
    assert result.item() == pytest.approx(0.75 * 2 + 0.25 * 7)
    assert result.dtype == torch.float64
    assert not result.requires_grad


def test_lecam_by_pencil() -> None:
    real = torch.tensor([1.0, 3.0], dtype=torch.float64, requires_grad=True)
    fake = torch.tensor([-2.0, 0.0], dtype=torch.float64, requires_grad=True)
    past = torch.tensor(0.5, requires_grad=True), torch.tensor(-1.0, requires_grad=True)
    loss = lecam(real, fake, *past)
    # Real ones against the fakes' mean −1, fakes against the reals' mean ½.
    assert loss.item() == pytest.approx((4 + 16) / 2 + (6.25 + 0.25) / 2)
    gradients = torch.autograd.grad(loss, (real, fake, *past), allow_unused=True)
    assert gradients[0].tolist() == pytest.approx([2.0, 4.0])
    assert gradients[1].tolist() == pytest.approx([-2.5, -0.5])
    assert gradients[2:] == (None, None)


def test_consistency_by_pencil() -> None:
    logits, changed = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])
    assert consistency(logits, changed).item() == pytest.approx((4 + 9) / 2)
    assert diversity(logits, changed).item() == pytest.approx(-(4 + 9) / 2)
    with pytest.raises(ValueError, match=r"\(1, 2\), of the changed samples \(2,\)"):
        consistency(logits, torch.zeros(2))


CURVED: dict[str, Callable[..., Tensor]] = {
    "lecam": lambda a, b: lecam(a.tanh(), b, torch.tensor(0.3), torch.tensor(-0.2)),
    "consistency": lambda a, b: consistency(a.tanh(), b.sin()),
    "diversity": lambda a, b: diversity(a.tanh(), b.sin()),
    "orthogonal": lambda a, b: orthogonal([a, b]),
    "historical": lambda a, b: historical_average([a, b], [torch.ones(3, 4), torch.zeros(3, 4)]),
}


@pytest.mark.parametrize("name", CURVED)
def test_derivatives_twice(name: str) -> None:
    inputs = [numbers(3, 4, seed=seed).requires_grad_() for seed in (1, 2)]
    assert torch.autograd.gradcheck(CURVED[name], inputs)
    assert torch.autograd.gradgradcheck(CURVED[name], inputs)


def test_k_falls_with_the_epochs() -> None:
    assert [top_k(200, epochs) for epochs in (0, 0.9, 1, 10, 68, 69, 500)] == [
        200, 200, 198, 181, 101, 100, 100,
    ]  # fmt: skip
    assert top_k(3, 10**6, least=0.1) == 1
    with pytest.raises(ValueError, match=r"least is 0; it must be above 0"):
        top_k(64, 1, least=0)


def test_the_best_of_the_global_batch_count() -> None:
    """Two ranks that take their rows of the weights have the loss of the k best of all."""
    logits = numbers(8).requires_grad_()
    best = logits.detach().topk(3).values
    expected = torch.nn.functional.softplus(-best).mean()
    weights = top_k_weights(logits, 3)
    assert weights.mean().item() == pytest.approx(1.0)
    assert not weights.requires_grad
    generator = LOSSES["non_saturating"].generator
    halves = zip(logits.chunk(2), weights.chunk(2))
    parts = [generator(mine, mine, weights=share) for mine, share in halves]
    torch.testing.assert_close((parts[0] + parts[1]) / 2, expected, **EXACT)
    # Only those three get a gradient.
    (gradient,) = torch.autograd.grad(parts[0] + parts[1], logits)
    assert ((gradient != 0) == (logits >= best.min())).all()


def test_ties_and_patches_among_the_best() -> None:
    assert top_k_weights(torch.tensor([1.0, 2, 1, 1]), 3).tolist() == pytest.approx(
        [4 / 3, 4 / 3, 4 / 3, 0]
    )
    patches = torch.tensor([[[9.0, -9.0]], [[1.0, 1.0]]])
    assert top_k_weights(patches, 1).tolist() == [0.0, 2.0]
    for k in (0, 3):
        with pytest.raises(ValueError, match=rf"k is {k}; it must be 1 … 2"):
            top_k_weights(patches, k)


def test_orthogonal_by_pencil() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.0, 5.0]], dtype=torch.float64)
    # Products 1, 10, −5 of different rows, each of which occurs twice.
    assert orthogonal([rows]).item() == pytest.approx(2 * (1 + 100 + 25))
    assert orthogonal([3 * torch.eye(4)]).item() == 0.0
    filters = numbers(4, 3, 2, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(orthogonal([rows, filters]), filters)
    torch.testing.assert_close(orthogonal_gradient(filters), gradient, **EXACT)


def sharded_gradient() -> Tensor:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    # Five filters over two ranks: uneven.
    weight = nn.Parameter(distribute_tensor(numbers(5, 3, 2, 2), mesh, [Shard(0)]))
    orthogonal([weight.full_tensor()]).backward()
    mine = weight.grad.to_local().clone()
    dist.destroy_process_group()
    return mine


def test_orthogonal_of_a_sharded_weight() -> None:
    expected = orthogonal_gradient(numbers(5, 3, 2, 2))
    torch.testing.assert_close(torch.cat(run_ranks(2, sharded_gradient)), expected, **EXACT)


def test_clipping() -> None:
    weights = [torch.tensor([0.5, -0.01, -3.0]), torch.tensor([[0.02]])]
    clip_weights_(weights, 0.25)
    assert torch.equal(weights[0], torch.tensor([0.25, -0.01, -0.25]))
    assert torch.equal(weights[1], torch.tensor([[0.02]]))
    with pytest.raises(ValueError, match=r"limit of the weights is 0; it must be positive"):
        clip_weights_(weights, 0)


def test_history_is_the_mean_of_all_weights_so_far() -> None:
    path = [[numbers(3, seed=step), numbers(2, 2, seed=100 + step)] for step in range(5)]
    averages = [torch.full((3,), 99.0).double(), torch.full((2, 2), -9.0).double()]
    for updates, weights in enumerate(path, start=1):
        advance_history_(averages, weights, updates)
    for index, average in enumerate(averages):
        expected = torch.stack([weights[index] for weights in path]).mean(0)
        torch.testing.assert_close(average, expected, **EXACT)
    now = [weight.requires_grad_() for weight in path[0]]
    loss = historical_average(now, averages)
    distance = sum((w - a).square().sum() for w, a in zip(now, averages))
    torch.testing.assert_close(loss, distance, **EXACT)
    for gradient, w, a in zip(torch.autograd.grad(loss, now), now, averages):
        torch.testing.assert_close(gradient, 2 * (w - a), **EXACT)
    with pytest.raises(ValueError, match="updates is 0"):
        advance_history_(averages, now, 0)
