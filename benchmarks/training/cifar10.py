"""CIFAR-10: what a narrow R3GAN reaches within a budget, its FID over time and its samples.

    dgan data pack FOLDER data/cifar10 --split-by-hash 95/5/0
    dgan data pack FOLDER data/cifar10 --split test
    python benchmarks/training/cifar10.py --minutes 60

FID is that of `--samples` samples of the averaged generator to the training split, by features of
a classifier trained here, which is measured on the test split. These are not Inception's features:
compare numbers of this table with each other only.
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from classifier import classifier_of
from dgan import commands
from dgan.config import Augment, Average, Checkpoint, Penalty, Recipe
from dgan.recipes.r3gan import cifar10_r3gan, r3gan_player
from dgan.schedule import Cosine
from report import RESULTS, device, store
from runs import curve, draw, parser, trained, with_budget

NARROW = {"widths": (96, 64, 32, 16), "blocks": (1, 1, 1, 1), "groups": (12, 8, 4, 2)}
"""Of either network of the published shape, that a CPU can train."""


def narrow_cifar10() -> Recipe:
    """`cifar10-r3gan` narrowed to 96 channels, one block a stage, 32 images a step."""
    recipe = cifar10_r3gan()
    return replace(
        recipe,
        generator=replace(recipe.generator, options={"z_dim": 64, **NARROW}),
        discriminator=replace(recipe.discriminator, options=NARROW),
        train=replace(recipe.train, batch_size=32),
    )


def short(data: Path, features: Path, samples: int) -> Recipe:
    """The narrow networks with schedules of 320,000 images, which are stretched to the budget."""
    recipe, kimg = narrow_cifar10(), 320.0
    player = r3gan_player(NARROW, Cosine(start=1e-3, end=1e-4, kimg=kimg))
    return replace(
        recipe,
        name="cifar10-r3gan-narrow",
        data=replace(recipe.data, shards=str(data / "train-*.tar")),
        generator=replace(player, options={"z_dim": 64, **NARROW}),
        discriminator=player,
        train=replace(recipe.train, steps=10_000),
        penalty=Penalty(gamma=Cosine(start=0.5, end=0.05, kimg=kimg), method="double"),
        augment=Augment(),  # so few images are seen that none is learned by heart
        average=Average(half_life_kimg=Cosine(start=0.0, end=10.0, kimg=kimg)),
        evaluation=replace(
            recipe.evaluation,
            samples=samples,
            features=str(features),
            metrics=("fid", "manifold"),
            real_samples=2000,
        ),
    )


def scored_often(recipe: Recipe) -> Recipe:
    """Twelve scores, each with a picture and a checkpoint."""
    every = max(1, recipe.train.steps // 12)
    return replace(
        recipe,
        checkpoint=Checkpoint(every=every),
        samples=replace(recipe.samples, every=every),
        evaluation=replace(recipe.evaluation, every=every),
    )


def main() -> None:
    asked = parser("FID over time on CIFAR-10.", "runs/cifar10")
    asked.add_argument("--data", type=Path, default=Path("data/cifar10"))
    asked.add_argument("--samples", type=int, default=5000)
    options = asked.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    folder = options.results or RESULTS / device()
    features = options.out / "classifier.safetensors"
    accuracy = classifier_of(options.data, features, epochs=12)
    recipe = short(options.data, features, options.samples)
    recipe = scored_often(with_budget(recipe, options))
    run = trained(recipe, options.out)
    out = run / "test.json"
    if not out.exists():
        tests = str(options.data / "test-*.tar")
        commands.evaluate(run, step="best", shards=tests, samples=options.samples, out=out)
    test = json.loads(out.read_text())
    over_time = curve(run, "fid")
    row = {
        "method": recipe.name,
        "steps": recipe.train.steps,
        "fid_over_kimg": over_time,
        "best_step": test["step"],
        "test_fid": test["fid"],
        "features": test["features"],
        "samples": options.samples,
    }
    notes = f"classifier right on {accuracy:.2%} of the test split; FID of its features"
    path = store("cifar10-r3gan-narrow", [row], notes=notes, out=folder)
    draw(folder / "cifar10-r3gan-narrow-fid.png", "FID", {recipe.name: over_time})
    last = max((run / "samples").glob("step-*.png"))
    shutil.copy(last, folder / "cifar10-r3gan-narrow-samples.png")
    for kimg, fid in over_time:
        print(f"{kimg:8.0f} kimg  FID {fid:8.2f}")
    print(f"test split, step {test['step']}: FID {test['fid']:.2f}; stored in {path}")


if __name__ == "__main__":
    main()
