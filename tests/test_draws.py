"""Random numbers depend on what they are for, not on who draws them."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from dgan.draws import (
    Draws,
    generator,
    latents,
    noise_from_seeds,
    seed_of,
    seeds_from_latents,
    truncated,
)


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
    latents(3, 3, seed=0, purpose="grid")
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


@pytest.mark.parametrize("bound", [0.1, 0.7, 2.0])
def test_truncated_latents_are_those_of_the_truncated_normal(bound: float) -> None:
    z = latents(400, 5, seed=1, purpose="samples").double()
    moved = truncated(z, bound)
    # The same quantile of SciPy's distribution.
    expected = stats.truncnorm.ppf(stats.norm.cdf(z), -bound, bound)
    torch.testing.assert_close(moved, torch.from_numpy(expected), rtol=1e-9, atol=1e-12)
    assert moved.abs().max() <= bound


def test_truncation_reaches_from_the_middle_to_the_latent_itself() -> None:
    z = latents(50, 5, seed=1, purpose="samples")
    assert not truncated(z, 0.0).any()
    torch.testing.assert_close(truncated(z, 9.0), z)
    assert (truncated(z, 0.5).abs() < truncated(z, 1.0).abs()).all()


def test_a_longer_table_begins_with_the_shorter_one() -> None:
    long = latents(20, 5, seed=1, purpose="samples")
    assert torch.equal(latents(6, 5, seed=1, purpose="samples"), long[:6])
    assert len({tuple(row) for row in long.tolist()}) == 20
    assert not torch.equal(latents(6, 5, seed=2, purpose="samples"), long[:6])
    assert not torch.equal(latents(6, 5, seed=1, purpose="grid"), long[:6])
    assert latents(0, 5, seed=1, purpose="samples").shape == (0, 5)


def test_seeds_belong_to_a_latent() -> None:
    z = torch.randn(1000, 6, generator=torch.Generator().manual_seed(0))
    seeds = seeds_from_latents(z)
    assert len(set(seeds.tolist())) == 1000
    assert torch.equal(seeds_from_latents(z[300:400]), seeds[300:400])
    assert torch.equal(seeds_from_latents(z.double()), seeds)
    # The order of the components matters, and so does the last bit of one.
    assert not (seeds_from_latents(z.flip(1)) == seeds).any()
    z[:, 3] = torch.nextafter(z[:, 3], torch.tensor(9.0))
    assert not (seeds_from_latents(z) == seeds).any()


def test_noise_is_standard_normal_and_independent() -> None:
    seeds = torch.arange(500)  # as alike as seeds can be
    noise = noise_from_seeds(seeds, 3, (1, 8, 8))
    assert noise.shape == (500, 1, 8, 8)
    assert torch.equal(noise_from_seeds(seeds[20:30], 3, (1, 8, 8)), noise[20:30])
    values = noise.flatten()
    assert abs(values.mean()) < 4 / values.numel() ** 0.5
    for power, moment in ((2, 1.0), (4, 3.0)):
        assert values.pow(power).mean().item() == pytest.approx(moment, rel=0.05)
    others = noise_from_seeds(seeds, 4, (1, 8, 8))
    pairs = [(noise, others), (noise[1:], noise[:-1]), (noise[..., 1:], noise[..., :-1])]
    for one, other in pairs:
        assert not (one == other).all()
        assert abs((one * other).mean()) < 4 / one.numel() ** 0.5
    extremes = noise_from_seeds(torch.tensor([0, 2**32 - 1]), 0, (1000, 100))
    assert extremes.isfinite().all()
