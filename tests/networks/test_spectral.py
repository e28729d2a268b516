"""Spectral normalisation: σ, its derivative, one function for a whole update, and sharding."""

from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import dgan
from dgan.networks import build, normalised
from dgan.networks.spectral import SpectralNorm, advance_spectral_norms, spectral_norm
from dgan.parallel import shard
from dgan.parallel.fsdp import reshard
from dgan.parallel.recompute import recompute
from dgan.parallel.world import launch

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Critic(nn.Module):
    """Two convolutions, one of them transposed, an embedding and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(2, 5, 3), nn.SiLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(5, 3, 2, bias=False), nn.SiLU())
        self.head = nn.Linear(3 * 25, 1)
        self.labels = nn.Embedding(4, 3 * 25)

    @property
    def blocks(self) -> list[nn.Module]:
        return [self.down, self.up]

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        x = self.up(self.down(x)).flatten(1)
        return self.head(x).sum(1) + (x * self.labels(labels)).sum(1)


def critic() -> nn.Module:
    torch.manual_seed(0)
    return spectral_norm(Critic().double())


X, LABELS = numbers(6, 2, 6, 6), torch.tensor([0, 1, 2, 3, 3, 1])
LAYERS = {"down.0": 0, "up.0": 1, "head": 0, "labels": 0}
"""And the dimension that counts their outputs."""


def matrix(weight: Tensor, outputs: int) -> Tensor:
    return weight.transpose(0, outputs).flatten(1)


def test_the_largest_singular_value_becomes_one() -> None:
    network = critic()
    before = {name: layer.weight.clone() for name, layer in layers(network).items()}
    for _ in range(300):
        advance_spectral_norms(network)
    for name, layer in layers(network).items():
        original = layer.parametrizations.weight.original
        largest = torch.linalg.matrix_norm(matrix(original, LAYERS[name]), 2)
        torch.testing.assert_close(layer.weight, original / largest, **EXACT)
        # It began close to that already.
        torch.testing.assert_close(before[name], layer.weight, rtol=0.05, atol=0.02)


def layers(network: nn.Module) -> dict[str, Any]:
    return {name: network.get_submodule(name) for name in LAYERS}


def test_passes_leave_the_estimate_alone() -> None:
    network = critic().train()
    u = network.head.parametrizations.weight[0].u.clone()
    first = network(X, LABELS)
    assert torch.equal(network(X, LABELS), first)
    assert torch.equal(network.eval()(X, LABELS), first)
    assert torch.equal(network.head.parametrizations.weight[0].u, u)
    convolution = network.down[0].parametrizations.weight[0]
    u = convolution.u.clone()
    advance_spectral_norms(network)
    assert not torch.equal(convolution.u, u)
    assert convolution.u.norm().item() == pytest.approx(1.0)


def test_the_algorithm_is_pytorchs_with_u_held() -> None:
    """PyTorch's in evaluation, which holds u and v, with this u and the v that belongs to it."""
    layer, theirs = nn.Conv2d(3, 4, 3).double(), nn.Conv2d(3, 4, 3).double()
    theirs.load_state_dict(layer.state_dict())
    spectral_norm(layer)
    parametrizations.spectral_norm(theirs)
    ours: Any = layer.parametrizations.weight
    other: Any = theirs.parametrizations.weight
    u = ours[0].u
    other[0]._u.copy_(u)
    v = ours.original.detach().flatten(1).T @ u
    other[0]._v.copy_(v / v.norm())
    torch.testing.assert_close(layer.weight, theirs.eval().weight, **EXACT)
    direction = numbers(4, 3, 3, 3)
    gradients = [
        torch.autograd.grad((w * direction).sum(), o)[0]
        for w, o in ((layer.weight, ours.original), (theirs.weight, other.original))
    ]
    torch.testing.assert_close(*gradients, **EXACT)
    # One step of ours is one of theirs.
    advance_spectral_norms(layer)
    theirs.train()
    assert theirs.weight is not None
    torch.testing.assert_close(ours[0].u, other[0]._u, **EXACT)


def test_penalties_see_one_function() -> None:
    network = critic()
    parameters = list(network.parameters())
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(x, LABELS).sum(), x, create_graph=True)
    expected = 0.5 * gradient.square().sum((1, 2, 3)).mean()
    wanted = torch.autograd.grad(expected, parameters, materialize_grads=True)
    methods: list[Any] = ["double", "forward"]
    for method in methods:
        loss = dgan.gradient_penalty(network, X, LABELS, method=method).loss
        torch.testing.assert_close(loss, expected, **EXACT)
        found = torch.autograd.grad(loss, parameters, materialize_grads=True)
        for result, right in zip(found, wanted):
            torch.testing.assert_close(result, right, **EXACT)
    assert dgan.check_penalty(network, X, LABELS) < 1e-3


def two_updates(ranks: int, rank: int, sharded: Any = None) -> Any:
    """Logits and, by name, gradients of two plain gradient steps on this rank's rows of X."""
    network = critic()
    mine = len(X) // ranks
    rows = slice(rank * mine, (rank + 1) * mine)
    if sharded is not None:
        recompute(network)
        shard(network, sharded)
    results: list[Any] = []
    for _ in range(2):
        output = dgan.gradient_penalty(network, X[rows], LABELS[rows])
        (output.loss + output.logits.square().mean()).backward()
        results.append(output.logits.detach())
        reshard(network)
        for parameter in network.parameters():
            whole = parameter.grad.full_tensor() if sharded is not None else parameter.grad
            results.append(whole.clone())
            with torch.no_grad():
                parameter.sub_(0.1 * parameter.grad)
            parameter.grad = None
        advance_spectral_norms(network)
        results += [norm.u.clone() for norm in network.modules() if isinstance(norm, SpectralNorm)]
    return results


def sharded_updates() -> Any:
    with launch(precision="float64") as world:
        return two_updates(world.size, world.rank, world.mesh)


def test_sharded_and_recomputed_over_two_ranks() -> None:
    alone = two_updates(1, 0)
    first, second = run_ranks(2, sharded_updates)
    for expected, one, other in zip(alone, first, second, strict=True):
        if one.shape != expected.shape:  # logits
            torch.testing.assert_close(torch.cat([one, other]), expected, **EXACT)
            continue
        torch.testing.assert_close(one, expected, **EXACT)
        assert torch.equal(one, other)


def test_a_checkpoint_holds_the_estimate() -> None:
    network, other = critic(), critic()
    advance_spectral_norms(network, 3)
    with torch.no_grad():
        network.head.parametrizations.weight.original.mul_(3)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(X, LABELS), network(X, LABELS))
    assert "head.parametrizations.weight.0.u" in network.state_dict()
    # What is assigned is the weight before normalisation.
    network.head.weight = numbers(1, 75)
    assert torch.equal(network.head.parametrizations.weight.original, numbers(1, 75))


def test_narrow_weights_keep_a_wide_estimate() -> None:
    layer = spectral_norm(nn.Linear(7, 5).bfloat16())
    assert layer.parametrizations.weight[0].u.dtype == torch.float32
    assert layer.weight.dtype == torch.bfloat16


def test_what_does_not_fit_is_named() -> None:
    network = critic()
    with pytest.raises(ValueError, match="weight of ParametrizedConv2d is parametrised already"):
        spectral_norm(network)
    with pytest.raises(ValueError, match="Sequential has no layer with a weight to normalise"):
        spectral_norm(nn.Sequential(nn.ReLU()))
    advance_spectral_norms(nn.Linear(2, 2))


def test_any_family_is_normalised_or_refused() -> None:
    sizes = {"resolution": 8, "channels": 1}
    networks = [
        build("discriminator", "transformer", seed=0, width=8, depth=2, heads=2, patch=4, **sizes)
        for _ in range(2)
    ]
    for network in networks:
        normalised(network, seed=3)
    assert_same_state(*networks)
    norms = [torch.linalg.matrix_norm(m.weight, 2) for m in networks[0].modules() if is_linear(m)]
    torch.testing.assert_close(torch.stack(norms), torch.ones(len(norms)), rtol=0.1, atol=0)
    for family, options, message in (
        ("stylegan2", {"widths": (8, 6)}, "layers of equalised learning rate"),
        ("r3gan", {"widths": (8, 6), "blocks": (1, 1), "groups": (4, 3)}, "weights of 0"),
        ("sngan", {"widths": (8, 6)}, "parametrised already"),
    ):
        with pytest.raises(ValueError, match=message):
            normalised(build("discriminator", family, seed=0, **sizes, **options), seed=0)


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def assert_same_state(first: nn.Module, second: nn.Module) -> None:
    for name, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name
