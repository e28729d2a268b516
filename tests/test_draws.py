"""Random numbers depend on what they are for, not on who draws them."""

from typing import Any

import numpy as np
import pytest
import torch

from dgan.draws import Draws, generator, seed_of, truncated_normal


def draws(rows: range = range(12), **changes: Any) -> Draws:
    options = {"seed": 3, "purpose": "generator", "step": 5, "device": torch.device("cpu")}
    return Draws(rows=rows, **{**options, **changes})


WHOLE = draws().normal(7)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 12])
def test_ranks_draw_their_rows_of_one_table(ranks: int) -> None:
    size = 12 // ranks
    parts = [draws(range(r * size, (r + 1) * size)).normal(7) for r in range(ranks)]
    assert torch.equal(torch.cat(parts), WHOLE)


def test_rows_do_not_depend_on_how_many_follow() -> None:
    assert torch.equal(draws(range(500)).normal(7)[:12], WHOLE)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_micro_batches_are_parts_of_the_rank(parts: int) -> None:
    mine = draws(range(6, 12), dtype=torch.float64)
    pieces = [mine.part(index, parts).normal(7) for index in range(parts)]
    assert all(len(piece) == 6 // parts for piece in pieces)
    assert torch.equal(torch.cat(pieces), WHOLE[6:].double())


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"purpose": "discriminator"}, {"step": 6}, {"update": 1}]
)
def test_each_purpose_has_numbers_of_its_own(change: dict[str, Any]) -> None:
    other = draws(**change).normal(7)
    assert not (other == WHOLE).any()
    assert torch.equal(draws(**change).normal(7), other)


def test_draws_leave_global_generators_alone() -> None:
    state, theirs = torch.get_rng_state(), np.random.get_state()[1]
    draws().normal(3)
    truncated_normal(3, 3, seed=0, purpose="grid", truncation=1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == theirs).all()


def test_draws_are_standard_normal() -> None:
    many = draws(range(20_000)).normal(4)
    assert many.dtype == torch.float32
    assert many.mean(0).abs().max() < 0.03
    assert (torch.cov(many.T) - torch.eye(4)).abs().max() < 0.03


def test_numbers_are_the_same_on_every_machine_and_version() -> None:
    """A run that resumes elsewhere must go on with the same numbers: these may never change."""
    assert seed_of(0, "networks", 1, 0) == 831940914001758661
    assert draws().normal(2)[0].tolist() == pytest.approx([-0.3854706, -0.1299185], abs=1e-6)


def test_seeds_fit_what_takes_them() -> None:
    seeds = {seed_of(0, "networks", step) for step in range(200)}
    assert len(seeds) == 200
    assert 0 <= min(seeds) < 2**62 < max(seeds) < 2**63
    first, second = (generator(0, purpose).random() for purpose in ("a", "b"))
    assert first != second


@pytest.mark.parametrize("truncation", [0.1, 0.7, 2.0])
def test_truncated_latents_are_redrawn_not_cut(truncation: float) -> None:
    latents = truncated_normal(400, 5, seed=1, purpose="samples", truncation=truncation)
    assert latents.abs().max() <= truncation
    # Cutting would pile values up at the bound.
    assert (latents.abs() > 0.999 * truncation).float().mean() < 0.01
    assert latents.abs().max() > 0.98 * truncation
    assert latents.mean().abs() < 0.05


def test_truncation_keeps_what_is_inside() -> None:
    free = truncated_normal(50, 5, seed=1, purpose="samples", truncation=0)
    cut = truncated_normal(50, 5, seed=1, purpose="samples", truncation=1.0)
    inside = free.abs() <= 1
    assert torch.equal(free[inside], cut[inside])
    assert 0 < inside.float().mean() < 1
    assert free.abs().max() > 2


@pytest.mark.parametrize("truncation", [0.0, 0.5])
def test_a_longer_table_begins_with_the_shorter_one(truncation: float) -> None:
    options: dict[str, Any] = {"seed": 1, "purpose": "samples", "truncation": truncation}
    long = truncated_normal(20, 5, **options)
    assert torch.equal(truncated_normal(6, 5, **options), long[:6])
    assert len({tuple(row) for row in long.tolist()}) == 20
    assert not torch.equal(truncated_normal(6, 5, **{**options, "seed": 2}), long[:6])
    assert not torch.equal(truncated_normal(6, 5, **{**options, "purpose": "grid"}), long[:6])
    assert truncated_normal(0, 5, **options).shape == (0, 5)
