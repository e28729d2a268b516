"""Clips of four actions: their Fréchet distance to real ones, beside no training and real clips.

    python benchmarks/training/video.py --data data/video-weizmann --minutes 30

`--data` is a folder of shards of the Weizmann actions, with keys `<class>_<number>`: the number
divided by 8 is the person, of nine, and half of the clips are the mirror images of the others. The
features are of a classifier of actions that is trained on seven persons and measured on the other
two. What real clips come to, each in 16 places: those of five persons beside those of the other
four; the same clips in other places; and clips that are not right, whose frames do not move or are
in another order, which says that these features see motion. A run that is finished is not made
again.
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from dgan.config import Recipe
from dgan.data.clips import Places
from dgan.metrics import ClassifierFeatures, train_classifier
from dgan.metrics.frechet import FeatureStatistics, frechet_distance
from dgan.opening import PLACES
from dgan.recipes import weizmann_video
from dgan.run import metrics_of
from report import RESULTS, device, store
from runs import curve, draw, parser, trained, with_budget

HELD_OUT = 7
"""Persons from this one on do not train the classifier."""


class Clips:
    """All places of all clips, and whose they are."""

    def __init__(self, recipe: Recipe) -> None:
        data = recipe.data
        with Places(
            data.shards,
            each=PLACES,
            channels=data.channels,
            resolution=data.resolution,
            frames=data.frames,
            stride=data.frame_stride,
        ) as places:
            batches = list(places.batches(64))
        keys = [key for batch in batches for key in batch["__key__"]]
        self.person = torch.tensor([int(key.partition("_")[2]) // 8 for key in keys])
        self.clips = torch.cat([batch["image"] for batch in batches])
        self.labels = torch.cat([batch["label"] for batch in batches])


def features_of(clips: Clips, path: Path) -> ClassifierFeatures:
    """The classifier at `path`, which is trained once."""
    if not path.exists():
        fit, held_out = clips.person < HELD_OUT, clips.person >= HELD_OUT
        train_classifier(
            (clips.clips[fit], clips.labels[fit]),
            held_out=(clips.clips[held_out], clips.labels[held_out]),
            num_classes=int(clips.labels.max()) + 1,
        ).save(path)
    return ClassifierFeatures.load(path)


def frozen(clips: Tensor) -> Tensor:
    """The first frame all the time."""
    return clips[:, :, :1].expand_as(clips)


def shuffled(clips: Tensor) -> Tensor:
    """The frames of each clip in an order of its own."""
    draw = torch.Generator().manual_seed(0)
    order = torch.rand(len(clips), clips.shape[2], generator=draw).argsort(1)
    return clips.gather(2, order[:, None, :, None, None].expand_as(clips))


def of_real_clips(clips: Clips, features: ClassifierFeatures) -> list[dict[str, Any]]:
    """What real clips come to, right ones and wrong ones."""

    def distance(a: Tensor, b: Tensor) -> float:
        both = FeatureStatistics(name="a"), FeatureStatistics(name="b")
        for statistics, found in zip(both, (a, b)):
            statistics.update(found)
        return frechet_distance(*both)

    x, even = features(clips.clips), clips.person % 2 == 0
    first = torch.arange(len(x)) % 2 == 0
    rows = [
        ("real, five persons beside four others", x[even], x[~even]),
        ("real, the same clips in other places", x[first], x[~first]),
        ("real, but frames do not move", features(frozen(clips.clips)), x),
        ("real, but frames in another order", features(shuffled(clips.clips)), x),
    ]
    return [{"clips": name, "fid": distance(a, b), "samples": len(a)} for name, a, b in rows]


def placed(recipe: Recipe, data: Path, features: Path) -> Recipe:
    """With the data and features of the command line; scored eight times."""
    every = max(1, recipe.train.steps // 8)
    return replace(
        recipe,
        data=replace(recipe.data, shards=str(data / "*.tar")),
        checkpoint=replace(recipe.checkpoint, every=every),
        samples=replace(recipe.samples, every=every),
        evaluation=replace(recipe.evaluation, every=every, features=str(features)),
    )


def main() -> None:
    asked = parser("Short clips of actions.", "runs/video")
    asked.add_argument("--data", type=Path, default=Path("data/video-weizmann"))
    options = asked.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    folder, path = options.results or RESULTS / device(), options.out / "classifier.safetensors"
    recipe = placed(weizmann_video(), options.data, path)
    clips = Clips(recipe)
    features = features_of(clips, path)
    recipe = with_budget(recipe, options)
    run = trained(placed(recipe, options.data, path), options.out)
    scored = [line for line in metrics_of(run) if "fid" in line]
    rows: list[dict[str, Any]] = [
        {"clips": name, **{key: line[key] for key in ("step", "fid", "agreement", "samples")}}
        for name, line in (("untrained", scored[0]), ("trained", scored[-1]))
    ]
    rows[-1] |= {"batch_size": recipe.train.batch_size, "fid_over_kimg": curve(run, "fid")}
    rows += of_real_clips(clips, features)
    notes = f"{features.name}: of persons it was not trained on; {scored[-1]['crop']}"
    stored = store("video", rows, notes=notes, out=folder)
    last = max((run / "samples").glob("step-*.png"))
    for ending in (".png", ".gif"):
        shutil.copyfile(last.with_suffix(ending), folder / f"video-samples{ending}")
    draw(folder / "video-fid.png", "Fréchet distance", {"trained": curve(run, "fid")})
    for row in rows:
        print(f"{row['clips']:40} {row['fid']:8.2f}")
    print(f"stored in {stored}")


if __name__ == "__main__":
    main()
