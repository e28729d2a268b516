"""Scoring generators of points, over any number of ranks alike."""

import pytest
import torch
from torch import Tensor

from dgan.data.toy import TOYS
from dgan.laboratory.evaluator import PointEvaluator
from dgan.parallel.world import launch


def test_a_perfect_generator_and_one_that_knows_half_of_the_modes() -> None:
    grid = TOYS["grid"]
    real = torch.from_numpy(grid.points(0, 0, 1000)).float() / grid.scale
    with launch(precision="float32") as world:
        evaluate = PointEvaluator(grid, seed=0, world=world, points=1000)
        scores = evaluate(lambda z, labels: real, z_dim=3)
        assert (scores["modes"], scores["points"]) == (25.0, 1000)
        assert scores["high_quality"] > 0.97
        assert scores["reverse_kl"] < 0.03
        scores = evaluate(lambda z, labels: torch.cat([real[:, :1].abs(), real[:, 1:]], 1), z_dim=3)
        assert scores["modes"] == 15.0


def test_latents_are_the_same_each_time() -> None:
    seen: list[Tensor] = []

    def synthesise(z: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is None
        seen.append(z)
        return 0.5 * z[:, :1]

    with launch(precision="float32") as world:
        evaluate = PointEvaluator(TOYS["dirac"], seed=4, world=world, points=50)
        first, second = evaluate(synthesise, 2), evaluate(synthesise, 2)
        points = evaluate.draw(synthesise, 2)
    assert first == second
    assert seen[0].shape == (50, 2)
    assert torch.equal(seen[0], seen[1])
    assert first["distance"] == pytest.approx(points.abs().mean().item())
