"""MNIST: the FID of every loss with one network, one budget and one classifier's features.

    dgan data pack FOLDER data/mnist --resolution 32 --channels 1 --fit pad --split-by-hash 95/5/0
    dgan data pack FOLDER data/mnist --resolution 32 --channels 1 --fit pad --split test
    python benchmarks/training/mnist_losses.py --steps 2000           # of each of ten runs

The best checkpoint is chosen by FID on the validation split, and gives one number on the test
split. Runs that are finished are not made again. All but the last kind of Wasserstein have instance
noise that fades (Sønderby et al. 2017): without, the discriminator of the saturating loss wins at
once.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from classifier import classifier_of
from dgan import commands
from dgan.config import (
    Augment,
    Average,
    Checkpoint,
    Data,
    Divergence,
    Evaluation,
    Penalty,
    Player,
    Recipe,
    Regularizers,
    Samples,
    Task,
    Train,
)
from dgan.schedule import Cosine, constant
from dgan.toy import PENALTIES
from report import RESULTS, device, store
from runs import curve, draw, parser, trained, with_budget

R1_R2 = Penalty(gamma=Cosine(start=1.0, end=0.1, kimg=128), method="double")

FIVE_TO_ONE: dict[str, Any] = {
    "penalty": PENALTIES["wgan_gp"],
    "train": Train(steps=2000, batch_size=64, discriminator_updates=5),
    "augment": Augment(),
    "average": Average(half_life_kimg=Cosine(start=0.0, end=25.0, kimg=640)),
}
"""As Gulrajani et al. 2017 train: a critic that is near its best at any time, so that its estimate
of the distance means something. It sees five times the images, and no noise, which would fade."""

METHODS: dict[str, dict[str, Any]] = {
    "minimax": {},
    "non_saturating": {},
    "least_squares": {},
    "hinge": {},
    "wasserstein": {"penalty": PENALTIES["wgan_gp"]},
    "wasserstein+five_to_one": FIVE_TO_ONE,
    "wasserstein+clip": {"regularizers": Regularizers(clip=0.01)},
    "relativistic": {"penalty": R1_R2},
    "relativistic+none": {},
    "relativistic_average": {},
}
"""Losses with what belongs to them, and relativistic pairing without."""


def recipe_of(name: str, data: Path, features: Path, samples: int) -> Recipe:
    """2,000 steps of 64 images, whose schedules are stretched to the budget."""
    rate, beta2 = Cosine(start=5e-4, end=1e-4, kimg=128), 0.99
    if METHODS[name] is FIVE_TO_ONE:
        rate, beta2 = constant(2e-4), 0.9
    player = Player(
        network="dcgan",
        options={"widths": (96, 64, 32)},
        learning_rate=rate,
        beta2=constant(beta2),
    )
    recipe = Recipe(
        name=f"mnist-{name}",
        data=Data(shards=str(data / "train-*.tar"), resolution=32, channels=1),
        generator=replace(player, options={"z_dim": 64, **player.options}),
        # One for all: WGAN-GP's penalty is of one sample, and batch normalisation couples them.
        discriminator=replace(player, options={**player.options, "norm": "layer"}),
        train=Train(steps=2000, batch_size=64),
        task=Task(loss=name.partition("+")[0]),  # pyright: ignore[reportArgumentType]
        augment=Augment(noise=Cosine(start=1.0, end=0.1, kimg=128)),
        average=Average(half_life_kimg=Cosine(start=0.0, end=5.0, kimg=128)),
        divergence=Divergence(accuracy=0.0),  # a loss that fails is a result here
        samples=Samples(count=64),
        evaluation=Evaluation(
            samples=samples, shards=str(data / "validation-*.tar"), features=str(features)
        ),
    )
    return replace(recipe, **({"penalty": PENALTIES["none"]} | METHODS[name]))


def scored_often(recipe: Recipe) -> Recipe:
    """Ten scores, each with a checkpoint that may be the best."""
    every = max(1, recipe.train.steps // 10)
    return replace(
        recipe,
        checkpoint=Checkpoint(every=every),
        samples=replace(recipe.samples, every=every),
        evaluation=replace(recipe.evaluation, every=every),
    )


def result_of(name: str, run: Path, data: Path, samples: int) -> dict[str, Any]:
    out = run / "test.json"
    if not out.exists():
        commands.evaluate(
            run, step="best", shards=str(data / "test-*.tar"), samples=samples, out=out
        )
    scores = json.loads(out.read_text())
    over_time = curve(run, "fid")
    return {
        "method": name,
        "best_step": scores["step"],
        "test_fid": scores["fid"],
        "test_coverage": scores["coverage"],
        "test_reverse_kl": scores["reverse_kl"],
        "validation_fid": min(value for _, value in over_time),
        "validation_fid_over_kimg": over_time,
        "estimate_over_kimg": curve(run, "discriminator/real_logits", "discriminator/fake_logits"),
        "features": scores["features"],
        "samples": scores["samples"],
    }


def main() -> None:
    asked = parser("FID of every loss on MNIST.", "runs/mnist-losses")
    asked.add_argument("--data", type=Path, default=Path("data/mnist"))
    asked.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    asked.add_argument("--samples", type=int, default=10_000)
    options = asked.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    folder = options.results or RESULTS / device()
    features = options.out / "classifier.safetensors"
    accuracy = classifier_of(options.data, features)
    rows: list[dict[str, Any]] = []
    for name in options.methods:
        recipe = recipe_of(name, options.data, features, options.samples)
        recipe = scored_often(with_budget(recipe, options))
        run = trained(recipe, options.out)
        result = result_of(name, run, options.data, options.samples)
        rows.append(result | {"steps": recipe.train.steps})
        notes = f"classifier right on {accuracy:.2%} of the test split; FID of its features"
        path = store("mnist-losses", rows, notes=notes, out=folder)
        fids = {row["method"]: row["validation_fid_over_kimg"] for row in rows}
        # The score of the first weights is the same for all, and far from all others.
        fids = {method: line[1:] for method, line in fids.items()}
        draw(folder / "mnist-losses-fid.png", "FID on the validation split", fids)
        critics = {r["method"]: r["estimate_over_kimg"] for r in rows if "wasser" in r["method"]}
        draw(folder / "mnist-losses-wasserstein.png", "E D(x) - E D(G(z))", critics)
    for row in sorted(rows, key=lambda row: row["test_fid"]):
        print(f"{row['method']:22} test FID {row['test_fid']:8.2f}  step {row['best_step']}")
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
