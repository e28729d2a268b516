"""Statistics of how the game stands, over the global batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from failing import BATCH, batches, tiny_run
from ranks import run_ranks
from torch import Tensor

from dgan.build import build_players, pace
from dgan.config import Recipe
from dgan.draws import Draws
from dgan.opening import open_stream
from dgan.parallel.world import World, launch
from dgan.step import adversarial_step, prepare
from dgan.tasks.statistics import accuracy, moments, scalars


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_accuracy_is_the_share_of_pairs_in_the_right_order() -> None:
    real, fake = numbers(7, 3, 2), numbers(7, 3, 2, seed=1)
    real[0] = fake[0]
    pairs = [
        1.0 if r > f else 0.5 if r == f else 0.0
        for r, f in zip(real.flatten().tolist(), fake.flatten().tolist())
    ]
    assert 0.2 < np.mean(pairs) < 0.8
    assert accuracy(real, fake).item() == pytest.approx(np.mean(pairs), rel=1e-12)
    assert accuracy(real + 50, fake + 50).item() == pytest.approx(np.mean(pairs), rel=1e-12)
    assert accuracy(real + 50, fake).item() == 1
    assert accuracy(fake, fake).item() == 0.5


@pytest.mark.parametrize("shape", [(2,), (64,), (1, 16, 16), (3, 8, 16), (640,)])
def test_diversity_is_relative_variance_whatever_a_sample_is(shape: tuple[int, ...]) -> None:
    real, fake = 3 + 2 * numbers(9, *shape), numbers(9, *shape, seed=1)

    def spread(samples: Tensor) -> float:
        values = samples.numpy().reshape(9, min(64, samples[0].numel()), -1).mean(2)
        return values.var(axis=0).sum()

    def diversity(real: Tensor, fake: Tensor) -> float:
        logged = scalars({"moments": torch.stack([moments(real), moments(fake)])})
        assert logged.keys() <= {"diversity"}
        return logged.get("diversity", -1.0)

    assert diversity(real, fake) == pytest.approx(spread(fake) / spread(real), rel=1e-9)
    assert diversity(real, 5 + 0 * real) == pytest.approx(0, abs=1e-12)
    assert diversity(0 * real, fake) == -1


STATISTICS: list[dict[str, Any]] = [
    {"train__accumulation": 1, "task__loss": "relativistic"},
    {"train__accumulation": 2, "task__loss": "hinge", "data__classes": 0},
]


def found_and_expected(recipes: list[Recipe]) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Of each recipe's first step: what was logged, and what NumPy finds for the whole batch."""
    with launch(precision="float64") as world:
        return [found_and_expected_of(recipe, world) for recipe in recipes]


def found_and_expected_of(
    recipe: Recipe, world: World
) -> tuple[dict[str, float], dict[str, float]]:
    with open_stream(recipe, world) as stream, batches(recipe.data.shards) as others:
        players = build_players(recipe, world)
        batch = prepare(next(others), world)
        draws = Draws(
            seed=0,
            purpose="discriminator",
            step=1,
            rows=range(BATCH),
            device=world.device,
            dtype=world.dtype,
        )
        labels = batch["label"] if recipe.data.classes else None
        judge = players.discriminator.replica.module
        with torch.no_grad():
            real = batch["image"]
            fake = players.generator.replica.module(draws.normal(6), labels)
            r, f = judge(real, labels).numpy(), judge(fake, labels).numpy()
        spread, other = (x.flatten(1).numpy().var(axis=0).sum() for x in (fake, real))
        expected = {
            "accuracy": np.mean(r > f),
            "diversity": spread / other,
            "real_logits": r.mean(),
            "fake_logits": f.mean(),
        }
        logged = adversarial_step(players, stream, 1, pace(recipe), world)
    assert "discriminator/moments" not in logged
    found = {key: logged[f"discriminator/{key}"] for key in expected}
    return found, {key: float(value) for key, value in expected.items()}


@pytest.mark.parametrize(("size", "strategy"), [(1, "single"), (2, "ddp")])
def test_statistics_are_those_of_the_global_batch(
    size: int, strategy: str, digits: str, tmp_path: Path
) -> None:
    plans = [tiny_run(digits, tmp_path, parallel__strategy=strategy, **case) for case in STATISTICS]
    for results in run_ranks(size, found_and_expected, plans):
        for found, expected in results:
            assert found == pytest.approx(expected, rel=1e-9)
            assert 0 < expected["accuracy"] < 1
            assert 0 < expected["diversity"] < 1
