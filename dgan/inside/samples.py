"""Samples of a trained generator, from latents that are drawn once."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dgan.draws import latents
from dgan.export import synthesise
from dgan.inside.spaces import loop, space_of
from dgan.visible import visible

FRAMES = 16
"""Of an animation, from one latent to the next."""


class Samples:
    """What a generator makes of `count` latents of a seed.

    Args:
        generator: whole, on the CPU, in evaluation mode.
        z_dim: size of its latents.
        count: how many; sample i is the same whatever the count.
        seed: of the latents.
    """

    def __init__(self, generator: nn.Module, z_dim: int, *, count: int, seed: int) -> None:
        self.generator, self.space = generator, space_of(generator, z_dim)
        self.seed = seed
        dtype = next(generator.parameters()).dtype
        self.z = latents(count, z_dim, seed=seed, purpose="sample").to(dtype)

    def images(self, labels: Tensor | None, truncation: float | None = None) -> Tensor:
        """uint8 images `[count, C, H, W]` of classes int64 `[count]`, or None; see `Space`."""
        return visible(self.outputs(labels, truncation))

    def outputs(self, labels: Tensor | None, truncation: float | None = None) -> Tensor:
        """What the generator makes of the same, as it comes."""
        if truncation is None:
            return synthesise(self.generator, self.z, labels)
        return synthesise(self.space.images, self._points(labels, truncation), labels)

    def loop(self, classes: Sequence[int | None], truncation: float | None = None) -> list[Tensor]:
        """Frames of a closed loop through the latents, for each class a tile: uint8.

        Returns:
            `count · FRAMES` tensors `[len(classes), C, H, W]`.
        """
        tiles = []
        for label in classes:
            labels = None if label is None else torch.full((len(self.z),), label)
            path = loop(self._points(labels, truncation), FRAMES, self.space.between)
            labels = None if labels is None else labels.repeat_interleave(FRAMES)
            tiles.append(visible(synthesise(self.space.images, path, labels)))
        return list(torch.stack(tiles, dim=1))

    @torch.no_grad()
    def _points(self, labels: Tensor | None, truncation: float | None) -> Tensor:
        points = self.space.points(self.z, labels)
        return points if truncation is None else self.space.truncated(points, labels, truncation)
