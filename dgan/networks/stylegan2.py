"""The StyleGAN2 family (Karras et al. 2020, "Analyzing and Improving … StyleGAN").

A mapping network and a synthesis network of modulated convolutions whose images add up over the
resolutions ("skip"), with equalised learning rates throughout (Karras et al. 2018, section 4.1), as
in the discriminator (`stylegan2_discriminator`). Where the paper draws its noise anew for each
image, here the latent decides it: the same latent gives the same image, on any number of ranks.
"""

import math

import torch
from torch import Tensor, nn

from dgan.draws import noise_from_seeds, seeds_from_latents
from dgan.networks.equalized import EqualizedLinear
from dgan.networks.layers import Embedding, Fused, stages_of
from dgan.networks.network import Network
from dgan.networks.resampling import Taps
from dgan_kernels import modulated_conv2d, norm_act, upsample2d


class Mapping(Fused):
    """Latents (and embedded labels) to the intermediate latents that styles are made of.

    `z_dim = 0`: embedded labels alone, as the discriminator of StyleGAN2-ADA has them.
    """

    def __init__(self, z_dim: int, classes: int, w_dim: int, depth: int) -> None:
        super().__init__()
        self.embedding = Embedding(classes, w_dim, gain=math.sqrt(classes)) if classes else None
        inputs = [z_dim + (w_dim if classes else 0)] + [w_dim] * (depth - 1)
        self.layers = nn.Sequential(
            *(EqualizedLinear(size, w_dim, act="leaky_relu", rate=0.01) for size in inputs)
        )

    def forward(self, z: Tensor | None, labels: Tensor | None = None) -> Tensor:
        """`[N, z_dim]`, labels int64 `[N]` → `[N, w_dim]`."""
        parts = [] if z is None else [z]
        if self.embedding is not None:
            parts.append(self.embedding(labels))
        unit = [norm_act(x, norm="pixel", eps=1e-8, backend=self.backend) for x in parts]
        return self.layers(torch.cat(unit, dim=1))


class StyledConv(Fused):
    """A modulated 3×3 convolution, noise, bias and leaky ReLU; `up` doubles the resolution."""

    def __init__(self, inputs: int, outputs: int, w_dim: int, *, layer: int, up: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.noise_strength = nn.Parameter(torch.empty(1))
        self.taps = Taps()
        self.layer, self.up = layer, 2 if up else 1
        self.reset_parameters()
        self.affine = EqualizedLinear(w_dim, inputs, bias=1.0)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew; there is no noise at first."""
        # Demodulation divides by the weights' norm: they need no scale of their own.
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.noise_strength)

    def forward(self, x: Tensor, w: Tensor, seeds: Tensor) -> Tensor:
        """`[N, inputs, H, W]`, `[N, w_dim]`, seeds int64 `[N]` → `[N, outputs, up·H, up·W]`."""
        height, width = (self.up * size for size in x.shape[2:])
        noise = noise_from_seeds(seeds, self.layer, (1, height, width))
        return modulated_conv2d(
            x, self.weight, self.affine(w), noise=noise * self.noise_strength,
            up=self.up, padding=1, resample_filter=self.taps() if self.up > 1 else None,
            bias=self.bias, act="leaky_relu", gain=math.sqrt(2), backend=self.backend,
        )  # fmt: skip


class ToImage(Fused):
    """Features to an image: a modulated 1×1 convolution, not demodulated, and a bias."""

    def __init__(self, inputs: int, channels: int, w_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()
        self.affine = EqualizedLinear(w_dim, inputs, bias=1.0)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """`[N, inputs, H, W]`, `[N, w_dim]` → `[N, channels, H, W]`."""
        styles = self.affine(w) / math.sqrt(self.weight.shape[1])
        return modulated_conv2d(
            x, self.weight, styles, demodulate=False, bias=self.bias, backend=self.backend
        )


class SynthesisStage(Fused):
    """One resolution: styled convolutions, and their share of the image."""

    def __init__(
        self, inputs: int | None, outputs: int, channels: int, w_dim: int, level: int
    ) -> None:
        super().__init__()
        self.taps = Taps()
        self.up = (
            None
            if inputs is None
            else StyledConv(inputs, outputs, w_dim, layer=2 * level - 1, up=True)
        )
        self.conv = StyledConv(outputs, outputs, w_dim, layer=2 * level, up=False)
        self.to_image = ToImage(outputs, channels, w_dim)

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
        return x, own + upsample2d(image, self.taps(), backend=self.backend)


class Constant(nn.Module):
    """What synthesis begins with, whatever the latent."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(channels, 4, 4))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw it anew."""
        nn.init.normal_(self.value)

    def forward(self, count: int) -> Tensor:
        """`[count, channels, 4, 4]`."""
        return self.value.expand(count, -1, -1, -1)


class StyleGAN2Generator(Network):
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
        self.constant = Constant(widths[0])
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
        x, image = self.constant(len(w)), None
        for stage in self.stages:
            x, image = stage(x, image, w, seeds)
        assert image is not None, "there is at least the stage at 4×4"
        return image
