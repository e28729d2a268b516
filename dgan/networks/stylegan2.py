"""The StyleGAN2 family (Karras et al. 2020, "Analyzing and Improving … StyleGAN").

A mapping network, a synthesis network of modulated convolutions whose images add up over the
resolutions ("skip"), and a residual discriminator, with equalised learning rates throughout
(Karras et al. 2018, section 4.1). Where the paper draws its noise anew for each image, here the
latent decides it: the same latent gives the same image, on any number of ranks.
"""

import math

import torch
from torch import Tensor, nn

from dgan.draws import noise_from_seeds, seeds_from_latents
from dgan.networks.equalized import EqualizedConv2d, EqualizedLinear
from dgan.networks.layers import TAPS, Embedding, Fused, stages_of
from dgan_kernels import minibatch_stddev, modulated_conv2d, norm_act, upsample2d


class Mapping(Fused):
    """Latents (and embedded labels) to the intermediate latents that styles are made of."""

    def __init__(self, z_dim: int, classes: int, w_dim: int, depth: int) -> None:
        super().__init__()
        self.embedding = Embedding(classes, w_dim, gain=math.sqrt(classes)) if classes else None
        inputs = [z_dim + (w_dim if classes else 0)] + [w_dim] * (depth - 1)
        self.layers = nn.Sequential(
            *(EqualizedLinear(size, w_dim, act="leaky_relu", rate=0.01) for size in inputs)
        )

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """`[N, z_dim]`, labels int64 `[N]` → `[N, w_dim]`."""
        parts = [z] if self.embedding is None else [z, self.embedding(labels)]
        unit = [norm_act(x, norm="pixel", eps=1e-8, backend=self.backend) for x in parts]
        return self.layers(torch.cat(unit, dim=1))


class StyledConv(Fused):
    """A modulated 3×3 convolution, noise, bias and leaky ReLU; `up` doubles the resolution."""

    taps: Tensor

    def __init__(self, inputs: int, outputs: int, w_dim: int, *, layer: int, up: bool) -> None:
        super().__init__()
        self.affine = EqualizedLinear(w_dim, inputs, bias=1.0)
        # Demodulation divides by the weights' norm: they need no scale of their own.
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros(1))
        self.register_buffer("taps", torch.tensor(TAPS), persistent=False)
        self.layer, self.up = layer, 2 if up else 1

    def forward(self, x: Tensor, w: Tensor, seeds: Tensor) -> Tensor:
        """`[N, inputs, H, W]`, `[N, w_dim]`, seeds int64 `[N]` → `[N, outputs, up·H, up·W]`."""
        height, width = (self.up * size for size in x.shape[2:])
        noise = noise_from_seeds(seeds, self.layer, (1, height, width))
        return modulated_conv2d(
            x, self.weight, self.affine(w), noise=noise * self.noise_strength,
            up=self.up, padding=1, resample_filter=self.taps.float() if self.up > 1 else None,
            bias=self.bias, act="leaky_relu", gain=math.sqrt(2), backend=self.backend,
        )  # fmt: skip


class ToImage(Fused):
    """Features to an image: a modulated 1×1 convolution, not demodulated, and a bias."""

    def __init__(self, inputs: int, channels: int, w_dim: int) -> None:
        super().__init__()
        self.affine = EqualizedLinear(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """`[N, inputs, H, W]`, `[N, w_dim]` → `[N, channels, H, W]`."""
        styles = self.affine(w) / math.sqrt(self.weight.shape[1])
        return modulated_conv2d(
            x, self.weight, styles, demodulate=False, bias=self.bias, backend=self.backend
        )


class SynthesisStage(Fused):
    """One resolution: styled convolutions, and their share of the image."""

    taps: Tensor

    def __init__(
        self, inputs: int | None, outputs: int, channels: int, w_dim: int, level: int
    ) -> None:
        super().__init__()
        self.up = (
            None
            if inputs is None
            else StyledConv(inputs, outputs, w_dim, layer=2 * level - 1, up=True)
        )
        self.conv = StyledConv(outputs, outputs, w_dim, layer=2 * level, up=False)
        self.to_image = ToImage(outputs, channels, w_dim)
        self.register_buffer("taps", torch.tensor(TAPS), persistent=False)

    def forward(
        self, x: Tensor, image: Tensor | None, w: Tensor, seeds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features and image of the stage below, w `[N, w_dim]`, seeds `[N]` → this stage's."""
        if self.up is not None:
            x = self.up(x, w, seeds)
        x = self.conv(x, w, seeds)
        own = self.to_image(x, w)
        if image is None:
            return x, own
        return x, own + upsample2d(image, self.taps.float(), backend=self.backend)


class StyleGAN2Generator(nn.Module):
    """Latents (and labels) to images.

    Args:
        resolution: of the images, a power of two.
        channels: of the images.
        classes: number of classes; 0 for an unconditional generator.
        z_dim: size of the latent.
        w_dim: size of the intermediate latent.
        mapping_layers: depth of the mapping network.
        widths: channels at 4×4, 8×8, …, `resolution`.

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
        z_dim: int = 512,
        w_dim: int = 512,
        mapping_layers: int = 8,
        widths: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.z_dim, self.w_dim = z_dim, w_dim
        if mapping_layers < 1:
            raise ValueError(f"mapping_layers must be at least 1, got {mapping_layers}")
        below = [
            None,
            *(inputs for inputs, _ in stages_of(resolution, widths, type(self).__name__)),
        ]
        self.mapping = Mapping(z_dim, classes, w_dim, mapping_layers)
        self.constant = nn.Parameter(torch.randn(widths[0], 4, 4))
        self.stages = nn.ModuleList(
            SynthesisStage(inputs, outputs, channels, w_dim, level)
            for level, (inputs, outputs) in enumerate(zip(below, widths))
        )

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return [self.mapping, *self.stages]

    def forward(
        self, z: Tensor, labels: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """Latents `[N, z_dim]`, labels int64 `[N]` → images `[N, C, H, W]`, about [−1, 1].

        `shift` `[N, w_dim]` is added to the intermediate latents, for derivatives in them.
        """
        w = self.mapping(z, labels)
        return self.synthesise(w if shift is None else w + shift, seeds_from_latents(z))

    def synthesise(self, w: Tensor, seeds: Tensor) -> Tensor:
        """Intermediate latents `[N, w_dim]`, int64 seeds of the noise `[N]` → images."""
        x, image = self.constant.expand(len(w), -1, -1, -1), None
        for stage in self.stages:
            x, image = stage(x, image, w, seeds)
        assert image is not None, "there is at least the stage at 4×4"
        return image


class ResidualStage(nn.Module):
    """One resolution: two convolutions to half the size, beside a 1×1 convolution to the same."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = math.sqrt(0.5)
        self.conv1 = EqualizedConv2d(inputs, inputs, 3)
        self.conv2 = EqualizedConv2d(inputs, outputs, 3, down=True, gain=half)
        self.skip = EqualizedConv2d(inputs, outputs, 1, down=True, act="linear", gain=half)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, H, W]` → `[N, outputs, H/2, W/2]`."""
        return self.skip(x) + self.conv2(self.conv1(x))


class Head(Fused):
    """4×4 features to a vector, which sees how much the samples of a group differ."""

    def __init__(self, channels: int, outputs: int, group_size: int) -> None:
        super().__init__()
        self.group_size = group_size
        self.conv = EqualizedConv2d(channels + (group_size > 1), channels, 3)
        self.hidden = EqualizedLinear(16 * channels, channels, act="leaky_relu")
        self.out = EqualizedLinear(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, channels, 4, 4]` → `[N, outputs]`."""
        if self.group_size > 1:
            x = self._with_deviation(x)
        return self.out(self.hidden(self.conv(x).flatten(1)))

    def _with_deviation(self, x: Tensor) -> Tensor:
        # Neighbours form a group, where the operator takes samples that lie far apart: the groups
        # of a batch that is spread over ranks are then those of the whole batch.
        size = math.gcd(len(x), self.group_size)
        apart = x.unflatten(0, (-1, size)).transpose(0, 1).flatten(0, 1)
        apart = minibatch_stddev(apart, size, backend=self.backend)
        return apart.unflatten(0, (size, -1)).transpose(0, 1).flatten(0, 1)


class StyleGAN2Discriminator(nn.Module):
    """Images (and labels, by projection) to logits.

    Args:
        widths: channels at 4×4, 8×8, …, `resolution`.
        group_size: how many neighbouring samples of a batch are compared with each other (Karras
            et al. 2018, section 3); where it does not divide a rank's micro-batch, their greatest
            common divisor. 1 leaves it out, and samples are then judged one by one.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        classes: int = 0,
        widths: tuple[int, ...],
        group_size: int = 4,
    ) -> None:
        super().__init__()
        if group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {group_size}")
        self.couples_samples = group_size > 1
        steps = stages_of(resolution, widths, "StyleGAN2Discriminator")[::-1]
        size = widths[0] if classes else 1
        self.from_image = EqualizedConv2d(channels, widths[-1], 1)
        self.stages = nn.ModuleList(ResidualStage(inputs, outputs) for outputs, inputs in steps)
        self.head = Head(widths[0], size, group_size)
        self.embedding = (
            Embedding(classes, size, gain=math.sqrt(classes / size)) if classes else None
        )

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return [*self.stages, self.head]

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images `[N, C, H, W]`, labels int64 `[N]` → logits `[N]`."""
        x = self.from_image(x)
        for stage in self.stages:
            x = stage(x)
        x = self.head(x)
        return (x if self.embedding is None else x * self.embedding(labels)).sum(1)
