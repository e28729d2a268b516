"""Output heads: formulas, gradients, and samples that belong to their latents."""

import pytest
import torch
from torch import Tensor

from dgan.networks.heads import HEADS, head_named, moments, straight_through

SEEDS = torch.arange(400)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", HEADS)
def test_shapes_ranges_and_seeds(name: str) -> None:
    head = head_named(name)
    features = 3 * numbers(400, head.parameters * 3, 2, 5)
    images = head.image(features, SEEDS)
    assert images.shape == (400, 3, 2, 5)
    assert images.dtype == torch.float64
    if name != "gaussian":
        assert images.abs().max() <= 1
    # The same rows on another rank.
    assert torch.equal(head.image(features[7:9], SEEDS[7:9]), images[7:9])
    other = head.image(features, SEEDS + 1000)
    assert torch.equal(other, images) == (name in ("tanh", "probabilities"))
    bfloat16 = head.image(features.bfloat16(), SEEDS)
    assert bfloat16.dtype == torch.bfloat16


def test_heads_without_noise_are_their_formulas() -> None:
    features = numbers(2, 3, 4)
    torch.testing.assert_close(HEADS["tanh"].image(features, None), features.tanh())
    shown = HEADS["probabilities"].image(features, None)
    torch.testing.assert_close((shown + 1) / 2, 1 / (1 + (-features).exp()))


def test_bernoulli_draws_with_its_probability() -> None:
    logits = torch.tensor([-2.0, 0.0, 1.0, 40.0, -40.0]).expand(4000, 1, 5).requires_grad_()
    images = HEADS["bernoulli"].image(logits, torch.arange(4000))
    assert set(images.unique().tolist()) <= {-1.0, 1.0}
    shares = ((images + 1) / 2).mean((0, 1))
    expected = torch.tensor([-2.0, 0.0, 1.0, 40.0, -40.0]).sigmoid()
    torch.testing.assert_close(shares, expected, rtol=0, atol=4 * 0.5 / 4000**0.5)


def test_straight_through_has_the_gradient_of_the_probability() -> None:
    logits = numbers(3, 4).requires_grad_()
    uniform = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    weights = numbers(3, 4, seed=2)
    sample = straight_through(logits.sigmoid(), uniform)
    torch.testing.assert_close(sample, (uniform < logits.sigmoid()).double())
    (gradient,) = torch.autograd.grad((weights * sample).sum(), logits)
    p = logits.sigmoid().detach()
    torch.testing.assert_close(gradient, weights * p * (1 - p))


def test_gaussian_moments_and_gradients() -> None:
    features = numbers(1, 2, 1, 1).expand(4000, -1, -1, -1)
    images = HEADS["gaussian"].image(features, torch.arange(4000))
    mean, scale = (part[0].item() for part in moments(features))
    assert scale > 0
    assert images.mean().item() == pytest.approx(mean, abs=4 * scale / 4000**0.5)
    assert images.std().item() == pytest.approx(scale, rel=0.05)
    leaf = numbers(3, 4, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: HEADS["gaussian"].image(x, SEEDS[:3]), [leaf])


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"no head 'tahn'; did you mean 'tanh'\?"):
        head_named("tahn")
    for name in ("bernoulli", "gaussian"):
        with pytest.raises(ValueError, match=f"the head '{name}' draws its images"):
            HEADS[name].image(numbers(2, 2, 4), None)
    with pytest.raises(ValueError, match="a mean and a scale a channel, not 3"):
        HEADS["gaussian"].image(numbers(2, 3, 4), SEEDS[:2])
