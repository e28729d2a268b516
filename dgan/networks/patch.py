"""Discriminators that judge patches (Isola et al. 2017; Wang et al. 2018), one logit a patch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgan.networks.convolution import Conv2d, stage
from dgan.networks.network import Network

RECEPTIVE_FIELDS = (1, 16, 34, 70, 142, 286)
"""Side of the patch that a logit sees, by the number of stages that halve the resolution: after
these come two 4×4 convolutions. 1 is the paper's PixelGAN, three 1×1 convolutions."""


class PatchDiscriminator(Network):
    """PatchGAN (Isola et al. 2017, section 6.1.2): a logit for each patch of an image.

    Patches overlap and reach over the border, where they see zeros. A norm other than `none` lets
    a logit see statistics of the whole image too.

    Args:
        resolution: height and width of the images.
        channels: of the images that are judged.
        classes: must be 0: the condition is an image.
        source_channels: of the images that they are judged with; 0: unconditional.
        width: channels after the first stage; they double with each, up to eight times as many.
        receptive_field: one of `RECEPTIVE_FIELDS`.
        norm: `instance`, `batch`, `layer` or `none`; see `UNetGenerator`.

    Raises:
        ValueError: there is no such receptive field, or the images are too small for it.
    """

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        classes: int = 0,
        source_channels: int = 0,
        width: int = 64,
        receptive_field: int = 70,
        norm: str = "instance",
    ) -> None:
        super().__init__()
        if classes:
            raise ValueError("PatchDiscriminator is given images, no classes: set --data.classes 0")
        self.side = patches_a_side(resolution, receptive_field)
        self.receptive_field = receptive_field
        self.couples_samples = norm == "batch"
        halvings = RECEPTIVE_FIELDS.index(receptive_field)
        # (kernel size, stride) of each stage
        shapes = [(4, 2)] * halvings + [(4, 1)] if halvings else [(1, 1)] * 2
        self.stages = nn.ModuleList()
        before = channels + source_channels
        for level, (size, stride) in enumerate(shapes):
            after = width * min(2**level, 8)
            conv = Conv2d(before, after, size, stride=stride, padding=size // 4, bias=False)
            # The first stage is not normalised (their appendix).
            self.stages.append(stage(conv, norm if level else "none", "leaky_relu"))
            before = after
        size, _ = shapes[-1]
        self.head = Conv2d(before, 1, size, padding=size // 4)

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return list(self.stages)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """Images `[N, C, H, W]`, those they go with `[N, Cs, H, W]` → logits `[N, H', W']`."""
        x = x if source is None else torch.cat([x, source], 1)
        for part in self.stages:
            x = part(x)
        return self.head(x).squeeze(1)


class MultiscalePatchDiscriminator(Network):
    """A `PatchDiscriminator` of its own for each scale (Wang et al. 2018, section 3.2).

    The images are halved by 3×3 means. Each scale counts equally, as in the paper's sum of losses:
    the logits of the coarser ones are repeated until there are as many as of the finest, so the
    mean over all is the mean over scales, up to some patches that are repeated once more often.

    Args: as `PatchDiscriminator`, and
        scales: how many; the images of the last are 2^(scales − 1) times smaller.

    Raises:
        ValueError: the images of the last scale are too small, or there are no scales.
    """

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        classes: int = 0,
        source_channels: int = 0,
        width: int = 64,
        receptive_field: int = 70,
        norm: str = "instance",
        scales: int = 3,
    ) -> None:
        super().__init__()
        if scales < 1 or resolution % 2 ** (scales - 1):
            raise ValueError(
                f"scales must be at least 1 and the resolution divisible by 2^(scales − 1); got "
                f"{scales} scales of resolution {resolution}"
            )
        self.couples_samples = norm == "batch"
        self.scales = nn.ModuleList(
            PatchDiscriminator(
                resolution=resolution >> scale,
                channels=channels,
                classes=classes,
                source_channels=source_channels,
                width=width,
                receptive_field=receptive_field,
                norm=norm,
            )
            for scale in range(scales)
        )

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return [block for scale in self._judges() for block in scale.blocks]

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """Images `[N, C, H, W]`, `[N, Cs, H, W]` → logits `[N, scales · P]`, the finest first."""
        x = x if source is None else torch.cat([x, source], 1)
        maps: list[Tensor] = []
        for index, judge in enumerate(self._judges()):
            if index:
                x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
            logits = judge(x)
            size = maps[0].shape[2:] if maps else logits.shape[1:]
            maps.append(F.interpolate(logits[:, None], size, mode="nearest-exact"))
        return torch.cat(maps, 1).flatten(1)

    def _judges(self) -> list[PatchDiscriminator]:
        return [judge for judge in self.scales if isinstance(judge, PatchDiscriminator)]


def patches_a_side(resolution: int, receptive_field: int) -> int:
    """How many logits a row of the image gets; `ValueError` if none."""
    if receptive_field not in RECEPTIVE_FIELDS:
        choices = ", ".join(map(str, RECEPTIVE_FIELDS))
        raise ValueError(f"receptive_field {receptive_field} is not known: choose from {choices}")
    halvings = RECEPTIVE_FIELDS.index(receptive_field)
    side = (resolution >> halvings) - 2 if halvings else resolution
    if side < 1:
        fitting = [f for i, f in enumerate(RECEPTIVE_FIELDS) if resolution >> i > 2 or not i]
        raise ValueError(
            f"resolution {resolution} is too small for a receptive_field of {receptive_field}: "
            f"take one of {', '.join(map(str, fitting))}"
        )
    return side
