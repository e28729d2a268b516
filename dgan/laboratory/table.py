"""Scores of toy runs over losses and seeds, beside what was published."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from rich.table import Table

from dgan.metrics.toys import PointScores


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run: on which toy, with which method and seed, and how it ended."""

    toy: str
    method: str
    seed: int
    scores: PointScores


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of a paper, as it is printed there."""

    method: str
    modes: str
    source: str


PUBLISHED = {
    "ring": (
        Published(method="GAN", modes="6.3 ± 0.5", source="Lin et al. 2018"),
        Published(method="PacGAN2", modes="7.9", source="Lin et al. 2018"),
    ),
    "grid": (
        Published(method="GAN", modes="17.3 ± 0.8", source="Lin et al. 2018"),
        Published(method="PacGAN2", modes="23.8", source="Lin et al. 2018"),
    ),
}
"""Lin et al. 2018 (PacGAN), section 4.1: modes of 2,500 samples, over ten trials."""


def summary(toy: str, modes: int, trials: Iterable[Trial]) -> Table:
    """A row a method, in the order in which they first come: mean ± standard deviation of seeds.

    Args:
        toy: trials on other ones are left out.
        modes: how many it has.
        trials: that are to be compared.
    """
    table = Table(title=f"{toy}, {modes} modes: mean ± standard deviation over seeds")
    table.add_column("method")
    for name in ("seeds", "modes", "all modes", "high quality", "reverse KL"):
        table.add_column(name, justify="right")
    methods: dict[str, list[PointScores]] = {}
    for trial in trials:
        if trial.toy == toy:
            methods.setdefault(trial.method, []).append(trial.scores)
    for method, scores in methods.items():
        complete = sum(score.modes == modes for score in scores)
        table.add_row(
            method,
            str(len(scores)),
            spread([score.modes for score in scores], "{:.1f}"),
            f"{complete} of {len(scores)}",
            spread([score.high_quality for score in scores], "{:.1%}"),
            spread([score.reverse_kl for score in scores], "{:.3f}"),
        )
    table.add_section()
    for row in PUBLISHED.get(toy, ()):
        table.add_row(f"{row.method} ({row.source})", "10", row.modes, "", "", "")
    return table


def rows_of(trials: Iterable[Trial]) -> list[dict[str, Any]]:
    """A row a run, of plain values."""
    return [
        {
            "toy": trial.toy,
            "method": trial.method,
            "seed": trial.seed,
            "modes": trial.scores.modes,
            "high_quality": trial.scores.high_quality,
            "reverse_kl": trial.scores.reverse_kl,
            "distance": trial.scores.distance,
        }
        for trial in trials
    ]


def spread(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation (of a sample: over n − 1); of one value, the value."""
    mean = form.format(fmean(values))
    return f"{mean} ± {form.format(stdev(values))}" if len(values) > 1 else mean
