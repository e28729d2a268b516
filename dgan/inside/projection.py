"""The latent whose image comes nearest to a given one."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dgan.inside.spaces import Space

Distance = Callable[[Tensor], Tensor]
"""Images `[N, C, H, W]` in [−1, 1] → their distances to a target, `[N]`, differentiable."""

CANDIDATES = 32
"""Random latents that are looked at for every start; the starts are the best of all."""

LEARNING_RATE = 0.1
"""Adam's at the beginning; it falls to 0 along half a cosine."""

SHOWN = 6
"""Images of the way that are kept, from the start to the end."""


@dataclass(frozen=True)
class Projection:
    """What came of each of S starts, the best first.

    Attributes:
        points: of the space, `[S, D]`: where each start was nearest to the target.
        labels: int64 `[S]`, or None.
        before, after: distances at the start, and at `points`, `[S]`.
        images: of `points`, `[S, C, H, W]`.
        progress: images on the way, `[S, SHOWN, C, H, W]`.
    """

    points: Tensor
    labels: Tensor | None
    before: Tensor
    after: Tensor
    images: Tensor
    progress: Tensor


def project(
    space: Space, z: Tensor, labels: Tensor | None, distance: Distance, *, starts: int, steps: int
) -> Projection:
    """Minimise `distance` over the points of `space`, from several starts side by side.

    Karras et al. 2020, appendix D, without its noise. z is not held to its prior.

    Args:
        space: of a generator without training-time behaviour, whose weights need no gradient.
        z: candidates `[N ≥ starts, z_dim]`, with `labels` `[N]`; the starts are the best of them,
            and keep their classes.
        distance: to the target.
        starts: how many.
        steps: of Adam.
    """
    points, labels = _best_candidates(space, z, labels, distance, starts)
    points.requires_grad_(True)
    optimizer = torch.optim.Adam([points], lr=LEARNING_RATE, betas=(0.9, 0.99))
    shown = {round(share * steps / (SHOWN - 1)) for share in range(SHOWN)}
    best, before = points.detach().clone(), torch.empty(0)
    after, progress = torch.full((starts,), math.inf).to(points), list[Tensor]()
    for step in range(steps + 1):
        images = space.images(points, labels)
        distances = distance(images)
        if step == 0:
            before = distances.detach()
        better = distances.detach() < after
        after = torch.where(better, distances.detach(), after)
        best = torch.where(better[:, None], points.detach(), best)
        if step in shown:
            progress.append(images.detach())
        if step == steps:
            break
        optimizer.param_groups[0]["lr"] = (
            LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        )
        optimizer.zero_grad()
        distances.sum().backward()  # starts do not see each other
        optimizer.step()
    order = after.argsort()
    labels = None if labels is None else labels[order]
    with torch.no_grad():
        images = space.images(best[order], labels)
    way = torch.stack(progress, dim=1)[order]
    return Projection(best[order], labels, before[order], after[order], images, way)


@torch.no_grad()
def _best_candidates(
    space: Space, z: Tensor, labels: Tensor | None, distance: Distance, starts: int
) -> tuple[Tensor, Tensor | None]:
    points, found = [], []
    for part in torch.arange(len(z), device=z.device).split(64):
        some = None if labels is None else labels[part]
        points.append(space.points(z[part], some))
        found.append(distance(space.images(points[-1], some)))
    chosen = torch.cat(found).topk(starts, largest=False).indices
    return torch.cat(points)[chosen], None if labels is None else labels[chosen]


def distance_to(target: Tensor, maps: Callable[[Tensor], list[Tensor]] | None) -> Distance:
    """Mean squared difference of pixels, plus that of feature maps where there are any.

    Of each map the vectors along the channels have unit length, and their squared differences are
    averaged over places and maps: LPIPS (Zhang et al. 2018, equation 1) without its weights.

    Args:
        target: `[C, H, W]` in [−1, 1].
        maps: images `[N, C, H, W]` → maps `[N, C', H', W']`; None compares pixels alone.
    """
    expected = [] if maps is None else [F.normalize(each, dim=1) for each in maps(target[None])]

    def distance(images: Tensor) -> Tensor:
        pixels = (images - target).square().flatten(1).mean(1)
        if maps is None:
            return pixels
        found = [F.normalize(each, dim=1) for each in maps(images)]
        apart = [(a - b).square().sum(1).mean((1, 2)) for a, b in zip(found, expected)]
        return pixels + torch.stack(apart).mean(0)

    return distance
