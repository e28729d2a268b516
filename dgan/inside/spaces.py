"""The space in which a generator's latents are moved about: its z, or StyleGAN2's w."""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgan.draws import latents, truncated
from dgan.networks.stylegan2 import StyleGAN2Generator

MEAN_OF = 4096
"""Latents that the mean of w is computed from."""


class Space(Protocol):
    """Where latents are moved about.

    `labels` are int64 `[N]`, or vectors `[N, D]` in their place, None of unconditional generators.
    """

    name: str

    def points(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Latents `[N, z_dim]` → their points of this space, `[N, D]`."""
        ...

    def images(self, points: Tensor, labels: Tensor | None) -> Tensor:
        """Points `[N, D]` → images `[N, C, H, W]`, about [−1, 1]."""
        ...

    def between(self, a: Tensor, b: Tensor, share: Tensor) -> Tensor:
        """What lies `share` of the way from `a` to `b`; all broadcast to `[..., D]`."""
        ...

    def truncated(self, points: Tensor, labels: Tensor | None, value: float) -> Tensor:
        """The points `[N, D]` nearer to the middle: 0 is the middle itself."""
        ...


def space_of(generator: nn.Module, z_dim: int) -> Space:
    """The space to move in: w of a StyleGAN2 generator, z of any other."""
    if isinstance(generator, StyleGAN2Generator):
        return StyleSpace(generator, z_dim)
    return LatentSpace(generator)


class LatentSpace:
    """z itself, which is normal: paths keep to its shell, and truncation to its distribution."""

    name = "z"

    def __init__(self, generator: nn.Module) -> None:
        self.generator = generator

    def points(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """See `Space`."""
        return z

    def images(self, points: Tensor, labels: Tensor | None) -> Tensor:
        """See `Space`."""
        return self.generator(points, labels)

    def between(self, a: Tensor, b: Tensor, share: Tensor) -> Tensor:
        """`slerp`."""
        return slerp(a, b, share)

    def truncated(self, points: Tensor, labels: Tensor | None, value: float) -> Tensor:
        """`dgan.draws.truncated`: no component is beyond ±`value`."""
        return truncated(points, value)


class StyleSpace:
    """w of StyleGAN2: straight lines, and truncation towards its mean.

    The noise is the same in every image: what differs between two of them is the style.
    """

    name = "w"

    def __init__(self, generator: StyleGAN2Generator, z_dim: int) -> None:
        self.generator, self.z_dim = generator, z_dim

    def points(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """See `Space`."""
        return self.generator.mapping(z, labels)

    def images(self, points: Tensor, labels: Tensor | None) -> Tensor:
        """See `Space`; the class is in `points` already."""
        seeds = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        return self.generator.synthesise(points, seeds)

    def between(self, a: Tensor, b: Tensor, share: Tensor) -> Tensor:
        """a + share · (b − a)."""
        return torch.lerp(a, b, share)

    def truncated(self, points: Tensor, labels: Tensor | None, value: float) -> Tensor:
        """w̄ + value · (w − w̄), w̄ being the mean of w (Karras et al. 2019, appendix B).

        Of a conditional generator it is the mean of the class, which a sample then keeps.
        """
        if labels is None:
            mean = self._mean(points, None)
        else:
            classes, places = labels.unique(return_inverse=True, dim=0)
            mean = torch.stack([self._mean(points, label) for label in classes])[places]
        return mean + value * (points - mean)

    @torch.no_grad()
    def _mean(self, like: Tensor, label: Tensor | None) -> Tensor:
        z = latents(MEAN_OF, self.z_dim, seed=0, purpose="mean of w").to(like)
        labels = None if label is None else label.expand(MEAN_OF, *label.shape)
        return self.generator.mapping(z, labels).mean(0)


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """From `a` to `b` on the great circle, (sin((1 − t)Ω) a + sin(tΩ) b) / sin Ω.

    Shoemake 1985, for normal latents White 2016 ("Sampling generative networks"): Ω is the angle
    between them, and where their lengths differ the length changes on the way. Where they point the
    same way, or opposite ways, so that there is no one great circle, the path is straight.

    Args:
        a, b: `[..., D]`.
        share: t, which broadcasts to `[..., 1]`.
    """
    angle = F.cosine_similarity(a, b, dim=-1).clamp(-1, 1).acos().unsqueeze(-1)
    sine = angle.sin()
    round_ = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / sine
    return torch.where(sine > torch.finfo(a.dtype).eps ** 0.5, round_, torch.lerp(a, b, share))


def loop(points: Tensor, steps: int, between: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """A closed path through points `[K, D]`, `steps` from each to the next: `[K · steps, D]`.

    Every `steps`-th one is a point that was given; behind the last one comes the first again.
    """
    shares = torch.arange(steps, device=points.device, dtype=points.dtype) / steps
    path = between(points[:, None], points.roll(-1, 0)[:, None], shares[:, None])
    return path.flatten(0, 1)
