"""Projected GAN (Sauer et al. 2021): a discriminator that sees features of a frozen network."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgan.networks.convolution import Conv2d, stage
from dgan.networks.extractors import Extractor, open_extractor
from dgan.networks.layers import Embedding, fan_in_normal_
from dgan.networks.network import Network
from dgan.networks.spectral import spectral_norm

EMBEDDING = 64
"""The size in which a position and a class meet."""


class ProjectedDiscriminator(Network):
    """Images (and labels, by projection) to logits: a small discriminator for each feature scale.

    The features pass through fixed random projections before they are judged (section 3.2 of the
    paper): 1×1 convolutions mix the channels of a stage, then 3×3 convolutions bring the coarser
    stages to the finer ones. Convolutions of the small discriminators have spectral norm one: let
    `advance_spectral_norms` follow each update.

    The extractor is only ever read (see `Extractor`); the projections are buffers, drawn with the
    weights and saved with them. Gradients and penalties go through both, to the images.

    Args:
        resolution: height and width of the images.
        channels: of the images.
        classes: number of classes; 0 for an unconditional discriminator.
        extractor: a file or an import path, as `open_extractor` takes them, or an `Extractor`.
        stages: of the extractor, from fine to coarse.
        width: channels of the finest stage after the projections; each coarser stage has twice as
            many, and so has each stage of a small discriminator, up to eight times as many. With
            as many as the extractor's or more, nothing of its features is lost.
        norm: of the small discriminators: `batch` as published, `layer`, `instance` or `none`.

    Raises:
        ValueError: the extractor does not take such images, or its stages do not follow each other
            from fine to coarse. FileNotFoundError: there is no such extractor.
    """

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        classes: int = 0,
        extractor: str | Extractor,
        stages: tuple[str, ...] = (),
        width: int = 64,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        shape = (channels, resolution, resolution)
        if isinstance(extractor, str):
            extractor = open_extractor(extractor, stages, shape)
        if extractor.shape != shape:
            raise ValueError(f"the extractor takes images {extractor.shape}, these are {shape}")
        self.couples_samples = norm == "batch"
        self.extractor = extractor
        shapes = extractor.shapes
        sides = [min(shape[1:]) for shape in shapes]
        if sides != sorted(sides, reverse=True) or sides[-1] < 4:
            sizes = ", ".join(f"{height}×{width}" for _, height, width in shapes)
            raise ValueError(
                "stages of the extractor must go from fine to coarse, and not below 4×4: "
                f"{extractor.name} gives maps of {sizes} from images of {resolution}×{resolution}"
            )
        widths = [width * min(2**level, 8) for level in range(len(shapes))]
        self.channel_mixing = nn.ModuleList(
            RandomConv2d(inputs, outputs, 1) for (inputs, _, _), outputs in zip(shapes, widths)
        )
        self.scale_mixing = nn.ModuleList(
            RandomConv2d(coarser, finer, 3) for finer, coarser in pairwise(widths)
        )
        self.judges = nn.ModuleList(
            ScaleDiscriminator(inputs, side, 8 * width, classes, norm)
            for inputs, side in zip(widths, sides)
        )
        spectral_norm(self, [m for m in self.judges.modules() if isinstance(m, Conv2d)])

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return list(self.judges)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images `[N, C, H, W]`, labels int64 `[N]` → logits `[N, P]`, the finest scale's first.

        Each scale has the same number of logits if all maps are 4·2^k high and wide: the mean over
        all logits is then the mean over scales.
        """
        maps = [mix(features) for mix, features in zip(self.channel_mixing, self.extractor(x))]
        for level in reversed(range(len(maps) - 1)):
            size = maps[level].shape[2:]
            coarser = F.interpolate(maps[level + 1], size, mode="bilinear", align_corners=False)
            # A sum of two, at the scale of each.
            maps[level] = (maps[level] + self.scale_mixing[level](coarser)) * math.sqrt(0.5)
        logits = [judge(features, labels) for judge, features in zip(self.judges, maps)]
        return torch.cat([part.flatten(1) for part in logits], 1)


class RandomConv2d(nn.Module):
    """A convolution that keeps the resolution and the scale, and is never trained."""

    weight: Tensor

    def __init__(self, inputs: int, outputs: int, kernel_size: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(outputs, inputs, kernel_size, kernel_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        fan_in_normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, H, W]` → `[N, outputs, H, W]`."""
        return F.conv2d(x, self.weight.to(x.dtype), padding=self.weight.shape[-1] // 2)


class ScaleDiscriminator(nn.Module):
    """Feature maps, and labels, to a logit for each position of a 4×4 grid."""

    def __init__(self, inputs: int, side: int, widest: int, classes: int, norm: str) -> None:
        super().__init__()
        self.stages = nn.Sequential()
        while side >= 8:
            outputs = min(2 * inputs, widest)
            down = Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
            self.stages.append(stage(down, norm, "leaky_relu"))
            inputs, side = outputs, side // 2
        # So that the coarsest maps, too, meet more than a linear function.
        same = Conv2d(inputs, inputs, 3, padding=1, bias=False)
        self.stages.append(stage(same, norm, "leaky_relu"))
        self.head = Conv2d(inputs, EMBEDDING if classes else 1, 1)
        self.embedding = None
        if classes:
            self.embedding = Embedding(classes, EMBEDDING, gain=math.sqrt(classes / EMBEDDING))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """`[N, inputs, H, W]`, labels int64 `[N]` → logits `[N, 4, 4]`."""
        x = self.head(self.stages(x))
        if self.embedding is not None:
            x = x * self.embedding(labels)[:, :, None, None]
        return x.sum(1)
