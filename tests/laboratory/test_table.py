"""The table over losses and seeds."""

import io
import math

import torch
from rich.console import Console

from dgan.laboratory.table import Trial, spread, summary
from dgan.metrics.toys import PointScores


def trial(method: str, seed: int, modes: int, quality: float, toy: str = "ring") -> Trial:
    scores = PointScores(
        modes=modes,
        high_quality=quality,
        reverse_kl=0.1 * seed,
        distance=0.0,
        counts=torch.zeros(8),
    )
    return Trial(toy=toy, method=method, seed=seed, scores=scores)


def test_spread_is_that_of_a_sample() -> None:
    expected = math.sqrt(((6 - 7) ** 2 + (7 - 7) ** 2 + (8 - 7) ** 2) / 2)
    assert spread([6, 7, 8], "{:.2f}") == f"7.00 ± {expected:.2f}"
    assert spread([6], "{:.1f}") == "6.0"


def test_a_row_a_method_and_the_published_ones_beside_it() -> None:
    trials = [
        trial("hinge", 0, 8, 0.5),
        trial("plain", 0, 5, 0.9),
        trial("plain", 1, 8, 0.7),
        trial("plain", 2, 25, 1.0, toy="grid"),
    ]
    console = Console(width=120, file=io.StringIO())
    console.print(summary("ring", 8, trials))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    (hinge,) = [line for line in lines if "hinge" in line]
    (plain,) = [line for line in lines if "plain" in line]
    assert "8.0 " in hinge
    assert "1 of 1" in hinge
    assert "6.5 ± 2.1" in plain
    assert "1 of 2" in plain
    assert "80.0% ± 14.1%" in plain
    assert "0.050 ± 0.071" in plain
    assert any("GAN (Lin et al. 2018)" in line and "6.3 ± 0.5" in line for line in lines)
    assert not any("17.3" in line for line in lines)
