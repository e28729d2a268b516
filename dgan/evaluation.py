"""Scores of a generator against the images of some shards, over any number of ranks."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgan.data import ShardDataset, ShardStream
from dgan.draws import Draws, generator
from dgan.metrics import (
    ClassCoverage,
    ClassifierFeatures,
    Features,
    FeatureStatistics,
    frechet_distance,
    open_features,
    train_classifier,
)
from dgan.parallel.world import World

Synthesise = Callable[[Tensor, Tensor | None], Tensor]
"""Latents `[N, z_dim]` and labels int64 `[N]` or None → images `[N, C, H, W]` in [−1, 1]."""


def find_features(
    spec: str, dataset: ShardDataset, *, seed: int, cache: Path, world: World
) -> Features:
    """The features that `spec` names; `auto` is a classifier trained on the shards' own labels.

    The classifier is trained once, by the first rank, and kept in `cache`.

    Raises:
        ValueError: `auto` on shards without labels, or an unknown `spec`.
    """
    if spec != "auto":
        return open_features(spec, device=world.device)
    if not dataset.has_labels:
        raise ValueError(
            "--evaluation.features auto trains a classifier on the shards' labels, and these have "
            "none: name a TorchScript file, inception:WEIGHTS, or set --evaluation.every -1"
        )
    if world.is_first and not cache.exists():
        stream = ShardStream(dataset, batch_size=min(64, len(dataset)), seed=seed, workers=0)
        batches = ((batch["image"], batch["label"]) for batch in stream)
        classifier = train_classifier(
            batches,
            num_classes=dataset.num_classes,
            max_samples=min(len(dataset), 10_000),
            seed=seed,
            device=world.device,
        )
        cache.parent.mkdir(parents=True, exist_ok=True)
        classifier.save(cache)
    world.barrier()
    return ClassifierFeatures.load(cache, device=world.device)


class Evaluator:
    """Compares generated images with all images of a data set.

    Real statistics are computed once, at construction, every rank reading its part.

    Args:
        dataset: the real images.
        features: what images are compared in.
        samples: how many images are generated for a score.
        batch_size: images over all ranks that are in flight together.
        seed: of the latents.
        classes: of the generator, 0 if it is unconditional; labels then follow the data's own.
        world: every rank calls every method.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        features: Features,
        *,
        samples: int,
        batch_size: int,
        seed: int,
        classes: int,
        world: World,
    ) -> None:
        self.dataset, self.features, self.world = dataset, features, world
        self.samples, self.seed, self.classes = samples, seed, classes
        self.batch_size = batch_size
        real = FeatureStatistics(name="real images", features=features.name)
        for batch in dataset.batches(
            self.batch_size, rank=world.rank, world_size=world.size, skip_corrupt=True
        ):
            if len(batch["__key__"]):
                real.update(features(batch["image"]))
        self.real = real.reduce()

    def __call__(self, synthesise: Synthesise, z_dim: int) -> dict[str, Any]:
        """Scores of `self.samples` generated images.

        Returns:
            `fid`, and with a classifier's features `coverage` (share of the real classes that
            occur), `reverse_kl` and, for conditional generators, `agreement`; beside them what
            they were computed with.
        """
        classifier = self.features if isinstance(self.features, ClassifierFeatures) else None
        fake = FeatureStatistics(name="generated images", features=self.features.name)
        coverage = ClassCoverage(classifier.num_classes) if classifier else None
        for images, labels in self._batches(synthesise, z_dim):
            if not len(images):
                continue
            fake.update(self.features(images))
            if coverage is not None and classifier is not None:
                coverage.update(classifier.probabilities(images), labels)
        scores: dict[str, Any] = {"fid": frechet_distance(self.real, fake.reduce())}
        if coverage is not None:
            real = self._class_counts(coverage.num_classes)
            total = coverage.reduce()
            scores |= {"coverage": total.coverage(real), "reverse_kl": total.reverse_kl(real)}
            if self.classes:
                scores["agreement"] = total.agreement
        return scores | {
            "features": self.features.name,
            "features_digest": self.features.digest,
            "samples": self.samples,
            "real_samples": self.real.count,
        }

    def _class_counts(self, classes: int) -> list[int]:
        labels = self.dataset.labels
        return np.bincount(labels[labels >= 0], minlength=classes).tolist()

    def _batches(
        self, synthesise: Synthesise, z_dim: int
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """This rank's part of each batch, uint8; every rank generates equally often."""
        rank, size = self.world.rank, self.world.size
        begin, end = (self.batch_size * r // size for r in (rank, rank + 1))
        # A sharded network needs every rank in every call, also one that has no part.
        rows = range(begin, max(end, begin + 1))
        for index in range(-(-self.samples // self.batch_size)):
            draws = Draws(
                seed=self.seed,
                purpose="evaluation",
                step=index,
                rows=rows,
                device=self.world.device,
                dtype=self.world.dtype,
            )
            labels = self._labels(index, rows) if self.classes else None
            with self.world.autocast():
                images = synthesise(draws.normal(z_dim), labels)
            wanted = max(0, min(end, self.samples - index * self.batch_size) - begin)
            yield to_uint8(images[:wanted]), None if labels is None else labels[:wanted]

    def _labels(self, index: int, rows: range) -> Tensor:
        """Labels drawn as the data has them."""
        present = self.dataset.labels[self.dataset.labels >= 0]
        stream = generator(self.seed, "evaluation labels", index)
        chosen = present[stream.integers(len(present), size=rows.stop)][rows.start :]
        return torch.from_numpy(chosen).to(self.world.device)


def to_uint8(images: Tensor) -> Tensor:
    """Images in [−1, 1] to uint8; values outside are clipped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
