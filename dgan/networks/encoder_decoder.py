"""Generators from image to image: a U-Net (pix2pix) and residual blocks (CycleGAN).

Both consist of an encoder, a fusion of what it found, a decoder and a head that gives the image.
"""

from itertools import pairwise
from statistics import NormalDist

import torch
from torch import Tensor, nn

from dgan.draws import noise_from_seeds, seeds_from_latents
from dgan.networks.convolution import Conv2d, ConvTranspose2d, ReflectedConv2d, stage
from dgan.networks.network import Network


class UNetGenerator(Network):
    """The U-Net of pix2pix (Isola et al. 2017, section 6.1.1): images to images in (−1, 1).

    Dropout is the paper's noise, in training and afterwards, in the decoder's first three stages.
    Here the latent of a sample decides its masks: the same latent gives the same image, on any
    number of ranks and in any division of the batch. Masks agree between kinds of device up to
    the rounding of `noise_from_seeds`.

    Args:
        resolution: height and width of the images, divisible by 2^depth.
        channels: of the images that it makes.
        classes: must be 0: what it makes is conditioned on an image.
        source_channels: of the images that it is given; 0: as many as it makes.
        width: channels after the first stage; they double with each, up to eight times as many.
        depth: how often the resolution is halved; 0: down to 1×1.
        norm: `instance`, `batch`, `layer` or `none`. The paper trains with batches of one sample,
            of which `batch` and `instance` are the same.
        dropout: the probability that an activation is dropped; 0: the image alone decides.
        z_dim: size of the latent. It has no other effect than the masks: a few numbers will do.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        classes: int = 0,
        source_channels: int = 0,
        width: int = 64,
        depth: int = 0,
        norm: str = "instance",
        dropout: float = 0.5,
        z_dim: int = 8,
    ) -> None:
        super().__init__()
        _refuse_classes(classes, "UNetGenerator")
        depth = depth or resolution.bit_length() - 1
        if depth < 2 or resolution % 2**depth:
            raise ValueError(
                f"UNetGenerator halves the resolution {depth} times (depth; 0: down to 1×1), at "
                f"least 2, and must meet whole numbers: resolution {resolution} does not fit"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and less than 1, got {dropout}")
        if dropout and z_dim < 1:
            raise ValueError(f"z_dim must be at least 1, got {z_dim}: the latent decides dropout")
        self.z_dim, self.dropout = z_dim, dropout
        self.couples_samples = norm == "batch"
        widths = [width * min(2**level, 8) for level in range(depth)]
        # The first stage is not normalised, nor the last: 1×1 normalised by itself would be 0.
        self.encoder = nn.ModuleList(
            [stage(_down(source_channels or channels, width), "none", LEAKY)]
        )
        for before, after in pairwise(widths[:-1]):
            self.encoder.append(stage(_down(before, after), norm, LEAKY))
        self.fusion = stage(_down(widths[-2], widths[-1]), "none", "relu")
        self.decoder = nn.ModuleList()
        for index, after in enumerate(widths[-2::-1]):
            inputs = 2 * widths[-1 - index] if index else widths[-1]
            rate = dropout if index < 3 else 0.0
            self.decoder.append(UpStage(inputs, after, norm, rate, layer=index))
        self.head = nn.Sequential(_up(2 * width, channels, bias=True), nn.Tanh())

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return [*self.encoder, self.fusion, *self.decoder]

    def forward(self, source: Tensor, z: Tensor | None = None) -> Tensor:
        """Images `[N, Cin, H, W]`, latents `[N, z_dim]` → images `[N, C, H, W]`.

        Raises:
            ValueError: there is dropout and no latent.
        """
        if self.dropout and z is None:
            raise ValueError("UNetGenerator draws its dropout from latents z: none were given")
        seeds = None if z is None else seeds_from_latents(z)
        x, skips = source, []
        for part in self.encoder:
            x = part(x)
            skips.append(x)
        x = self.fusion(x)
        for part in self.decoder:
            x = part(x, skips.pop(), seeds)
        return self.head(x)


class UpStage(nn.Module):
    """Twice the resolution, with dropout; what the encoder found there is put beside it."""

    def __init__(self, inputs: int, outputs: int, norm: str, dropout: float, *, layer: int) -> None:
        super().__init__()
        self.up = stage(_up(inputs, outputs), norm, "relu")
        self.dropout, self.layer = dropout, layer

    def forward(self, x: Tensor, skip: Tensor, seeds: Tensor | None) -> Tensor:
        """`[N, inputs, H, W]`, `[N, C, 2H, 2W]`, int64 `[N]` → `[N, outputs + C, 2H, 2W]`."""
        x = self.up(x)
        if self.dropout and seeds is not None:
            x = x * _mask(x, seeds, self.layer, self.dropout)
        return torch.cat([x, skip.relu()], 1)


class ResNetGenerator(Network):
    """The generator of CycleGAN (Zhu et al. 2017, appendix 7.2): images to images in (−1, 1).

    Args: as `UNetGenerator`, and
        resolution: divisible by 4, at least 8.
        residual_blocks: at a quarter of the resolution; the paper takes 6 up to 128×128, then 9.
        z_dim: 0: the image alone decides, latents are not looked at.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    z_dim = 0

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        classes: int = 0,
        source_channels: int = 0,
        width: int = 64,
        residual_blocks: int = 9,
        norm: str = "instance",
    ) -> None:
        super().__init__()
        _refuse_classes(classes, "ResNetGenerator")
        if resolution < 8 or resolution % 4:
            raise ValueError(
                f"ResNetGenerator cannot make resolution {resolution}: it takes 8, 12, 16, …"
            )
        if residual_blocks < 1:
            raise ValueError(f"residual_blocks must be at least 1, got {residual_blocks}")
        self.couples_samples = norm == "batch"
        stem = ReflectedConv2d(source_channels or channels, width, 7)
        self.encoder = nn.ModuleList([stage(stem, norm, "relu")])
        for before, after in ((width, 2 * width), (2 * width, 4 * width)):
            down = Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            self.encoder.append(stage(down, norm, "relu"))
        self.fusion = nn.ModuleList(ResidualBlock(4 * width, norm) for _ in range(residual_blocks))
        self.decoder = nn.ModuleList()
        for before, after in ((4 * width, 2 * width), (2 * width, width)):
            up = ConvTranspose2d(
                before, after, 3, stride=2, padding=1, output_padding=1, bias=False
            )
            self.decoder.append(stage(up, norm, "relu"))
        self.head = nn.Sequential(ReflectedConv2d(width, channels, 7, bias=True), nn.Tanh())

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return [*self.encoder, *self.fusion, *self.decoder]

    def forward(self, source: Tensor, z: Tensor | None = None) -> Tensor:
        """Images `[N, Cin, H, W]` → images `[N, C, H, W]`; `z` is not used."""
        x = source
        for part in self.blocks:
            x = part(x)
        return self.head(x)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside the identity."""

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        self.first = stage(ReflectedConv2d(width, width, 3), norm, "relu")
        self.second = stage(ReflectedConv2d(width, width, 3), norm, "linear")

    def forward(self, x: Tensor) -> Tensor:
        """`[N, width, H, W]` → the same shape."""
        return x + self.second(self.first(x))


LEAKY = "leaky_relu"


def _down(inputs: int, outputs: int) -> Conv2d:
    return Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False)


def _up(inputs: int, outputs: int, *, bias: bool = False) -> ConvTranspose2d:
    return ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=bias)


def _mask(x: Tensor, seeds: Tensor, layer: int, rate: float) -> Tensor:
    """0 with probability `rate`, else 1/(1 − rate), for each activation `[N, C, H, W]`."""
    kept = noise_from_seeds(seeds, layer, tuple(x.shape[1:])) > NormalDist().inv_cdf(rate)
    return kept.to(x.dtype) / (1 - rate)


def _refuse_classes(classes: int, name: str) -> None:
    if classes:
        raise ValueError(f"{name} is conditioned on an image, not on a class: set --data.classes 0")
