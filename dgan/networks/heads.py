"""Output heads: from a generator's last features to images in [−1, 1], or around it.

What a head draws is decided by seeds `[N]`, one a sample (`dgan.draws.seeds_from_latents`): the
same latent gives the same image, on any number of ranks.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dgan.draws import noise_from_seeds

NOISE = 0x48454144
"""Tells a head's noise from that of a generator's layers, which count from 0."""


@dataclass(frozen=True)
class Head:
    """How features become images.

    Attributes:
        parameters: feature channels for each channel of the image.
        image: features `[N, parameters · C, ...]` and seeds int64 `[N]` → images `[N, C, ...]`.
    """

    parameters: int
    image: Callable[[Tensor, Tensor | None], Tensor]


def head_named(name: str) -> Head:
    """The head of that name; `ValueError` if there is none."""
    if name not in HEADS:
        close = difflib.get_close_matches(name, HEADS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"there is no head {name!r}; {hint}choose from {', '.join(HEADS)}")
    return HEADS[name]


def probabilities(features: Tensor) -> Tensor:
    """σ(features), the Bernoulli probability of each pixel being 1."""
    return features.sigmoid()


def straight_through(probability: Tensor, uniform: Tensor) -> Tensor:
    """1 with the given probability, else 0; its derivative is that of the probability.

    The straight-through estimator (Bengio et al. 2013, "Estimating or propagating gradients through
    stochastic neurons"): biased, for it takes the step's derivative to be 1.
    """
    sample = (uniform < probability).to(probability.dtype)
    return sample + probability - probability.detach()


def gaussian(features: Tensor, normal: Tensor) -> Tensor:
    """μ + s ε, features being μ and what softplus makes the scale s of; not bounded.

    The reparametrisation of Kingma and Welling 2014, section 2.4: differentiable in μ and s.
    """
    mean, scale = moments(features)
    return mean + scale * normal.to(mean.dtype)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale (positive) of each pixel: `[N, 2 C, ...]` → two `[N, C, ...]`."""
    mean, scale = features.chunk(2, dim=1)
    return mean, F.softplus(scale)


def _tanh(features: Tensor, seeds: Tensor | None) -> Tensor:
    return features.tanh()


def _probabilities(features: Tensor, seeds: Tensor | None) -> Tensor:
    return 2 * probabilities(features) - 1


def _bernoulli(features: Tensor, seeds: Tensor | None) -> Tensor:
    normal = _noise(features.shape[1:], seeds, "bernoulli")
    uniform = torch.special.ndtr(normal.to(torch.promote_types(features.dtype, torch.float32)))
    return 2 * straight_through(probabilities(features), uniform) - 1


def _gaussian(features: Tensor, seeds: Tensor | None) -> Tensor:
    channels, *size = features.shape[1:]
    if channels % 2:
        raise ValueError(f"a gaussian head takes a mean and a scale a channel, not {channels}")
    return gaussian(features, _noise((channels // 2, *size), seeds, "gaussian"))


def _noise(shape: tuple[int, ...], seeds: Tensor | None, head: str) -> Tensor:
    if seeds is None:
        raise ValueError(f"the head {head!r} draws its images: it needs seeds, one a sample")
    return noise_from_seeds(seeds, NOISE, tuple(shape))


HEADS: dict[str, Head] = {
    # Radford et al. 2016, section 3.
    "tanh": Head(1, _tanh),
    # Goodfellow et al. 2014, section 5, on MNIST: sigmoids, which are shown as they are.
    "probabilities": Head(1, _probabilities),
    # Black or white, drawn with those probabilities.
    "bernoulli": Head(1, _bernoulli),
    "gaussian": Head(2, _gaussian),
}
"""By name. Images in [−1, 1] but for `gaussian`, whose noise has no bounds."""
