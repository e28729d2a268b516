"""Spoken digits: 300 clips, 30 a digit, beside real recordings and an untrained network.

    dgan data pack FOLDER data/fsdd                 # and again with --split test; FOLDER: the Free
                                                    # Spoken Digit Dataset, a subfolder a digit
    python benchmarks/training/audio.py --minutes 85                # of training, on one core

The classifier is trained on spectrograms of the training split and measured on the test split; one
that is right on less than 95 % is refused. Fréchet distances are of its features, to the training
split. Scores are of the last step: none is chosen. A run that is finished is not made again.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from dgan.build_networks import build_network
from dgan.clips import save_wav
from dgan.config import Recipe
from dgan.data import ShardStream
from dgan.draws import latents
from dgan.export import synthesise
from dgan.metrics import (
    ClassifierFeatures,
    FeatureStatistics,
    frechet_distance,
    train_classifier,
)
from dgan.opening import open_images, picture_of
from dgan.recipes import fsdd_wavegan
from dgan.run import save_grid
from dgan.trained import load_run
from report import RESULTS, device, store
from runs import curve, parser, trained, with_budget

DIGITS, A_DIGIT = 10, 30
SHOWN, SHOWN_REAL = 6, 2
"""Rows of the sheet, generated and below them real, a column a digit."""

Clips = tuple[Tensor, Tensor]
"""Waveforms `[N, 1, L]` and their digits `[N]`."""


def classifier_of(recipe: Recipe, path: Path) -> ClassifierFeatures:
    """Trained on spectrograms of the training split; `path` keeps it."""
    if not path.exists():
        picture = picture_of(recipe)
        with open_images(recipe, recipe.data.shards) as dataset:
            stream = ShardStream(dataset, batch_size=64, seed=0, workers=0)
            batches = ((picture(batch["image"]), batch["label"]) for batch in stream)
            train_classifier(batches, num_classes=DIGITS, max_samples=len(dataset)).save(path)
    return ClassifierFeatures.load(path)


def recordings(recipe: Recipe, shards: str) -> Clips:
    with open_images(recipe, shards) as dataset:
        (batch,) = dataset.batches(len(dataset))
        return batch["image"], torch.as_tensor(batch["label"])


def made(network: Any, z_dim: int) -> Clips:
    """The same latents for every network; digits by turns."""
    digits = torch.arange(DIGITS * A_DIGIT) % DIGITS
    z = latents(len(digits), z_dim, seed=0, purpose="benchmark")
    return synthesise(network.eval(), z, digits), digits


def scorer(recipe: Recipe, features: ClassifierFeatures) -> Callable[[str, Clips], dict[str, Any]]:
    """What scores clips against the training split."""
    picture, train = picture_of(recipe), FeatureStatistics()
    train.update(features(picture(recordings(recipe, str(recipe.data.shards))[0])))

    def score(method: str, clips: Clips) -> dict[str, Any]:
        waves, digits = clips
        found = FeatureStatistics()
        found.update(x := features(picture(waves)))
        right = (features.recognise(x).argmax(1) == digits).double()
        return {
            "method": method,
            "recognised": right.mean().item(),
            "of_digits": [right[digits == digit].mean().item() for digit in range(DIGITS)],
            "fid": frechet_distance(train, found),
            "samples": len(waves),
            "features": features.name,
        }

    return score


def placed(recipe: Recipe, data: Path, features: Path) -> Recipe:
    """With the data of the command line; scored ten times."""
    every = max(1, recipe.train.steps // 10)
    return replace(
        recipe,
        data=replace(recipe.data, shards=str(data / "*train-*.tar")),
        checkpoint=replace(recipe.checkpoint, every=every, keep_best=0),
        samples=replace(recipe.samples, every=every),
        evaluation=replace(
            recipe.evaluation, every=every, samples=DIGITS * A_DIGIT, features=str(features)
        ),
    )


def show(recipe: Recipe, generated: Clips, real: Clips, folder: Path) -> None:
    """A sheet of spectrograms, and each digit once to be heard."""
    rows = [generated[0][: SHOWN * DIGITS]]
    order = torch.cat(
        [(real[1] == digit).nonzero()[:SHOWN_REAL, 0] for digit in range(DIGITS)]
    ).view(DIGITS, SHOWN_REAL)
    rows.append(real[0][order.T.flatten()])
    save_grid(picture_of(recipe)(torch.cat(rows)), folder / "audio-fsdd.png", columns=DIGITS)
    save_wav(generated[0][:DIGITS], folder / "audio-fsdd.wav", recipe.data.rate)


def main() -> None:
    asked = parser("WaveGAN on spoken digits.", "runs/audio")
    asked.add_argument("--data", type=Path, default=Path("data/fsdd"))
    asked.add_argument("--least-accuracy", type=float, default=0.95, help="of the classifier")
    options = asked.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    folder = options.results or RESULTS / device()
    path = options.out / "classifier.safetensors"
    recipe = placed(fsdd_wavegan(), options.data, path)
    features = classifier_of(recipe, path)
    score, real = scorer(recipe, features), recordings(recipe, str(options.data / "*test-*.tar"))
    rows = [score("real recordings, test split", real)]
    if rows[0]["recognised"] < options.least_accuracy:
        raise SystemExit(
            f"the classifier {path} is right on {rows[0]['recognised']:.2%} of the test split, not "
            f"on {options.least_accuracy:.0%}: it could not tell what was said"
        )
    recipe = placed(with_budget(recipe, options), options.data, path)
    began = time.process_time()
    run = load_run(trained(recipe, options.out))
    minutes = (time.process_time() - began) / 60
    untrained = build_network(recipe, "generator")
    rows.append(score("untrained", made(untrained, run.z_dim)))
    generated = made(run.network, run.z_dim)
    rows.append(
        {
            **score(recipe.name, generated),
            "step": run.step,
            "cpu_minutes_of_this_process": round(minutes, 1),
            "recognised_over_kimg": curve(options.out / recipe.name, "agreement"),
            "fid_over_kimg": curve(options.out / recipe.name, "fid"),
        }
    )
    notes = f"classifier right on {rows[0]['recognised']:.2%} of the test split"
    stored = store("audio", rows, notes=notes, out=folder)
    show(recipe, generated, real, folder)
    for row in rows:
        print(f"{row['method']:30} recognised {row['recognised']:.1%}  Fréchet {row['fid']:8.2f}")
    print(f"stored in {stored}")


if __name__ == "__main__":
    main()
