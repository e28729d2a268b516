"""The character-level language model of Gulrajani et al. 2017 (WGAN-GP, section 5.4).

Residual one-dimensional convolutions of width 5. The generator ends in a softmax over characters:
what the critic compares with one-hot vectors is differentiable.
"""

import torch
from torch import Tensor, nn

from dgan.networks.layers import Embedding, Linear, fan_in_normal_, stored_weight
from dgan.networks.network import Network

KERNEL_SIZE, RESIDUAL = 5, 0.3


class Conv1d(nn.Conv1d):
    """A convolution that keeps the length."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, gain: float = 1.0) -> None:
        self.gain = gain
        super().__init__(inputs, outputs, kernel_size, padding=kernel_size // 2)

    def reset_parameters(self) -> None:
        """Draw the weights anew; the bias is 0."""
        fan_in_normal_(stored_weight(self), self.gain)
        assert self.bias is not None
        nn.init.zeros_(self.bias)


class ResidualBlock(nn.Module):
    """x + 0.3 W₂ φ(W₁ φ(x)), with ReLUs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        gain = 2**0.5
        self.residual = nn.Sequential(
            nn.ReLU(), Conv1d(width, width, KERNEL_SIZE, gain),
            nn.ReLU(), Conv1d(width, width, KERNEL_SIZE, gain),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """`[N, width, L]` → the same shape."""
        return x + RESIDUAL * self.residual(x)


class CharacterGenerator(Network):
    """Latents (and labels) to probabilities of characters.

    Args:
        resolution: characters of a text.
        channels: of the alphabet.
        classes: 0: unconditional. Otherwise a vector a class is put beside the latent.
        z_dim: size of the latents.
        width: channels of every layer.
        depth: residual blocks.
    """

    couples_samples = False

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        classes: int = 0,
        z_dim: int = 128,
        width: int = 512,
        depth: int = 5,
    ) -> None:
        super().__init__()
        self.z_dim, self.shape = z_dim, (width, resolution)
        self.embedding = Embedding(classes, z_dim) if classes else None
        self.first = Linear(2 * z_dim if classes else z_dim, width * resolution, bias=True)
        self.stages = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.to_characters = Conv1d(width, channels, 1)

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return list(self.stages)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents `[N, z_dim]`, labels int64 `[N]` → `[N, channels, L]`, summing to 1 over 1."""
        x = z if self.embedding is None else torch.cat([z, self.embedding(labels)], dim=1)
        x = self.first(x).unflatten(1, self.shape)
        for stage in self.stages:
            x = stage(x)
        return self.to_characters(x).softmax(1)


class CharacterDiscriminator(Network):
    """Texts (and labels, by projection) to logits.

    Args: as `CharacterGenerator`, but for the latents.
    """

    couples_samples = False

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        classes: int = 0,
        width: int = 512,
        depth: int = 5,
    ) -> None:
        super().__init__()
        self.first = Conv1d(channels, width, 1, gain=channels**0.5)  # of a one-hot vector one is 1
        self.stages = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.head = Linear(width * resolution, 1, bias=True)
        self.embedding = Embedding(classes, width) if classes else None

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return list(self.stages)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """`[N, channels, L]`, labels int64 `[N]` → logits `[N]`."""
        x = self.first(x)
        for stage in self.stages:
            x = stage(x)
        logits = self.head(x.flatten(1)).squeeze(1)
        if self.embedding is None:
            return logits
        # Miyato and Koyama 2018, equation 3.
        return logits + (x.mean(2) * self.embedding(labels)).sum(1)
