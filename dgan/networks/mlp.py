"""Multilayer perceptrons, the networks of the first GAN (Goodfellow et al. 2014)."""

import math

import torch
from torch import Tensor, nn

from dgan.draws import seeds_from_latents
from dgan.networks.heads import head_named
from dgan.networks.layers import LEAKY_RELU_GAIN, BiasAct, Embedding, Linear
from dgan.networks.network import Network


def _hidden(inputs: int, widths: tuple[int, ...]) -> nn.ModuleList:
    sizes = (inputs, *widths)
    return nn.ModuleList(
        nn.Sequential(Linear(a, b, gain=LEAKY_RELU_GAIN), BiasAct(b)) for a, b in zip(sizes, widths)
    )


class MLPGenerator(Network):
    """Latents (and labels) to images, through hidden layers of the given `widths` and a `head`.

    `head` is one of `dgan.networks.heads`: `tanh`, `probabilities`, `bernoulli` or `gaussian`.
    """

    couples_samples = False

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        classes: int = 0,
        z_dim: int = 64,
        widths: tuple[int, ...] = (256, 256),
        head: str = "tanh",
    ) -> None:
        super().__init__()
        self.z_dim, self.head = z_dim, head_named(head)
        self.shape = (self.head.parameters * channels, resolution, resolution)
        self.embedding = Embedding(classes, z_dim) if classes else None
        self.hidden = _hidden(2 * z_dim if classes else z_dim, widths)
        self.to_image = nn.Linear(widths[-1], math.prod(self.shape))

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return list(self.hidden)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents `[N, z_dim]`, labels int64 `[N]` → images `[N, C, H, W]`."""
        x = z if self.embedding is None else torch.cat([z, self.embedding(labels)], dim=1)
        for layer in self.hidden:
            x = layer(x)
        features = self.to_image(x).unflatten(1, self.shape)
        return self.head.image(features, seeds_from_latents(z))


class MLPDiscriminator(Network):
    """Images (and labels, by projection) to logits, through hidden layers of the `widths`."""

    couples_samples = False

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        classes: int = 0,
        widths: tuple[int, ...] = (256, 256),
    ) -> None:
        super().__init__()
        self.hidden = _hidden(channels * resolution**2, widths)
        self.head = nn.Linear(widths[-1], 1)
        self.embedding = Embedding(classes, widths[-1]) if classes else None

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return list(self.hidden)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images `[N, C, H, W]`, labels int64 `[N]` → logits `[N]`."""
        x = x.flatten(1)
        for layer in self.hidden:
            x = layer(x)
        logits = self.head(x).sum(1)
        if self.embedding is None:
            return logits
        # Miyato and Koyama 2018, equation 3: an unconditional part and an inner product.
        return logits + (x * self.embedding(labels)).sum(1)
