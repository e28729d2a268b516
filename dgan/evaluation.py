"""Scores of a generator against the images of some shards, over any number of ranks."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgan.data import ShardDataset
from dgan.data.clips import ClipDataset
from dgan.data.conditions import ConditionedDataset
from dgan.data.waveforms import AudioDataset
from dgan.draws import generator
from dgan.metrics import Comparison, Features, Tally, class_histogram
from dgan.metrics.classwise import require_two_each
from dgan.metrics.comparison import OF_PAIRS, pixels_of
from dgan.parallel.world import World
from dgan.rounds import rounds
from dgan.scores import ALL, METRICS, require_metrics
from dgan.visible import Picture, visible

Synthesise = Callable[[Tensor, Tensor | None], Tensor]
"""Latents `[N, z_dim]`, and labels int64 `[N]`, vectors `[N, D]` or None → images `[N, C, H, W]`
in [−1, 1]."""

LEAST = {"fid": 2, "kid": 4, "manifold": 6, "classifier_score": 10, "intra_fid": 2, "parzen": 2}
"""Samples that each metric takes."""


class Evaluator:
    """Compares generated images with all images of a data set.

    What needs the real images alone is computed once, at construction, every rank reading its part.
    `Comparison` says what memory the metrics take.

    Args:
        dataset: the real images; may be closed afterwards.
        features: what images are compared in.
        samples: how many images are generated for a score.
        batch_size: images over all ranks that are in flight together.
        seed: of the latents, and of what is chosen at random.
        classes: of the generator, whose labels then follow the data's own; 0: it has none. Of a
            data set that has vectors in their place, it is given those of random samples.
        world: every rank calls every method.
        metrics: of `dgan.scores.METRICS`; `all` is what features and generator allow.
        real_samples: real images that `kid` and `manifold` compare with, chosen at random; 0: as
            many as `samples`, or all if there are fewer. The other metrics take all.
        shards: what the data set is called in every output.
        validation: other real images, on which `parzen` chooses its bandwidth.
        picture: what the features see of a sample.

    Raises:
        ValueError: a metric that is not possible here, more real samples than there are, too few of
            either (for `intra_fid` of a class), or labels that do not fit.
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
        metrics: Sequence[str] = ("fid",),
        real_samples: int = 0,
        shards: str = "",
        validation: ShardDataset | None = None,
        picture: Picture = visible,
    ) -> None:
        self.features, self.world = features, world
        self.samples, self.seed, self.classes = samples, seed, classes
        self.batch_size, self.picture = batch_size, picture
        self.metrics = _possible(metrics, features, classes, validation)
        _require_samples(self.metrics, samples, real_samples, len(dataset))
        self._labels = self._known_labels(dataset)
        self._conditioned = dataset if isinstance(dataset, ConditionedDataset) else None
        if "intra_fid" in self.metrics:
            self._require_classes()
        counts = np.bincount(self._labels, minlength=features.num_classes)
        self._comparison = Comparison(
            self._read(dataset),
            features,
            self.metrics,
            classes=classes,
            class_counts=counts.tolist() if dataset.has_labels else None,
            pairs=real_samples or samples,
            seed=seed,
            validation=None if validation is None else self._pixels(validation),
            at=lambda: world.at("evaluation"),
        )
        self._facts = {
            "features": features.name,
            "features_digest": features.digest,
            "resize": features.resizing,
            "crop": _crop(dataset),
            "shards": shards or str(dataset.table),
            "samples": samples,
            "real_samples": self._comparison.real.count,
        }

    def __call__(self, synthesise: Synthesise, z_dim: int) -> dict[str, Any]:
        """Scores of `self.samples` generated images.

        Returns:
            The scores of `dgan.scores.METRICS` that were asked for: `fid` always, with features
            that know classes those of the classes, for conditional generators `agreement`; beside
            them what they were computed with.
        """
        fake = Tally("generated images", self.features, self.metrics, samples=self.samples)
        for begin, images, labels in self._batches(synthesise, z_dim):
            fake.add(images, begin, labels)
        return self._comparison(fake) | self._facts

    @property
    def scores(self) -> set[str]:
        """The names, of `dgan.scores.SCORES`, of what a call gives."""
        names = {score for metric in self.metrics for score in METRICS[metric]}
        unknown = set() if self.classes else {"agreement"}
        return names - (unknown if self.features.num_classes else {*METRICS["fid"]} - {"fid"})

    def _read(self, dataset: ShardDataset) -> Tally:
        """This rank's part of the real images."""
        rank, size = self.world.rank, self.world.size
        real = Tally("real images", self.features, self.metrics)
        batches = dataset.batches(self.batch_size, rank=rank, world_size=size, skip_corrupt=True)
        for first, batch in zip(range(0, len(dataset), self.batch_size), batches):
            count = min(self.batch_size, len(dataset) - first)
            # Some may have been left out: the numbers still rise in the order of the data.
            if len(batch["__key__"]):
                begin = first + count * rank // size
                real.add(self.picture(batch["image"]), begin, batch.get("label"))
        return real

    def _pixels(self, dataset: ShardDataset) -> Tensor:
        """This rank's part of a data set, as `parzen` takes it."""
        rank, size = self.world.rank, self.world.size
        batches = dataset.batches(self.batch_size, rank=rank, world_size=size, skip_corrupt=True)
        return torch.cat([pixels_of(self.picture(batch["image"])) for batch in batches])

    def _known_labels(self, dataset: ShardDataset) -> np.ndarray:
        """The data's labels, where there are any that are not damaged."""
        if not dataset.has_labels:
            if self.classes:
                raise ValueError(
                    "a conditional generator is asked for classes as the data has them, but "
                    f"{dataset.describe(0)} of the shards to compare with has no label"
                )
            return np.zeros(0, np.int64)
        labels = dataset.labels[dataset.labels >= 0]
        found = int(labels.max(initial=-1))
        knows = {"the generator": self.classes, self.features.name: self.features.num_classes}
        for name, known in knows.items():
            if known and found >= known:
                raise ValueError(
                    f"{dataset.table} has labels up to {found}, but {name} knows 0 … {known - 1}"
                )
        return labels

    def _require_classes(self) -> None:
        """Before anything is generated: which classes will be asked for follows from the seed."""
        real = torch.from_numpy(np.bincount(self._labels, minlength=self.classes))
        indices = range(-(-self.samples // self.batch_size))
        rows = range(self.batch_size)
        asked = torch.cat([self._asked(index, rows) for index in indices])[: self.samples]
        made = class_histogram(asked, self.classes)
        way_out = "raise --evaluation.samples, or leave intra_fid out of --evaluation.metrics"
        for counts, name in ((real, "real images"), (made, "generated images")):
            require_two_each(counts, real > 0, name, way_out)

    def _batches(
        self, synthesise: Synthesise, z_dim: int
    ) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """This rank's part of each batch: the number of its first sample, uint8 images, labels."""
        for turn in rounds(self.samples, self.batch_size, seed=self.seed, world=self.world):
            labels, wanted = None, turn.wanted
            if self.classes:
                labels = self._asked(turn.index, turn.rows).to(self.world.device)
            given = labels
            if self._conditioned is not None:
                given = self._described(turn.index, turn.rows)
            with self.world.autocast():
                images = synthesise(turn.draws.normal(z_dim), given)
            shown = self.picture(images[:wanted])
            yield turn.first, shown, None if labels is None else labels[:wanted]

    def _asked(self, index: int, rows: range) -> Tensor:
        """Labels drawn as the data has them, int64 on the CPU."""
        stream = generator(self.seed, "evaluation labels", index)
        chosen = self._labels[stream.integers(len(self._labels), size=rows.stop)][rows.start :]
        return torch.from_numpy(chosen)

    def _described(self, index: int, rows: range) -> Tensor:
        """Vectors of random samples."""
        assert self._conditioned is not None
        stream = generator(self.seed, "evaluation conditions", index)
        chosen = stream.integers(len(self._conditioned), size=rows.stop)[rows.start :]
        given = self._conditioned.conditions(chosen.tolist())
        return given.to(self.world.device, self.world.dtype)


def _possible(
    metrics: Sequence[str], features: Features, classes: int, validation: ShardDataset | None
) -> tuple[str, ...]:
    """What `metrics` come to with these features and that generator, in the order of `METRICS`."""
    require_metrics(metrics, "--evaluation.metrics")
    reasons = {}
    if not features.num_classes:
        reasons["classifier_score"] = f"{features.name} does not know classes"
    if not classes:
        reasons["intra_fid"] = "the generator is not asked for classes"
    if validation is None:
        reasons["parzen"] = (
            "it chooses its bandwidth on other images than those that it scores, so it is for "
            "`dgan evaluate RUN --metrics parzen --shards TEST --validation VALIDATION`"
        )
    for metric in metrics:
        if metric in reasons:
            raise ValueError(f"--evaluation.metrics {metric} is not possible: {reasons[metric]}")
    wanted = {*METRICS} - {*reasons} if ALL in metrics else {"fid", *metrics}
    return tuple(metric for metric in METRICS if metric in wanted)


def _require_samples(
    metrics: Sequence[str], samples: int, real_samples: int, available: int
) -> None:
    """Raise `ValueError` if there are fewer samples than asked for, or than a metric takes."""
    if real_samples > available:
        raise ValueError(
            f"--evaluation.real_samples is {real_samples}, but there are {available} real images: "
            "ask for fewer, or for 0, which is as many as are generated"
        )
    for metric in metrics:
        real = min(real_samples or samples, available) if metric in OF_PAIRS else available
        if min(samples, real) < LEAST[metric]:
            raise ValueError(
                f"{metric} takes {LEAST[metric]} samples or more, but --evaluation.samples is "
                f"{samples} and {real} real images are compared with"
            )


def _crop(dataset: ShardDataset) -> str:
    if isinstance(dataset, AudioDataset):
        return "none" if dataset.crop == "none" else f"the middle {dataset.resolution} samples"
    if isinstance(dataset, ClipDataset):
        return f"{dataset.frames} frames with a stride of {dataset.stride}"
    side = dataset.shapes[dataset.image_names[0]][1]
    if dataset.crop in ("centre", "random"):
        return f"the middle square, Lanczos, to {side}×{side}"
    return f"the middle {side}×{side}" if dataset.crop == "window" else "none"
