"""Virtual batch normalisation against the paper's statistics, sample by sample."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dgan
from dgan.networks import build
from dgan.networks.virtual_batch_norm import VirtualBatchNorm, WithReference, fill_references

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(channels: int, reference: int, act: str = "linear") -> VirtualBatchNorm:
    result = VirtualBatchNorm(channels, act).double()
    result.weight.data, result.bias.data = numbers(channels, seed=8), numbers(channels, seed=9)
    result.reference = reference
    return result


@pytest.mark.parametrize("shape", [(3,), (3, 4, 5)])
def test_statistics_of_the_reference_and_of_the_sample(shape: tuple[int, ...]) -> None:
    reference, x = 2 * numbers(5, *shape) + 3, numbers(4, *shape, seed=1) - 1
    norm = layer(3, 5)
    found = norm(torch.cat([reference, x]))

    def scaled(x: Tensor, mean: Tensor, square: Tensor) -> Tensor:
        view = (1, 3, *[1] * (x.ndim - 2))
        normal = (x - mean.view(view)) / (square - mean**2 + norm.eps).sqrt().view(view)
        return normal * norm.weight.view(view) + norm.bias.view(view)

    over = (0, *range(2, reference.ndim))
    mean, square = reference.mean(over), reference.square().mean(over)
    torch.testing.assert_close(found[:5], scaled(reference, mean, square), **EXACT)
    for index in range(4):
        sample = x[index : index + 1]
        # Of R + 1 samples: R the reference's, one its own.
        own = (5 * mean + sample.mean(over)) / 6, (5 * square + sample.square().mean(over)) / 6
        torch.testing.assert_close(found[5 + index : 6 + index], scaled(sample, *own), **EXACT)


def test_the_reference_is_normalised_as_in_batch_normalisation() -> None:
    x = numbers(5, 3, 4)
    norm = layer(3, 5, act="leaky_relu")
    expected = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True)
    torch.testing.assert_close(norm(x), F.leaky_relu(expected, 0.2), **EXACT)


class Critic(nn.Module):
    """Convolutions with virtual batch normalisation, labels by projection."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 2)
        self.norms = nn.ModuleList([layer(4, 0, "silu"), layer(3, 0, "tanh")])
        self.labels = nn.Embedding(3, 3)

    @property
    def blocks(self) -> list[nn.Module]:
        return [self.first, self.second]

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.norms[1](self.second(self.norms[0](self.first(x)))).sum((2, 3))
        return x.sum(1) if labels is None else (x * self.labels(labels)).sum(1)


X, LABELS = numbers(6, 2, 5, 5), torch.tensor([0, 1, 2, 2, 0, 1])
REFERENCE = numbers(7, 2, 5, 5, seed=3), torch.tensor([0, 1, 2, 1, 1, 0, 2])


def critic(*reference: Tensor) -> WithReference:
    torch.manual_seed(0)
    return WithReference(Critic().double(), *reference).double()


def test_samples_do_not_depend_on_each_other() -> None:
    network = critic(*REFERENCE)
    whole = network(X, LABELS)
    assert whole.shape == (6,)
    parts = [network(X[i : i + 2], LABELS[i : i + 2]) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(parts), whole, **EXACT)
    assert not network.couples_samples
    other = critic(REFERENCE[0] + numbers(7, 2, 5, 5, seed=4), REFERENCE[1])
    assert not torch.allclose(other(X, LABELS), whole, rtol=1e-3)


def test_penalties_by_both_methods_and_by_finite_differences() -> None:
    network = critic(*REFERENCE)
    parameters = list(network.parameters())
    methods: list[Any] = ["double", "forward"]
    results = []
    for method in methods:
        output = dgan.gradient_penalty(network, X, LABELS, method=method)
        gradients = torch.autograd.grad(output.loss, parameters, materialize_grads=True)
        results.append([output.loss, output.norms, *gradients])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, **EXACT)
    assert dgan.check_penalty(network, X, LABELS) < 1e-4


def test_gradients_flow_through_the_reference() -> None:
    """As the network's weights move, so do the statistics: derivatives count that."""
    network = critic(REFERENCE[0])
    network.network.requires_grad_(False)
    weight = network.network.first.weight

    def value(weight: Tensor) -> Tensor:
        return torch.func.functional_call(network, {"network.first.weight": weight}, (X[:2],))

    assert torch.autograd.gradcheck(value, [weight.detach().requires_grad_()])


def test_the_reference_is_part_of_a_checkpoint() -> None:
    network, other = critic(*REFERENCE), critic(numbers(7, 2, 5, 5, seed=5), LABELS.new_zeros(7))
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(X, LABELS), network(X, LABELS))
    assert [name for name, _ in network.named_buffers()] == ["reference0", "reference1"]
    assert len(network.blocks) == 2
    generator = nn.Sequential(layer(3, 0))
    generator.z_dim = 3
    assert WithReference(generator, numbers(4, 3)).z_dim == 3


def test_narrow_inputs_are_normalised_in_float32() -> None:
    x = (numbers(12, 3, 4, 4) + 100).float()
    norm = layer(3, 8).float()
    expected, found = norm(x), norm(x.bfloat16())
    assert found.dtype == torch.bfloat16
    exact = norm(x.bfloat16().float())
    torch.testing.assert_close(found.float(), exact, rtol=1e-2, atol=1e-2)
    # The mean is large beside the spread: squares about 0 would cancel.
    double = layer(3, 8)(x.double())
    torch.testing.assert_close(expected.double(), double, rtol=1e-3, atol=1e-3)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="got 4 rows, of which 0 are its reference batch: wrap"):
        VirtualBatchNorm(3)(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"Linear has 0 VirtualBatchNorm layers and reference"):
        WithReference(nn.Linear(2, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"reference inputs of \[3, 7\] rows"):
        critic(REFERENCE[0], LABELS[:3])
    with pytest.raises(ValueError, match="reference batch has 2 inputs, this call 1"):
        critic(*REFERENCE)(X)


SIZES = {"resolution": 16, "channels": 1, "classes": 3, "widths": (8, 6), "norm": "virtual"}


def test_dcgan_by_name_has_its_reference_batch() -> None:
    generators = [build("generator", "dcgan", seed=seed, z_dim=5, **SIZES) for seed in (0, 0, 1)]
    latents = [generator.get_buffer("reference0") for generator in generators]
    assert torch.equal(latents[0], latents[1])
    assert not torch.equal(latents[0], latents[2])
    assert generators[0].z_dim == 5
    z, labels = torch.randn(4, 5), torch.tensor([0, 2, 1, 1])
    whole = generators[0](z, labels)
    torch.testing.assert_close(generators[0](z[2:], labels[2:]), whole[2:])


def test_a_discriminators_reference_is_data() -> None:
    judge = build("discriminator", "dcgan", seed=0, **SIZES)
    images, labels = torch.rand(40, 1, 16, 16), torch.arange(40) % 3
    before = judge(images, labels)
    fill_references(judge, images, labels)
    assert torch.equal(judge.get_buffer("reference0"), torch.cat([images, images[:24]]))
    assert torch.equal(judge.get_buffer("reference1"), torch.cat([labels, labels[:24]]))
    after = judge(images, labels)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(judge(images[7:9], labels[7:9]), after[7:9])
