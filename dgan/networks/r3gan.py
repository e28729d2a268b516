"""The R3GAN family (Huang et al. 2024, "The GAN is dead; long live the GAN!", section 4).

Grouped residual blocks without normalisation, scaled so that depth does not change the variance
at the start (Fix-up), a learned 4×4 basis at the bottom and [1, 2, 1] resampling between stages.
"""

import torch
from torch import Tensor, nn

from dgan.networks.layers import (
    LEAKY_RELU_GAIN,
    BiasAct,
    Conv2d,
    Embedding,
    Linear,
    channels_last,
    fan_in_normal_,
    stages_of,
)
from dgan.networks.network import Network
from dgan.networks.resampling import Resample


class ResidualBlock(nn.Module):
    """x + W₃ φ(W₂ φ(W₁ x)): 1×1 up, grouped 3×3, 1×1 down; W₃ starts at zero.

    `depth` is the number of such blocks in the network. Fix-up (Zhang et al. 2019, section 3)
    scales the m − 1 layers before the zero one by depth^(−1 / (2m − 2)), here with m = 3.
    """

    def __init__(self, channels: int, *, groups: int, expansion: int, depth: int) -> None:
        super().__init__()
        hidden = channels * expansion
        gain = LEAKY_RELU_GAIN * depth ** (-1 / 4)
        self.expand = Conv2d(channels, hidden, gain=gain)
        self.act1 = BiasAct(hidden)
        self.mix = Conv2d(hidden, hidden, kernel_size=3, groups=groups, gain=gain)
        self.act2 = BiasAct(hidden)
        self.project = Conv2d(hidden, channels, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` → the same shape."""
        return x + self.project(self.act2(self.mix(self.act1(self.expand(x)))))


class GenerativeBasis(nn.Module):
    """A learned 4×4 pattern a channel, each scaled by a linear map of the latent."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.basis = nn.Parameter(torch.empty(channels, 4, 4))
        self.reset_parameters()
        self.linear = Linear(inputs, channels)

    def reset_parameters(self) -> None:
        """Draw the patterns anew."""
        nn.init.normal_(self.basis)

    def forward(self, z: Tensor) -> Tensor:
        """`[N, inputs]` → `[N, channels, 4, 4]`, channels last in memory."""
        return channels_last(self.basis * self.linear(z)[:, :, None, None])


class DiscriminativeBasis(nn.Module):
    """Each channel's 4×4 map against a learned pattern, then a linear map."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.basis = nn.Parameter(torch.empty(channels, 4, 4))
        self.reset_parameters()
        self.linear = Linear(channels, outputs)

    def reset_parameters(self) -> None:
        """Draw the patterns anew."""
        fan_in_normal_(self.basis)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, channels, 4, 4]` → `[N, outputs]`."""
        return self.linear((x * self.basis).sum((2, 3)))


class Up(nn.Module):
    """To the next stage of the generator: width by a 1×1 convolution, then twice the size."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.conv = Conv2d(inputs, outputs) if inputs != outputs else nn.Identity()
        self.resample = Resample(size, up=True)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, size, size]` → `[N, outputs, 2·size, 2·size]`."""
        return self.resample(self.conv(x))


class Down(nn.Module):
    """To the next stage of the discriminator: half the size, then width by a 1×1 convolution."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.resample = Resample(size, up=False)
        self.conv = Conv2d(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, size, size]` → `[N, outputs, size/2, size/2]`."""
        return self.conv(self.resample(x))


def _check(
    widths: tuple[int, ...], blocks: tuple[int, ...], groups: tuple[int, ...], expansion: int
) -> None:
    """Raise `ValueError` if there can be no such stages."""
    for name, values in (("blocks", blocks), ("groups", groups)):
        if len(values) != len(widths):
            raise ValueError(
                f"{name} must have one entry for each width: got {tuple(values)} for widths "
                f"{tuple(widths)}"
            )
    for width, group in zip(widths, groups):
        if width * expansion % group:
            raise ValueError(
                f"groups {group} does not divide the {width * expansion} channels of a block "
                f"(width {width} × expansion {expansion})"
            )


def _residuals(
    level: int,
    widths: tuple[int, ...],
    blocks: tuple[int, ...],
    groups: tuple[int, ...],
    expansion: int,
) -> list[ResidualBlock]:
    """Those of the stage `level`, from 4×4 up."""
    options = {"groups": groups[level], "expansion": expansion, "depth": sum(blocks)}
    return [ResidualBlock(widths[level], **options) for _ in range(blocks[level])]


class R3GANGenerator(Network):
    """Latents (and labels) to images.

    Args:
        resolution: of the images, a power of two.
        channels: of the images.
        classes: number of classes; 0 for an unconditional generator.
        z_dim: size of the latent.
        widths: channels at 4×4, 8×8, …, `resolution`.
        blocks: residual blocks of each stage.
        groups: groups of each stage's 3×3 convolutions (the paper's cardinality).
        expansion: how much wider a block is inside than outside.

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
        z_dim: int = 64,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        groups: tuple[int, ...],
        expansion: int = 2,
    ) -> None:
        super().__init__()
        self.z_dim = z_dim
        steps = stages_of(resolution, widths, "R3GANGenerator")
        self.embedding = Embedding(classes, z_dim) if classes else None
        shape = (widths, blocks, groups, expansion)
        _check(*shape)
        basis = GenerativeBasis(2 * z_dim if classes else z_dim, widths[0])
        self.stages = nn.ModuleList([nn.Sequential(basis, *_residuals(0, *shape))])
        for level, (inputs, outputs) in enumerate(steps):
            up = Up(inputs, outputs, 4 << level)
            self.stages.append(nn.Sequential(up, *_residuals(level + 1, *shape)))
        self.to_image = Conv2d(widths[-1], channels)

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return list(self.stages)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents `[N, z_dim]`, labels int64 `[N]` → images `[N, C, H, W]`, about [−1, 1]."""
        x = z if self.embedding is None else torch.cat([z, self.embedding(labels)], dim=1)
        for stage in self.stages:
            x = stage(x)
        return self.to_image(x)


class R3GANDiscriminator(Network):
    """Images (and labels) to logits; the mirror image of `R3GANGenerator`, with its arguments.

    `widths`, `blocks` and `groups` are given from 4×4 up, as the generator's are.
    `embedding_dim` is the size in which image and class meet (0: the width at 4×4).
    """

    couples_samples = False

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        classes: int = 0,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        groups: tuple[int, ...],
        expansion: int = 2,
        embedding_dim: int = 0,
    ) -> None:
        super().__init__()
        steps = stages_of(resolution, widths, "R3GANDiscriminator")
        size = embedding_dim or widths[0]
        shape = (widths, blocks, groups, expansion)
        _check(*shape)
        self.from_image = Conv2d(channels, widths[-1])
        self.stages = nn.ModuleList()
        for level in reversed(range(len(steps))):
            outputs, inputs = steps[level]
            residuals = _residuals(level + 1, *shape)
            self.stages.append(nn.Sequential(*residuals, Down(inputs, outputs, 8 << level)))
        residuals = _residuals(0, *shape)
        basis = DiscriminativeBasis(widths[0], size if classes else 1)
        self.stages.append(nn.Sequential(*residuals, basis))
        self.embedding = Embedding(classes, size, gain=size**-0.5) if classes else None

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return list(self.stages)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images `[N, C, H, W]`, labels int64 `[N]` → logits `[N]`."""
        x = channels_last(self.from_image(x))
        for stage in self.stages:
            x = stage(x)
        return (x if self.embedding is None else x * self.embedding(labels)).sum(1)
