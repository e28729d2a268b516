"""The cosine schedule at points that can be worked out by hand."""

import numpy as np
import pytest

from dgan.schedule import (
    WIDEST,
    Band,
    Cosine,
    constant,
    half_life_decay,
    power_decay,
    power_exponent,
    ramped,
    shifted,
)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (0, 3.0),
        (1000, 2.0 + 0.5**0.5),  # cos 45°
        (2000, 2.0),
        (8000 // 3, 1.5),  # cos 120°
        (3999, 1.0),
        (4000, 1.0),
        (10**9, 1.0),
    ],
)
def test_half_a_cosine(images: int, expected: float) -> None:
    assert Cosine(start=3.0, end=1.0, kimg=4.0).at(images) == pytest.approx(expected, abs=1e-3)


def test_the_ends_are_exact() -> None:
    rising = Cosine(start=0.9, end=0.99, kimg=0.1)
    assert rising.at(0) == 0.9
    assert rising.at(100) == rising.at(101) == 0.99
    assert Cosine(start=5.0, end=0.1).at(0) == 0.1
    assert [constant(0.3).at(images) for images in (0, 1, 10**9)] == [0.3] * 3


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.28, WIDEST])
def test_the_width_of_a_power_function_average(width: float) -> None:
    """Its standard deviation over the run, the weights of 20,000 steps summed up."""
    exponent, steps = power_exponent(width), 20_000
    weights = np.ones(1)
    decays = np.array([power_decay(k, 1, exponent) for k in range(1, steps + 1)])
    # The share of step k at the end: (1 − decay) there times all later decays.
    weights = (1 - decays) * np.append(np.cumprod(decays[:0:-1])[::-1], 1.0)
    assert weights.sum() == pytest.approx(1.0)
    times = (np.arange(steps) + 0.5) / steps
    mean = weights @ times
    assert np.sqrt(weights @ (times - mean) ** 2) == pytest.approx(width, rel=1e-3)
    # In proportion to t^γ.
    telescoped = np.diff((np.arange(steps + 1) / steps) ** (exponent + 1))
    assert weights == pytest.approx(telescoped, abs=1e-12)


def test_a_power_function_average_begins_with_the_first_weights() -> None:
    assert power_decay(64, 64, 6.94) == 0.0
    assert power_exponent(0.1) == pytest.approx(6.94, abs=0.01)  # as the paper gives them
    assert power_exponent(0.05) == pytest.approx(16.97, abs=0.01)
    for width in (0.0, 0.3):
        with pytest.raises(ValueError, match=rf"width is {width} of the run; .* at most 0\.2887"):
            power_exponent(width)


def test_half_lives_and_their_warm_up() -> None:
    assert half_life_decay(1000, 1000) == 0.5
    assert half_life_decay(1000, 500) == pytest.approx(0.5**0.5)
    assert half_life_decay(0, 500) == 0.0
    assert [ramped(10_000, images) for images in (0, 1000, 200_000, 10**6)] == [
        0,
        50,
        10_000,
        10_000,
    ]
    with pytest.raises(ValueError, match="ratio of half-life to images seen is 0"):
        ramped(1000, 10, ratio=0)


@pytest.mark.parametrize(
    ("began", "lead", "expected"),
    [
        ((1, 1), 0, (1, 1)),
        ((1, 1), 3, (4, 1)),
        ((1, 1), -3, (1, 4)),
        ((5, 1), -2, (3, 1)),
        ((5, 1), -6, (1, 3)),
        ((1, 3), 1, (1, 2)),
        ((1, 3), 4, (3, 1)),
        ((1, 3), -1, (1, 4)),
        ((2, 2), 1, (2, 1)),
        ((2, 2), -1, (1, 2)),
    ],
)
def test_a_lead_shifts_updates_from_one_player_to_the_other(
    began: tuple[int, int], lead: int, expected: tuple[int, int]
) -> None:
    assert shifted(*began, lead) == expected


def test_a_measure_outside_the_band_moves_the_ratio() -> None:
    band = Band(low=0.6, high=0.8, most=2, decay=0.5)
    assert band.follow(0.7, 0, 0.8) == (pytest.approx(0.75), 0)
    assert band.follow(0.7, 0, 0.95) == (0.7, -1)  # the mean is 0.825: the discriminator is ahead
    assert band.follow(0.7, 0, 0.1) == (0.7, 1)
    assert band.follow(0.7, -2, 1.0) == (0.7, -2)
    # A measure just outside takes longer than one far away.
    waits = []
    for measure in (0.81, 0.85):
        mean, lead, steps = 0.7, 0, 0
        while lead == 0:
            mean, lead = band.follow(mean, lead, measure)
            steps += 1
        waits.append(steps)
    assert waits == [4, 2]
