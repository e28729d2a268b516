"""Several judges of one generator as one discriminator.

The rule by which they are combined: their logits stand side by side in a further dimension, `[N,
judges, ...]`, and every loss is a mean over all logits, so each judge counts the same. Where judges
give logits of other shapes than each other, each gives the mean of its own, `[N, judges]`. A
gradient penalty is that of the sum of the logits, as for a discriminator of patches.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Judges(nn.Module):
    """Several discriminators that see the same images and conditions.

    For example one that starts from scratch and one that sees features of a frozen network, or one
    for each of several resolutions (Wang et al. 2018, "High-resolution image synthesis … with
    conditional GANs", section 3.2; here pixels are averaged two by two, there by 3×3 means).

    Args:
        judges: of images and conditions.
        halvings: how often the images of each judge are halved; by default never.
    """

    def __init__(self, judges: Sequence[nn.Module], halvings: Sequence[int] = ()) -> None:
        super().__init__()
        self.judges = nn.ModuleList(judges)
        self.halvings = tuple(halvings) or (0,) * len(self.judges)
        self.couples_samples = any(getattr(j, "couples_samples", True) for j in self.judges)

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return [block for judge in self.judges for block in getattr(judge, "blocks", [judge])]

    def forward(self, x: Tensor, *conditions: Tensor | None) -> Tensor:
        """Images `[N, C, H, W]` → logits `[N, judges, ...]`."""
        logits = []
        for judge, halved in zip(self.judges, self.halvings, strict=True):
            seen = F.avg_pool2d(x, 2**halved) if halved else x
            logits.append(judge(seen, *conditions))
        return side_by_side(logits)


class Shadowed(nn.Module):
    """A judge and the moving average of its weights, both of which the generator has to convince.

    In the judge's own phase it is the judge alone; where its parameters are frozen, as in the
    generator's phase, its shadow judges beside it. The shadow is never trained: `follow` moves it.

    Args:
        judge: a discriminator.
        decay: what its shadow keeps of itself with each of its updates.
    """

    def __init__(self, judge: nn.Module, decay: float) -> None:
        super().__init__()
        self.judge, self.decay = judge, decay
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
    def follow(self) -> None:
        """shadow ← decay · shadow + (1 − decay) · judge, after an update; buffers are copied.

        Both are sharded alike, so that each rank moves what it holds.
        """
        for mine, theirs in zip(self.shadow.parameters(), self.judge.parameters(), strict=True):
            mine.lerp_(theirs, 1.0 - self.decay)
        for mine, theirs in zip(self.shadow.buffers(), self.judge.buffers(), strict=True):
            mine.copy_(theirs)


def follow_shadows(network: nn.Module) -> None:
    """Let every shadow in `network` follow its judge; to be called once after each update."""
    for part in network.modules():
        if isinstance(part, Shadowed):
            part.follow()


def side_by_side(logits: list[Tensor]) -> Tensor:
    """Judges' logits `[N, ...]` as `[N, judges, ...]`, or `[N, judges]` if their shapes differ."""
    if len({tuple(part.shape) for part in logits}) > 1:
        logits = [part.reshape(len(part), -1).mean(1) for part in logits]
    return torch.stack(logits, dim=1)
