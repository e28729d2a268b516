"""PacGAN's protocol, from points put down by hand."""

import math

import pytest
import torch

from dgan.data.toy import TOYS
from dgan.metrics.toys import nearest_modes, score_points

CENTRES = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
SIGMA = 0.1


def at(*points: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(points)


def test_three_standard_deviations_of_euclidean_distance() -> None:
    inside, outside = (0.299, 0.0), (0.301, 0.0)
    aslant = (0.25, 0.25)  # 2.5 σ along either axis, 3.5 in all
    scores = score_points(at(inside, outside, aslant), CENTRES, SIGMA)
    assert scores.high_quality == pytest.approx(1 / 3)
    assert (scores.modes, scores.counts.tolist()) == (1, [1, 0, 0, 0])
    assert scores.distance == pytest.approx((0.299 + 0.301 + 0.25 * math.sqrt(2)) / 3)
    assert score_points(at(aslant), CENTRES, SIGMA, near=3.6).modes == 1


def test_a_mode_is_lost_without_a_point_of_high_quality() -> None:
    # Three points are nearest to the second mode, and none of them near.
    points = at((0.0, 0.01), (0.6, 0.0), (0.6, 0.1), (1.4, 0.0), (0.02, 0.98))
    scores = score_points(points, CENTRES, SIGMA)
    assert scores.modes == 2
    assert scores.counts.tolist() == [1, 0, 1, 0]


def test_reverse_kl_counts_points_of_any_quality() -> None:
    points = at((0.0, 0.0), (0.6, 0.0), (0.6, 0.1), (1.4, 0.0))
    uniform = 0.25 * math.log(0.25 / 0.25) + 0.75 * math.log(0.75 / 0.25)
    assert score_points(points, CENTRES, SIGMA).reverse_kl == pytest.approx(uniform)
    real = 0.25 * math.log(0.25 / 0.1) + 0.75 * math.log(0.75 / 0.6)
    scores = score_points(points, CENTRES, SIGMA, real=[1, 6, 2, 1])
    assert scores.reverse_kl == pytest.approx(real)


def test_one_mode_of_all() -> None:
    points = CENTRES[:1] + 0.01 * torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    scores = score_points(points, CENTRES, SIGMA)
    assert (scores.modes, scores.high_quality) == (1, 1.0)
    assert scores.reverse_kl == pytest.approx(math.log(4))


@pytest.mark.parametrize("toy", ["ring", "grid", "swissroll"])
def test_real_points_score_as_the_protocol_expects(toy: str) -> None:
    distribution = TOYS[toy]
    points = torch.from_numpy(distribution.points(1, 0, 2500))
    scores = score_points(points, torch.from_numpy(distribution.centres()), distribution.sigma)
    assert scores.modes == distribution.modes
    # exp(−9/2) of a normal distribution lies outside of 3 σ; of a curve only what is across it.
    expected = 0.997 if toy == "swissroll" else 0.989
    assert scores.high_quality == pytest.approx(expected, abs=0.008)
    # Twice (modes − 1)/(2 · points), the mean of a perfect generator, has four of its deviations.
    floor = (distribution.modes - 1) / 5000
    assert 0 < scores.reverse_kl < floor * (1 + 4 * math.sqrt(2 / (distribution.modes - 1)))


def test_stretches_of_a_curve_are_modes() -> None:
    """Two stretches of a line, told by three points each."""
    centres = torch.tensor([[[0.0, 0], [1, 0], [2, 0]], [[3, 0], [4, 0], [5, 0]]])
    modes, distances = nearest_modes(at((1.1, 0.5), (4.0, -2.0), (5.0, 0.0)), centres)
    assert modes.tolist() == [0, 1, 1]
    assert distances.tolist() == pytest.approx([math.hypot(0.1, 0.5), 2.0, 0.0])


def test_distances_do_not_cancel() -> None:
    """A matrix product would lose 1e-9 beside 4² in float64."""
    centres = TOYS["grid"].centres()[:, 0]
    points = torch.from_numpy(centres).repeat(50, 1) + 1e-9
    assert nearest_modes(points, torch.from_numpy(centres))[1].tolist() == pytest.approx(
        [math.sqrt(2) * 1e-9] * len(points), rel=1e-5
    )


def test_what_cannot_be_scored_is_named() -> None:
    with pytest.raises(ValueError, match=r"shape \[3, 1\]; expected \[N, 2\]"):
        score_points(torch.zeros(3, 1), CENTRES, SIGMA)
    with pytest.raises(ValueError, match="shape"):
        score_points(torch.zeros(0, 2), CENTRES, SIGMA)
    with pytest.raises(ValueError, match="NaN or infinite"):
        score_points(at((0.0, math.nan)), CENTRES, SIGMA)
