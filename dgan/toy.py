"""`dgan toy`: objectives compared where one sees what each of them does."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from dgan.config import (
    Average,
    Checkpoint,
    Data,
    Evaluation,
    Parallel,
    Penalty,
    Player,
    Recipe,
    Regularizers,
    Run,
    Samples,
    Task,
    Train,
)
from dgan.config_game import Loss
from dgan.data.aside import written_aside
from dgan.data.toy import find_toy
from dgan.laboratory.games import games_picture, games_table
from dgan.laboratory.picture import animate, save_picture
from dgan.laboratory.table import Trial, rows_of, summary
from dgan.metrics.toys import PointScores
from dgan.run import metrics_of
from dgan.schedule import Cosine, constant
from dgan.train import train

Penalised = Literal["own", "none", "r1_r2", "wgan_gp", "clip"]

PENALTIES = {
    "none": Penalty(gamma=constant(0.0)),
    "r1_r2": Penalty(gamma=Cosine(start=0.01, end=0.003, kimg=1.0), method="double"),
    "wgan_gp": Penalty(
        gamma=constant(10.0), points="between", kind="one_centered", method="double"
    ),
}
"""R1 + R2 (Huang et al. 2024), and WGAN-GP."""

OWN: dict[str, Penalised] = {"relativistic": "r1_r2", "wasserstein": "wgan_gp"}
"""What belongs to a loss; to the others nothing."""

CLIP = 0.1
"""Where `clip` keeps the discriminator's weights: about the scale that they begin with."""


@dataclass(frozen=True)
class Method:
    """A loss, and what is penalised beside it: `own` is what the loss was published with."""

    loss: Loss
    penalty: Penalised = "own"

    @property
    def name(self) -> str:
        """In tables and folders."""
        return self.loss if self.penalty == "own" else f"{self.loss}+{self.penalty}"


def toy_recipe(
    toy: str, loss: Loss, *, penalty: Penalised = "own", seed: int = 0, steps: int = 20_000
) -> Recipe:
    """Points of `toy`, MLPs of 256 units, Adam: about 5 CPU minutes for 20,000 steps.

    Relativistic and Wasserstein losses bring the penalty that they were published with, the others
    have none; `penalty` names another. Networks see points over the toy's `scale`.
    """
    kimg = steps * 256 / 1000
    rate = Cosine(start=1e-3, end=1e-4, kimg=kimg)
    name = OWN.get(loss, "none") if penalty == "own" else penalty
    taken = PENALTIES["none" if name == "clip" else name]
    player = Player(network="points", learning_rate=rate)
    return Recipe(
        name=f"toy-{toy}-{Method(loss, penalty).name}-{seed}",
        data=Data(kind="points", shards=toy),
        generator=replace(player, options={"z_dim": 4, "widths": (256, 256, 256), "act": "relu"}),
        discriminator=replace(player, options={"widths": (256, 256)}),
        train=Train(steps=steps, batch_size=256, seed=seed, log_every=max(1, steps // 100)),
        task=Task(loss=loss),
        penalty=replace(taken, gamma=replace(taken.gamma, kimg=kimg), check=False),
        regularizers=Regularizers(clip=CLIP if name == "clip" else 0.0),
        average=Average(half_life_kimg=constant(50.0)),
        parallel=Parallel(strategy="single"),
        checkpoint=Checkpoint(every=steps, keep_best=0),
        samples=Samples(every=max(1, steps // 40), count=1000),
        evaluation=Evaluation(every=max(1, steps // 10)),
    )


def play(
    toy: str, methods: Sequence[Method], seeds: Sequence[int], steps: int, out: Path
) -> list[Trial]:
    """Train each method with each seed in `out`, and animate the first seed's samples.

    Trainings that are done are not done again.
    """
    trials = []
    for method in methods:
        for seed in seeds:
            recipe = toy_recipe(toy, method.loss, penalty=method.penalty, seed=seed, steps=steps)
            directory = out / recipe.name
            train(replace(recipe, run=Run(dir=str(directory))))
            trials.append(Trial(toy=toy, method=method.name, seed=seed, scores=_scores(directory)))
        first = out / f"toy-{toy}-{method.name}-{seeds[0]}"
        animate(sorted((first / "samples").glob("step-*.png")), out / f"{toy}-{method.name}.gif")
    return trials


def compare(toy: str, methods: Sequence[Method], seeds: int, steps: int, out: Path) -> None:
    """`play`, and print the table, which also stands in `out` as text and as JSON."""
    trials = play(toy, methods, range(seeds), steps, out)
    table = summary(toy, find_toy(toy).modes, trials)
    Console().print(table)
    printed = io.StringIO()
    Console(file=printed, width=120).print(table)
    rows = [{"steps": steps, **row} for row in rows_of(trials)]
    for suffix, text in (("txt", printed.getvalue()), ("json", json.dumps(rows, indent=1) + "\n")):
        with written_aside(out / f"{toy}.{suffix}") as file:
            file.write(text.encode())
    print(f"table, pictures and animations in {out}")


def _scores(directory: Path) -> PointScores:
    """A run's last ones."""
    last = [line for line in metrics_of(directory) if "high_quality" in line][-1]
    return PointScores(
        modes=int(last["modes"]),
        high_quality=last["high_quality"],
        reverse_kl=last["reverse_kl"],
        distance=last["distance"],
        counts=torch.empty(0, dtype=torch.int64),
    )


def dirac(out: Path) -> None:
    """Print the Dirac-GAN's eigenvalues, measured and derived, and draw where descent goes."""
    Console().print(games_table())
    out.mkdir(parents=True, exist_ok=True)
    save_picture(games_picture(), out / "dirac.png")
    print(f"trajectories in {out / 'dirac.png'}")
