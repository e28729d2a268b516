"""Several judges of one generator as one discriminator.

The rule by which they are combined: judges give logits of one shape, which stand side by side in a
further dimension, `[N, judges, ...]`; every loss is a mean over all logits, so each judge counts
the same. A gradient penalty is that of the sum of the logits, as for a discriminator of patches.
"""

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Judges(nn.Module):
    """Several discriminators that see the same images and conditions.

    For example one that starts from scratch and one that sees features of a frozen network.
    """

    def __init__(self, judges: Iterable[nn.Module]) -> None:
        super().__init__()
        self.judges = nn.ModuleList(judges)
        self.couples_samples = any(getattr(j, "couples_samples", True) for j in self.judges)

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return [block for judge in self.judges for block in getattr(judge, "blocks", [judge])]

    def forward(self, x: Tensor, *conditions: Tensor | None) -> Tensor:
        """Images `[N, C, H, W]` → logits `[N, judges, ...]`."""
        return side_by_side([judge(x, *conditions) for judge in self.judges])


class MultiScale(Judges):
    """A judge for each of several resolutions, the first for that of the images, then halves.

    Wang et al. 2018 ("High-resolution image synthesis … with conditional GANs"), section 3.2.
    Pixels are averaged two by two from one judge to the next.
    """

    def forward(self, x: Tensor, *conditions: Tensor | None) -> Tensor:
        """Images `[N, C, H, W]` → logits `[N, judges, ...]`."""
        logits = []
        for index, judge in enumerate(self.judges):
            x = F.avg_pool2d(x, 2) if index else x
            logits.append(judge(x, *conditions))
        return side_by_side(logits)


class Shadowed(nn.Module):
    """A judge and the moving average of its weights, both of which the generator has to convince.

    In the judge's own phase it is the judge alone; where its parameters are frozen, as in the
    generator's phase, its shadow judges beside it. The shadow is never trained: `follow` moves it.
    """

    def __init__(self, judge: nn.Module) -> None:
        super().__init__()
        self.judge = judge
        self.shadow = copy.deepcopy(judge).requires_grad_(False)
        self.couples_samples = getattr(judge, "couples_samples", True)

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return [
            block for part in (self.judge, self.shadow) for block in getattr(part, "blocks", [])
        ]

    def forward(self, x: Tensor, *conditions: Tensor | None) -> Tensor:
        """Images `[N, C, H, W]` → logits `[N, ...]`, or `[N, 2, ...]` with the shadow's."""
        logits = self.judge(x, *conditions)
        if any(parameter.requires_grad for parameter in self.judge.parameters()):
            return logits
        return side_by_side([logits, self.shadow(x, *conditions)])

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """shadow ← decay · shadow + (1 − decay) · judge, after an update; buffers are copied.

        Both are sharded alike, so that each rank moves what it holds.
        """
        for mine, theirs in zip(self.shadow.parameters(), self.judge.parameters(), strict=True):
            mine.lerp_(theirs, 1.0 - decay)
        for mine, theirs in zip(self.shadow.buffers(), self.judge.buffers(), strict=True):
            mine.copy_(theirs)


def side_by_side(logits: list[Tensor]) -> Tensor:
    """Judges' logits of one shape `[N, ...]` as `[N, judges, ...]`; `ValueError` if they differ."""
    shapes = {tuple(part.shape) for part in logits}
    if len(shapes) != 1:
        raise ValueError(
            f"judges give logits of shapes {', '.join(map(str, sorted(shapes)))}: they count the "
            "same only if their shapes are the same"
        )
    return torch.stack(logits, dim=1)
