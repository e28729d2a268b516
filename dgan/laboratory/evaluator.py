"""Scores of a generator of points while it trains."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dgan.data.toy import Toy
from dgan.metrics.toys import POINTS, score_points
from dgan.parallel.world import World
from dgan.rounds import draws_of


class PointEvaluator:
    """Measures generated points by PacGAN's protocol (`dgan.metrics.toys`).

    Args:
        toy: the distribution they are to have.
        seed: of the latents, which are the same at every call and world size.
        world: every rank calls every method.
        points: how many are measured.
    """

    def __init__(self, toy: Toy, *, seed: int, world: World, points: int = POINTS) -> None:
        self.toy, self.seed, self.world, self.points = toy, seed, world, points
        self._centres = torch.from_numpy(toy.centres())

    def __call__(
        self, synthesise: Callable[[Tensor, Tensor | None], Tensor], z_dim: int
    ) -> dict[str, Any]:
        """Scores of `synthesise`: latents `[N, z_dim]` and None → points over `toy.scale`.

        Returns:
            `modes`, `high_quality`, `reverse_kl` and `distance` of `PointScores`, and how many
            `points` they were computed with.
        """
        scores = score_points(self.draw(synthesise, z_dim), self._centres, self.toy.sigma)
        return {
            "modes": float(scores.modes),
            "high_quality": scores.high_quality,
            "reverse_kl": scores.reverse_kl,
            "distance": scores.distance,
            "points": self.points,
        }

    @torch.no_grad()
    def draw(self, synthesise: Callable[[Tensor, Tensor | None], Tensor], z_dim: int) -> Tensor:
        """The generated points `[N, dimension]`, as the toy has them; all of them on every rank."""
        draws = draws_of(0, range(self.points), seed=self.seed, world=self.world)
        with self.world.autocast():
            return synthesise(draws.normal(z_dim), None).float() * self.toy.scale
