"""Networks on points: their formulas, and what every family promises."""

import pytest
import torch
from torch import Tensor, nn

from dgan import gradient_penalty
from dgan.networks.points import PointDiscriminator, PointGenerator

ACTIVATIONS = {
    "relu": lambda x: x.clamp(min=0),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.2 * x),
    "tanh": torch.tanh,
}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(network: nn.Module, x: Tensor, act: str) -> Tensor:
    weights = dict(network.named_parameters())
    layer = 0
    while f"hidden.{layer}.0.weight" in weights:
        x = x @ weights[f"hidden.{layer}.0.weight"].T + weights[f"hidden.{layer}.1.bias"]
        x = ACTIVATIONS[act](x)
        layer += 1
    last = "to_point" if isinstance(network, PointGenerator) else "head"
    return x @ weights[f"{last}.weight"].T + weights[f"{last}.bias"]


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_formula(act: str, dimension: int) -> None:
    sizes = {"dimension": dimension, "widths": (7, 5, 6), "act": act}
    generator = PointGenerator(z_dim=4, **sizes).double()
    discriminator = PointDiscriminator(**sizes).double()
    points = generator(numbers(9, 4))
    torch.testing.assert_close(points, by_hand(generator, numbers(9, 4), act))
    logits = discriminator(points)
    assert points.shape == (9, dimension)
    assert logits.shape == (9,)
    torch.testing.assert_close(logits, by_hand(discriminator, points, act)[:, 0])
    assert generator.z_dim == 4


def test_the_default_is_as_wide_as_it_says() -> None:
    generator, discriminator = PointGenerator(), PointDiscriminator()
    sizes = [
        [tuple(layer[0].weight.shape) for layer in network.blocks]
        for network in (generator, discriminator)
    ]
    assert sizes == [[(256, 4), (256, 256), (256, 256)], [(256, 2), (256, 256)]]
    acts = [network.hidden[0][1].act for network in (generator, discriminator)]
    assert acts == ["relu", "leaky_relu"]
    assert not generator.couples_samples
    assert not discriminator.couples_samples


def test_kinks_of_the_discriminator_are_spread_over_the_data() -> None:
    torch.manual_seed(0)
    first = PointDiscriminator().hidden[0]
    distances = first[1].bias.abs() / first[0].weight.norm(dim=1)
    assert 0.2 < distances.median() < 1
    assert (distances < 0.05).double().mean() < 0.2


def test_its_penalty_is_exact_by_differentiating_twice() -> None:
    discriminator = PointDiscriminator(widths=(8, 8), act="tanh").double()
    x, step = numbers(5, 2), 1e-5
    weight = discriminator.hidden[0][0].weight
    gradient_penalty(discriminator, x, method="double").loss.backward()
    assert weight.grad is not None
    found, values = weight.grad[2, 1].item(), []
    for sign in (1, -1):
        with torch.no_grad():
            weight[2, 1] += sign * step
        values.append(gradient_penalty(discriminator, x, method="double").loss.item())
        with torch.no_grad():
            weight[2, 1] -= sign * step
    assert found == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)


def test_an_activation_that_is_not_known() -> None:
    with pytest.raises(ValueError, match="act 'swish' is not known here: choose from relu"):
        PointGenerator(act="swish")
