"""Stacked MNIST: modes and KL of 26,000 samples, relativistic + R1 + R2 beside DCGAN.

    dgan data pack FOLDER data/mnist --resolution 32 --channels 1 --fit pad --split-by-hash 95/5/0
    dgan data pack FOLDER data/mnist --resolution 32 --channels 1 --fit pad --split test
    python benchmarks/training/stacked_mnist.py --minutes 80      # of training, of each run

The classifier is trained on the training split and measured on the test split; one that is right
on less than 99 % is refused. Runs that are finished are not made again.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from classifier import classifier_of
from dgan import commands
from dgan.config import Divergence, Recipe, Task
from dgan.recipes import stacked_mnist
from dgan.schedule import constant
from dgan.toy import PENALTIES
from report import RESULTS, device, store
from runs import parser, trained, with_budget

PUBLISHED = [
    {"method": "DCGAN", "modes": 99.0, "reverse_kl": 3.40, "source": "Srivastava et al. 2017"},
    {"method": "DCGAN", "modes": 78.9, "reverse_kl": 4.50, "source": "Lin et al. 2018"},
    {"method": "R3GAN", "modes": 1000, "reverse_kl": 0.078, "source": "Huang et al. 2024"},
]
"""Of 26,000 samples, with networks of their own."""


def dcgan() -> Recipe:
    """The same networks as Radford et al. 2016 train them: batch norm, and no penalty."""
    recipe = stacked_mnist()
    plain = {"learning_rate": constant(2e-4), "beta1": 0.5, "beta2": constant(0.999)}
    judge = replace(
        recipe.discriminator, options={**recipe.discriminator.options, "norm": "batch"}, **plain
    )
    return replace(
        recipe,
        name="stacked-mnist-dcgan",
        generator=replace(recipe.generator, **plain),
        discriminator=judge,
        task=Task(loss="non_saturating"),
        penalty=PENALTIES["none"],
        divergence=Divergence(accuracy=0.0),  # that it may fail is what is measured
    )


METHODS = {"relativistic + R1 + R2": stacked_mnist, "DCGAN": dcgan}


def prepared(recipe: Recipe, data: Path, features: Path, samples: int) -> Recipe:
    return replace(
        recipe,
        data=replace(recipe.data, shards=str(data / "train-*.tar")),
        evaluation=replace(
            recipe.evaluation,
            samples=samples,
            features=f"stacked:{features}",
            every=-1,  # what counts is the end; scores on the way would take half of the time
        ),
        checkpoint=replace(recipe.checkpoint, keep_best=0),
    )


def main() -> None:
    asked = parser("Modes of Stacked MNIST.", "runs/stacked-mnist")
    asked.add_argument("--data", type=Path, default=Path("data/mnist"))
    asked.add_argument("--samples", type=int, default=26_000)
    asked.add_argument("--least-accuracy", type=float, default=0.99, help="of the classifier")
    options = asked.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    features = options.out / "classifier.safetensors"
    accuracy = classifier_of(options.data, features)
    if accuracy < options.least_accuracy:
        raise SystemExit(
            f"the classifier {features} is right on {accuracy:.2%} of the test split, not on "
            f"{options.least_accuracy:.0%}: its errors would count as modes"
        )
    rows: list[dict[str, Any]] = [{"published": True, **row} for row in PUBLISHED]
    for name, make in METHODS.items():
        plan = with_budget(prepared(make(), options.data, features, options.samples), options)
        run = trained(plan, options.out)
        out = run / f"end-{options.samples}.json"
        if not out.exists():
            commands.evaluate(run, out=out)
        scores = json.loads(out.read_text())
        kept = ("step", "modes", "reverse_kl", "fid", "samples", "features")
        rows.append({"method": name, "steps": plan.train.steps} | {k: scores[k] for k in kept})
        notes = f"classifier right on {accuracy:.2%} of the test split; KL(generated ‖ real)"
        path = store("stacked-mnist", rows, notes=notes, out=options.results or RESULTS / device())
    for row in rows:
        by = row.get("source", f"{row.get('steps')} steps")
        print(f"{row['method']:24} modes {row['modes']}  KL {row['reverse_kl']:.3f}  ({by})")
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
