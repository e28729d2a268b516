"""Facades: pix2pix beside L1 alone and no training, and CycleGAN, each within one budget.

    dgan data pack facades/train data/facades --pairs side-by-side --resolution 256
    dgan data pack facades/test data/facades --pairs side-by-side --resolution 256 --split test
    dgan data pack FOLDER data/cifar10          # and again with --split test; FOLDER: CIFAR-10
    python benchmarks/training/translation.py --minutes 20              # of each of three runs

Scores are on the test split, of the last step: none is chosen. FID is of the mean embedding of an
image's 32×32 patches, in a classifier of CIFAR-10: it sees textures, not where they are. Runs that
are finished are not made again.
"""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from classifier import classifier_of
from dgan.config import Recipe
from dgan.metrics import ClassifierFeatures
from dgan.recipes.translation import facades_cyclegan_64, facades_pix2pix_128
from dgan.run import metrics_of
from report import RESULTS, device, store
from runs import curve, draw, parser, trained, with_budget


class Patches(nn.Module):
    """Images uint8 `[N, 3, H, W]` → the mean embedding `[N, D]` of their 32×32 patches."""

    def __init__(self, body: nn.Module, embed: nn.Module) -> None:
        super().__init__()
        self.body, self.embed = body, embed

    def forward(self, x: Tensor) -> Tensor:
        patches = (x.float() / 127.5 - 1).unfold(2, 32, 32).unfold(3, 32, 32)
        flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1], 32, 32)
        return self.embed(self.body(flat)).view(x.shape[0], -1, 64).mean(1)


def l1_alone() -> Recipe:
    """The same networks and data; the discriminator learns, but is not heard."""
    recipe = facades_pix2pix_128()
    return replace(
        recipe,
        name="facades-l1-128",
        translation=replace(recipe.translation, adversarial=0.0),
    )


METHODS: dict[str, Callable[[], Recipe]] = {
    "pix2pix": facades_pix2pix_128,
    "l1": l1_alone,
    "cyclegan": facades_cyclegan_64,
}


def features_of(cifar: Path, path: Path) -> str:
    """Trains the classifier behind `path`, a TorchScript file, once; how good it is, in words."""
    saved = path.with_name("cifar10.safetensors")
    accuracy = classifier_of(cifar, saved, samples=20_000)
    module = ClassifierFeatures.load(saved).module
    torch.jit.script(Patches(module.body, module.embed)).save(path)
    return (
        f"FID: patches of a CIFAR-10 classifier that is right on {accuracy:.1%} of its test split"
    )


def placed(recipe: Recipe, data: Path, features: Path) -> Recipe:
    """With the data of the command line; scored ten times."""
    every = max(1, recipe.train.steps // 10)
    evaluation = replace(
        recipe.evaluation,
        every=every,
        shards=str(data / "test-*.tar"),
        features=str(features),
    )
    return replace(
        recipe,
        data=replace(recipe.data, shards=str(data / "train-*.tar")),
        checkpoint=replace(recipe.checkpoint, every=every),
        samples=replace(recipe.samples, every=every),
        evaluation=evaluation,
    )


def rows_of(method: str, run: Path) -> list[dict[str, Any]]:
    """The scores before and after the training."""
    scored = [line for line in metrics_of(run) if "fid" in line]
    keys = ("step", "l1", "cycle", "cycle_a", "cycle_b", "fid", "fid_a", "fid_b", "features")
    first, last = (
        {key: line[key] for key in keys if key in line} for line in (scored[0], scored[-1])
    )
    over_time = {f"{key}_over_kimg": curve(run, key) for key in ("l1", "cycle", "fid")}
    untrained = {"method": f"{method}, untrained", **first}
    return [untrained, {"method": method, **last, **{k: v for k, v in over_time.items() if v}}]


def main() -> None:
    asked = parser("Translation on the CMP facades.", "runs/translation")
    asked.add_argument("--data", type=Path, default=Path("data/facades"))
    asked.add_argument("--cifar", type=Path, default=Path("data/cifar10"))
    asked.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = asked.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    folder = options.results or RESULTS / device()
    features = options.out / "patches.pt"
    notes = features_of(options.cifar, features)
    rows: list[dict[str, Any]] = []
    for method in options.methods:
        recipe = with_budget(placed(METHODS[method](), options.data, features), options)
        run = trained(placed(recipe, options.data, features), options.out)
        rows += rows_of(method, run)
        path = store("translation", rows, notes=notes, out=folder)
        sheet = max((run / "samples").glob("step-*.png"))
        shutil.copyfile(sheet, folder / f"translation-{method}.png")
    fids = {row["method"]: row["fid_over_kimg"] for row in rows if "fid_over_kimg" in row}
    draw(folder / "translation-fid.png", "FID on the test split", fids)
    for row in rows:
        name = "l1" if "l1" in row else "cycle"
        print(f"{row['method']:20} {name:5} {row[name]:.4f}  FID {row['fid']:8.2f}")
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
