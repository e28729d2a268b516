"""Adversarial losses, as functions of the discriminator's logits.

Every loss is a mean over the batch. `real` and `fake` are logits of equal shape, `[N]` or
`[N, ...]` for discriminators that judge patches.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """What each player minimises, given (real logits, fake logits)."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    generator_sees_real: bool = False
    """Whether the generator's loss depends on the real logits."""


def _non_saturating_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def _non_saturating_generator(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-fake).mean()


def _hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def _hinge_generator(real: Tensor, fake: Tensor) -> Tensor:
    return -fake.mean()


def _relativistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(fake - real).mean()


def _relativistic_generator(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(real - fake).mean()


LOSSES: dict[str, Loss] = {
    # Goodfellow et al. 2014, section 3: D maximises log σ(D(x)) + log(1 − σ(D(G(z)))),
    # G maximises log σ(D(G(z))) instead of minimising the term that saturates.
    "non_saturating": Loss(_non_saturating_discriminator, _non_saturating_generator),
    # Lim and Ye 2017, equations 10 and 11; Miyato et al. 2018, equations 16 and 17.
    "hinge": Loss(_hinge_discriminator, _hinge_generator),
    # Relativistic pairing, Jolicoeur-Martineau 2019; Huang et al. 2024, equation 2:
    # each real sample is judged against one fake sample, D by σ(D(x) − D(G(z))).
    "relativistic": Loss(
        _relativistic_discriminator, _relativistic_generator, generator_sees_real=True
    ),
}
