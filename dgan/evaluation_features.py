"""The features that a run's scores are computed in."""

from pathlib import Path
from typing import Any

import torch

from dgan.data import ShardDataset, ShardStream
from dgan.data.clips import ClipDataset, split_labelled
from dgan.metrics import ClassifierFeatures, Features, open_features, train_classifier
from dgan.parallel.world import World
from dgan.visible import Picture, visible


def find_features(
    spec: str,
    dataset: ShardDataset | None,
    *,
    seed: int,
    cache: Path,
    world: World,
    picture: Picture = visible,
) -> Features:
    """The features that `spec` names; `auto` is a classifier trained on the shards' own labels.

    The classifier is trained once, by the first rank, and kept in `cache`.

    Args:
        spec: see `open_features`.
        dataset: what the generator is trained on, and the classifier of `auto` too, whatever the
            generator is compared with; not needed where `cache` exists.
        seed: of the classifier.
        cache: its file.
        world: every rank calls this.
        picture: what it sees of a sample.

    Raises:
        ValueError: `auto` on shards without labels, or an unknown `spec`.
    """
    if spec != "auto":
        return open_features(spec, device=world.device)
    if dataset is not None and not dataset.has_labels:
        raise ValueError(
            "--evaluation.features auto trains a classifier on the shards' labels, and these have "
            "none: name a TorchScript file, inception:WEIGHTS, or set --evaluation.every -1"
        )
    if world.is_first and not cache.exists():
        assert dataset is not None
        classifier = _classifier_of(dataset, picture, seed, world.device)
        cache.parent.mkdir(parents=True, exist_ok=True)
        classifier.save(cache)
    world.barrier()
    return ClassifierFeatures.load(cache, device=world.device)


def _classifier_of(
    dataset: ShardDataset, picture: Picture, seed: int, device: torch.device
) -> ClassifierFeatures:
    options: dict[str, Any] = {"num_classes": dataset.num_classes, "seed": seed, "device": device}
    if isinstance(dataset, ClipDataset):
        fit, held_out = split_labelled(dataset)
        return train_classifier(fit, held_out=held_out, **options)
    stream = ShardStream(dataset, batch_size=min(64, len(dataset)), seed=seed, workers=0)
    batches = ((picture(batch["image"]), batch["label"]) for batch in stream)
    return train_classifier(batches, max_samples=min(len(dataset), 10_000), **options)
