"""SNGAN: residual networks, the discriminator's weights of spectral norm one.

Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks", appendix B.4, and
its class-conditional form (Miyato and Koyama 2018, "cGANs with Projection Discriminator"): class
embeddings as batch normalisation's scale and shift, and in the discriminator an inner product with
one. For CIFAR-10 the paper's generator has `widths=(256,) * 4`, its discriminator
`widths=(128,) * 4, smallest=8`; for ImageNet at 128×128 both have
`widths=(1024, 1024, 512, 256, 128, 64)`.
"""

import math
from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from dgan.networks.layers import (
    BiasAct,
    Conv2d,
    Embedding,
    Fill,
    Fused,
    Linear,
    NormAct,
    channels_last,
    stages_of,
)
from dgan.networks.network import Network
from dgan.networks.spectral import spectral_norm
from dgan_kernels import bias_act

Affine = Callable[[int], nn.Module]
"""Makes what gives `C` numbers a sample from its condition."""

ROOT_TWO = math.sqrt(2)
"""Keeps the variance through a ReLU."""


def zeros_(weight: Tensor, gain: float = 1.0) -> Tensor:
    """A `Fill` with zeros, whatever the gain."""
    return nn.init.zeros_(weight)


class ConditionalNorm(nn.Module):
    """Batch normalisation and ReLU; `affine` makes scale − 1 and shift from the condition."""

    def __init__(self, channels: int, affine: Affine | None) -> None:
        super().__init__()
        self.scale = None if affine is None else affine(channels)
        self.shift = None if affine is None else affine(channels)
        self.norm = NormAct(channels, "batch", act="relu", learned=affine is None)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """`[N, C, H, W]`, condition `[N, ...]` → the same shape as x."""
        if self.scale is None or self.shift is None:
            return self.norm(x)
        return self.norm(x, 1 + self.scale(condition), self.shift(condition))


class GenerativeBlock(nn.Module):
    """Twice the resolution: nearest neighbours, two 3×3 convolutions and a 1×1 beside them."""

    def __init__(self, inputs: int, outputs: int, affine: Affine | None, fill: Fill) -> None:
        super().__init__()
        conv = partial(Conv2d, bias=True, fill=fill)
        self.norm1 = ConditionalNorm(inputs, affine)
        self.conv1 = conv(inputs, outputs, 3, gain=ROOT_TWO)
        self.norm2 = ConditionalNorm(outputs, affine)
        self.conv2 = conv(outputs, outputs, 3, gain=ROOT_TWO)
        self.skip = conv(inputs, outputs, 1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """`[N, inputs, H, W]`, condition `[N, ...]` → `[N, outputs, 2·H, 2·W]`."""
        h = self.conv1(doubled(self.norm1(x, condition)))
        h = self.conv2(self.norm2(h, condition))
        # A 1×1 convolution and copying pixels commute: this order is a quarter of the work.
        return h + doubled(self.skip(x))


def doubled(x: Tensor) -> Tensor:
    """Every pixel four times."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


class DiscriminativeBlock(Fused):
    """Two 3×3 convolutions, and beside them a 1×1 where shapes change; `halve` the resolution.

    The `first` block of a network takes an image: there is nothing to rectify before it.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, *, first: bool, halve: bool, fill: Fill
    ) -> None:
        super().__init__()
        self.first, self.halve = first, halve
        self.conv1 = Conv2d(inputs, hidden, 3, gain=ROOT_TWO, fill=fill)
        self.act = BiasAct(hidden, act="relu")
        self.conv2 = Conv2d(hidden, outputs, 3, gain=ROOT_TWO, bias=True, fill=fill)
        learned = halve or inputs != outputs
        self.skip = Conv2d(inputs, outputs, 1, bias=True, fill=fill) if learned else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, H, W]` → `[N, outputs, H, W]`, or half as high and wide."""
        h = x if self.first else bias_act(x, act="relu", backend=self.backend)
        h = self.conv2(self.act(self.conv1(h)))
        if self.halve:
            # Means of 2×2 pixels and a 1×1 convolution commute.
            x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)
        return h + self.skip(x)


class Projection(Fused):
    """Features to logits: sums over the image (or means, by `pool`), then a linear map, and the
    class's inner product."""

    def __init__(self, channels: int, classes: int, fill: Fill, pool: str = "sum") -> None:
        super().__init__()
        if pool not in ("sum", "mean"):
            raise ValueError(f"pool {pool!r} is not known: choose from sum, mean")
        self.pool = pool
        self.linear = Linear(channels, 1, bias=True, fill=fill)
        self.embedding = Embedding(classes, channels, fill=fill) if classes else None

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """`[N, C, H, W]`, labels int64 `[N]` → logits `[N]`."""
        x = bias_act(x, act="relu", backend=self.backend)
        x = x.sum((2, 3)) if self.pool == "sum" else x.mean((2, 3))
        logits = self.linear(x).sum(1)
        # Miyato and Koyama 2018, equation 3.
        return logits if self.embedding is None else logits + (x * self.embedding(labels)).sum(1)


class SNGANGenerator(Network):
    """Latents (and labels) to images in (−1, 1).

    Args:
        resolution: of the images, a power of two.
        channels: of the images.
        classes: number of classes; 0 for an unconditional generator.
        z_dim: size of the latent.
        widths: channels at 4×4, 8×8, …, `resolution`.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    couples_samples = True  # batch normalisation

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        classes: int = 0,
        z_dim: int = 128,
        widths: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.z_dim = z_dim
        steps = stages_of(resolution, widths, "SNGANGenerator")
        affine = partial(Embedding, classes, fill=zeros_) if classes else None
        fill = nn.init.xavier_uniform_
        self.start = Linear(z_dim, 16 * widths[0], bias=True, fill=fill)
        self.stages = nn.ModuleList(GenerativeBlock(a, b, affine, fill) for a, b in steps)
        self.norm = NormAct(widths[-1], "batch", act="relu")
        self.to_image = Conv2d(widths[-1], channels, 3, bias=True, fill=fill)

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return list(self.stages)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents `[N, z_dim]`, labels int64 `[N]` → images `[N, C, H, W]`."""
        x = self.start(z).unflatten(1, (-1, 4, 4))
        for stage in self.stages:
            x = stage(x, labels)
        return self.to_image(self.norm(x)).tanh()


class SNGANDiscriminator(Network):
    """Images (and labels, by projection) to logits.

    Args:
        widths: channels at 4×4, 8×8, …, `resolution / 2`, in front of them those of one more block
            at the smallest resolution: as many as the generator has.
        smallest: the resolution at which halving ends; further blocks keep it.
        spectral: divide every weight by its spectral norm.
        pool: `sum` over the last features, or `mean` as in the residual critic of WGAN-GP
            (Gulrajani et al. 2017, appendix F), which has `spectral=False` besides.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    couples_samples = False

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        classes: int = 0,
        widths: tuple[int, ...],
        smallest: int = 4,
        spectral: bool = True,
        pool: str = "sum",
    ) -> None:
        super().__init__()
        steps = halving_stages(resolution, channels, widths, smallest, "SNGANDiscriminator")
        fill = nn.init.xavier_uniform_
        self.stages = nn.ModuleList(
            DiscriminativeBlock(a, a if i else b, b, first=i == 0, halve=halve, fill=fill)
            for i, (a, b, halve) in enumerate(steps)
        )
        self.head = Projection(widths[0], classes, fill, pool)
        if spectral:
            spectral_norm(self)

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return [*self.stages, self.head]

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images `[N, C, H, W]`, labels int64 `[N]` → logits `[N]`."""
        x = channels_last(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x, labels)


def halving_stages(
    resolution: int, channels: int, widths: tuple[int, ...], smallest: int, name: str
) -> list[tuple[int, int, bool]]:
    """Inputs and outputs of a discriminator's blocks from the image on, and whether they halve.

    Raises:
        ValueError: sizes that do not fit each other.
    """
    stages_of(resolution, widths, name)
    if smallest not in (4 << i for i in range(len(widths))):
        raise ValueError(
            f"{name} at resolution {resolution} cannot stop halving at {smallest}: `smallest` is "
            f"one of {', '.join(str(4 << i) for i in range(len(widths)))}"
        )
    halvings = (resolution // smallest).bit_length() - 1
    outputs = widths[::-1]
    inputs = (channels, *outputs[:-1])
    return [(a, b, i < halvings) for i, (a, b) in enumerate(zip(inputs, outputs))]
