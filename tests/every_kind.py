"""Shards of every kind of data, small, and recipes of cases that differ in it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from captions import captioned
from clips import clips
from films import films
from pairs import pairs
from texts import texts
from tiny import tiny

from dgan.config import Recipe
from dgan.data import pack_source
from dgan.metrics import ClassifierFeatures
from dgan.metrics.classifier import ClassifierSpec, build_classifier

Shards = dict[Any, str]
"""By resolution, and what is not of images by what it is."""


def every_kind(digits: str, folder: Path) -> Shards:
    """Besides `digits`, which are of 8×8, shards that are made in `folder`."""
    pack_source("digits", folder, resolution=16, limit=400)
    paired = str(pairs(folder / "pairs.tar", 11))
    return {
        8: digits,
        16: str(folder / "train-*.tar"),
        "pairs": paired,
        "unpaired": paired,
        "audio": str(clips(folder / "clips.tar", 11)),
        "text": str(texts(folder / "texts.tar", 11)),
        "captions": captioned(folder / "captions.tar", 11),
        "video": str(films(folder / "films.tar", 11)),
    }


def recipe_of(case: dict[str, Any], shards: Shards, **changes: Any) -> Recipe:
    """The tiny recipe with what `case` changes, and with the shards of its kind."""
    kind = "captions" if "data__embedding" in case else case.get("data__kind")
    place = shards[kind if kind in shards else case.get("data__resolution", 8)]
    recipe = tiny(place, "", **case, **changes)
    return _on_features(recipe) if recipe.discriminator.network == "projected" else recipe


def _on_features(recipe: Recipe) -> Recipe:
    """With the features of a classifier, which lies beside the shards."""
    path = Path(str(recipe.data.shards)).with_name("classifier.safetensors")
    if not path.exists():
        spec = ClassifierSpec(
            num_classes=10, channels=1, height=8, width=8, dimension=9, accuracy=1.0, held_out=1,
            trained_on=1, seed=0,
        )  # fmt: skip
        ClassifierFeatures(build_classifier(10, 1, 8, 8, 9, 0), spec).save(path)
    judge = recipe.discriminator
    options = {**judge.options, "extractor": str(path)}
    return replace(recipe, discriminator=replace(judge, options=options))
