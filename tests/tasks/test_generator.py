"""What the generator minimises: features, and several samples for every real one."""

import pytest
import torch
import torch.nn.functional as F
from test_synthesis import BATCH, DRAWS, EXACT, pair, parameter_gradients, task
from torch import nn

from dgan.objectives.augment import DIFF_AUGMENT_NUMBERS, diff_augment
from dgan.tasks.augmentation import Augmentation
from dgan.tasks.features import features_layer

LABELS = BATCH["label"]


def test_feature_matching_compares_means_behind_the_last_block_but_one() -> None:
    """‖E f(x) − E f(G(z))‖², Salimans et al. 2016."""
    generator, discriminator = pair("mlp", 3)
    fake = generator(DRAWS.normal(5), LABELS)
    layer = discriminator.hidden[0]
    difference = layer(BATCH["image"].flatten(1)).mean(0) - layer(fake.flatten(1)).mean(0)
    expected = difference.square().sum()
    objective = task("hinge", matches_features=True)
    terms = objective.generator_loss(generator, discriminator, BATCH, DRAWS, 0)
    torch.testing.assert_close(terms["loss"], expected, **EXACT)
    wanted = parameter_gradients(expected, generator)
    for found, gradient in zip(parameter_gradients(terms["loss"], generator), wanted):
        torch.testing.assert_close(found, gradient, **EXACT)
    assert not layer._forward_hooks


def test_a_network_without_an_intermediate_block_has_no_features() -> None:
    with pytest.raises(ValueError, match=r"Linear has 0 `\.blocks`"):
        features_layer(nn.Linear(2, 1))


@pytest.mark.parametrize("loss", ["relativistic", "hinge"])
def test_several_latents_for_every_real_sample(loss: str) -> None:
    """The mean over 3·N generated samples, sample 3·i + j with real i, each augmented by itself."""
    generator, discriminator = pair("r3gan", 3)
    many = DRAWS.several(3)
    assert (many.rows.start, many.rows.stop) == (18, 36)
    fake = generator(many.normal(5), LABELS.repeat_interleave(3))
    uniform = [
        draws.named(f"augment {side}").uniform(DIFF_AUGMENT_NUMBERS)
        for side, draws in (("real", DRAWS), ("fake", many))
    ]
    real_logits = discriminator(diff_augment(BATCH["image"], uniform[0]), LABELS)
    fake_logits = discriminator(diff_augment(fake, uniform[1]), LABELS.repeat_interleave(3))
    margins = real_logits[:, None] - fake_logits.view(6, 3)
    expected = F.softplus(margins).mean() if loss == "relativistic" else -fake_logits.mean()
    objective = task(loss, latents=3, augmentation=Augmentation(kind="diff"))
    terms = objective.generator_loss(generator, discriminator, BATCH, DRAWS, 0)
    torch.testing.assert_close(terms["loss"], expected, **EXACT)


def test_several_latents_are_those_of_the_row() -> None:
    whole = DRAWS.several(2).normal(5)
    halves = [DRAWS.part(index, 2).several(2).normal(5) for index in (0, 1)]
    assert torch.equal(torch.cat(halves), whole)
