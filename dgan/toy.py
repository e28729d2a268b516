"""`dgan toy`: objectives compared where one sees what each of them does."""

from dataclasses import replace
from pathlib import Path

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
    Run,
    Samples,
    Task,
    Train,
)
from dgan.config_game import Loss
from dgan.data.toy import find_toy
from dgan.laboratory.games import games_picture, games_table
from dgan.laboratory.picture import animate, save_picture
from dgan.laboratory.table import Trial, summary
from dgan.metrics.toys import PointScores
from dgan.run import metrics_of
from dgan.schedule import Cosine, constant
from dgan.train import train

PENALTIES = {
    "relativistic": Penalty(gamma=Cosine(start=0.01, end=0.003, kimg=1.0), method="double"),
    "wasserstein": Penalty(
        gamma=constant(10.0), points="between", kind="one_centered", method="double"
    ),
}
"""What belongs to a loss: R1 + R2 (Huang et al. 2024), WGAN-GP; to the others nothing."""


def toy_recipe(toy: str, loss: Loss, *, seed: int = 0, steps: int = 20_000) -> Recipe:
    """Points of `toy`, MLPs of 256 units, Adam: about 5 CPU minutes for 20,000 steps.

    Relativistic and Wasserstein losses bring the penalty that they were published with, the others
    have none. Networks see points over the toy's `scale`.
    """
    kimg = steps * 256 / 1000
    rate = Cosine(start=1e-3, end=1e-4, kimg=kimg)
    penalty = PENALTIES.get(loss, Penalty(gamma=constant(0.0)))
    gamma = penalty.gamma
    player = Player(network="points", learning_rate=rate)
    return Recipe(
        name=f"toy-{toy}-{loss}-{seed}",
        data=Data(kind="points", shards=toy),
        generator=replace(player, options={"z_dim": 4, "widths": (256, 256, 256), "act": "relu"}),
        discriminator=replace(player, options={"widths": (256, 256)}),
        train=Train(steps=steps, batch_size=256, seed=seed, log_every=max(1, steps // 100)),
        task=Task(loss=loss),
        penalty=replace(penalty, gamma=replace(gamma, kimg=kimg), check=False),
        average=Average(half_life_kimg=constant(50.0)),
        parallel=Parallel(strategy="single"),
        checkpoint=Checkpoint(every=steps, keep_best=0),
        samples=Samples(every=max(1, steps // 40), count=1000),
        evaluation=Evaluation(every=max(1, steps // 10)),
    )


def play(toy: str, losses: tuple[Loss, ...], seeds: int, steps: int, out: Path) -> None:
    """Train each loss with each seed in `out`, animate the first seed's, and print the table.

    Trainings that are done are not done again.
    """
    modes, trials = find_toy(toy).modes, []
    for loss in losses:
        for seed in range(seeds):
            recipe = toy_recipe(toy, loss, seed=seed, steps=steps)
            directory = out / recipe.name
            train(replace(recipe, run=Run(dir=str(directory))))
            trials.append(Trial(toy=toy, method=loss, seed=seed, scores=_scores(directory)))
        pictures = sorted((out / f"toy-{toy}-{loss}-0" / "samples").glob("step-*.png"))
        animate(pictures, out / f"{toy}-{loss}.gif")
    Console().print(summary(toy, modes, trials))
    print(f"pictures and animations in {out}")


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
