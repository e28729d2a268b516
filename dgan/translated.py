"""Scores of generators from image to image, over any number of ranks."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dgan.data import ShardDataset
from dgan.data.unpaired import DOMAINS, UnpairedDataset
from dgan.metrics import Features
from dgan.metrics.frechet import FeatureStatistics, frechet_distance
from dgan.parallel.world import World
from dgan.rounds import draws_of
from dgan.step import Batch, prepare
from dgan.visible import to_uint8

Generator = Callable[..., Any]


class PairEvaluator:
    """The distance of translated images to their targets, and the FID between these.

    Args:
        dataset: pairs.
        features: of the FID; None: there is none.
        source: which image of a pair is translated, `a` or `b`.
        samples: so many pairs, the first ones, or all if there are fewer.
        batch_size: pairs over all ranks that are in flight together.
        seed: of the latents.
        world: every rank calls every method.
        shards: what the data set is called in every output.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        features: Features | None,
        *,
        source: str,
        samples: int,
        batch_size: int,
        seed: int,
        world: World,
        shards: str = "",
    ) -> None:
        self.source, self.target = source, "b" if source == "a" else "a"
        self.world, self.seed, self.features = world, seed, features
        self._rows = _Rows(dataset, samples, batch_size, world)
        self._facts = _facts(features, shards, self._rows.count)
        self._real = _Statistics(features, "targets")
        if features:
            for _, batch in self._rows:
                self._real.add(batch[self.target])

    @property
    def scores(self) -> set[str]:
        """The names, of `dgan.scores.SCORES`, of what a call gives."""
        return {"l1", "fid"} if self.features else {"l1"}

    def __call__(self, generator: Generator, z_dim: int) -> dict[str, Any]:
        """Scores of `generator`: images and latents `[N, z_dim]` → images, all in [−1, 1].

        Returns:
            `l1`, the mean of |made − target|, and with features `fid`; beside them what they were
            computed with.
        """
        error, made = _Mean(self.world), _Statistics(self.features, "translated images")
        for index, (rows, batch) in enumerate(self._rows):
            source, target = batch[self.source], batch[self.target]
            rows = rows if len(rows) else range(rows.start, rows.start + 1)
            draws = draws_of(index, rows, seed=self.seed, world=self.world)
            with self.world.autocast():
                images = _called(generator, source, draws.normal(z_dim))[0]
            error.add((images.to(target.dtype) - target).abs())
            made.add(images)
        return {"l1": error.value(), **made.distance("fid", self._real), **self._facts}


class CycleEvaluator:
    """How well images survive the way there and back, and the FID of what is made on the way.

    Args: as of `PairEvaluator`, and
        dataset: images of both domains.
    """

    def __init__(
        self,
        dataset: UnpairedDataset,
        features: Features | None,
        *,
        samples: int,
        batch_size: int,
        world: World,
        shards: str = "",
    ) -> None:
        self.world, self.features = world, features
        self._rows = _Rows(dataset, samples, batch_size, world)
        self._facts = _facts(features, shards, self._rows.count)
        self._real = {name: _Statistics(features, f"images {name}") for name in DOMAINS}
        if features:
            for _, batch in self._rows:
                for name in DOMAINS:
                    self._real[name].add(batch[name])

    @property
    def scores(self) -> set[str]:
        """The names, of `dgan.scores.SCORES`, of what a call gives."""
        return {"cycle", "fid"} if self.features else {"cycle"}

    def __call__(self, generator: Generator, z_dim: int) -> dict[str, Any]:
        """Scores of `generator`: images of `a` and of `b` → their likes in `b` and in `a`.

        Returns:
            `cycle_a`, the mean of |F(G(a)) − a|, `cycle_b` likewise and `cycle`, their mean; with
            features `fid_a` (what is made of `b`), `fid_b` and `fid`, their mean; beside them what
            they were computed with.
        """
        errors = {name: _Mean(self.world) for name in DOMAINS}
        made = {name: _Statistics(self.features, f"translated to {name}") for name in DOMAINS}
        for _, batch in self._rows:
            with self.world.autocast():
                b, a = _called(generator, batch["a"], batch["b"])
                again_b, again_a = _called(generator, a, b)
            for name, image, again in (("a", a, again_a), ("b", b, again_b)):
                errors[name].add((again.to(batch[name].dtype) - batch[name]).abs())
                made[name].add(image[: len(batch[name])])
        scores = {f"cycle_{name}": error.value() for name, error in errors.items()}
        scores["cycle"] = sum(scores.values()) / 2
        for name in DOMAINS:
            scores |= made[name].distance(f"fid_{name}", self._real[name])
        if self.features:
            scores["fid"] = (scores["fid_a"] + scores["fid_b"]) / 2
        return scores | self._facts


class _Rows:
    """This rank's rows of each batch of a data set, in order, prepared for the networks."""

    def __init__(
        self, dataset: ShardDataset | UnpairedDataset, samples: int, batch_size: int, world: World
    ) -> None:
        self.dataset, self.batch_size, self.world = dataset, batch_size, world
        self.count = min(samples, len(dataset))

    def __iter__(self) -> Iterator[tuple[range, Batch]]:
        rank, size = self.world.rank, self.world.size
        batches = self.dataset.batches(
            self.batch_size, rank=rank, world_size=size, stop=self.count, skip_corrupt=True
        )
        for first, batch in zip(range(0, self.count, self.batch_size), batches):
            self.world.at("evaluation")
            begin = min(self.batch_size, self.count - first) * rank // size
            yield range(begin, begin + len(batch["__key__"])), prepare(batch, self.world)
        self.dataset.close()


def _called(generator: Generator, *inputs: Tensor) -> tuple[Tensor, ...]:
    """What the generator makes, also where there is nothing for this rank to do.

    A sharded network needs every rank in every call.
    """
    rows = len(inputs[0])
    given = inputs if rows else [x if len(x) else x.new_zeros(1, *x.shape[1:]) for x in inputs]
    outputs = generator(*given)
    return tuple(x[:rows] for x in (outputs if isinstance(outputs, tuple) else (outputs,)))


class _Mean:
    """The mean over all samples of all ranks."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._sums = torch.zeros(2, dtype=torch.float64, device=world.device)

    def add(self, values: Tensor) -> None:
        if len(values):
            self._sums[0] += values.flatten(1).mean(1).double().sum()
            self._sums[1] += len(values)

    def value(self) -> float:
        total, count = self.world.total(self._sums.clone()).tolist()
        return total / count


class _Statistics:
    """Of features, if there are any."""

    def __init__(self, features: Features | None, name: str) -> None:
        self.features = features
        self.of_rank = FeatureStatistics(name=name, features=features.name if features else "")

    def add(self, images: Tensor) -> None:
        if self.features and len(images):
            self.of_rank.update(self.features(to_uint8(images)))

    def distance(self, name: str, other: "_Statistics") -> dict[str, float]:
        if not self.features:
            return {}
        return {name: frechet_distance(other.of_rank.reduce(), self.of_rank.reduce())}


def _facts(features: Features | None, shards: str, samples: int) -> dict[str, Any]:
    facts: dict[str, Any] = {"shards": shards, "samples": samples}
    if features:
        facts |= {"features": features.name, "features_digest": features.digest}
        facts |= {"resize": features.resizing}
    return facts
