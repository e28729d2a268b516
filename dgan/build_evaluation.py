"""What scores and shows samples, as a recipe and its data have it."""

from collections.abc import Callable, Set
from contextlib import ExitStack
from typing import Any, Protocol

from dgan.clips import Clips
from dgan.config import TRANSLATED, Recipe
from dgan.data import ShardDataset, ShardStream
from dgan.data.location import redact
from dgan.data.text import TextDataset
from dgan.data.toy import ToyStream
from dgan.data.unpaired import UnpairedDataset
from dgan.evaluation import Evaluator
from dgan.evaluation_features import find_features
from dgan.films import Films
from dgan.laboratory.evaluator import PointEvaluator
from dgan.metrics import open_features
from dgan.opening import (
    Stream,
    open_compared,
    open_images,
    open_pairs,
    open_unpaired,
    picture_of,
)
from dgan.parallel.world import World
from dgan.pictures import Cycles, Images, Pairs, Pictures, Points
from dgan.run import Run
from dgan.scores import way_to
from dgan.texts import TextEvaluator, Texts
from dgan.translated import CycleEvaluator, PairEvaluator

SCORED_APART = (*TRANSLATED, "text")
"""Kinds that `Evaluator` does not score."""


class Scores(Protocol):
    """What scores a generator of one kind of samples; every rank calls it."""

    def __call__(self, generator: Callable[..., Any], z_dim: int, /) -> dict[str, Any]:
        """Scores by name, and what they were computed with."""
        ...


def build_pictures(recipe: Recipe, stream: Stream, z_dim: int, world: World) -> Pictures:
    """What shows samples; translated images are those of `evaluation.shards`, if there are any."""
    count, seed = recipe.samples.count, recipe.train.seed
    if isinstance(stream, ToyStream):
        return Points(stream, count=count, z_dim=z_dim, seed=seed, world=world)
    if recipe.data.kind in TRANSLATED:
        with open_translated(recipe, recipe.evaluation.shards or recipe.data.shards) as dataset:
            if isinstance(dataset, UnpairedDataset):
                return Cycles(dataset, count=count, world=world)
            source = recipe.data.source
            return Pairs(dataset, source=source, count=count, z_dim=z_dim, seed=seed, world=world)
    assert isinstance(stream, ShardStream), "of images"
    options: dict[str, Any] = {
        "count": count,
        "classes": recipe.data.classes,
        "z_dim": z_dim,
        "seed": seed,
        "world": world,
    }
    if recipe.data.kind == "audio":
        return Clips(stream, **options, picture=picture_of(recipe), rate=recipe.data.rate)
    if recipe.data.kind == "text":
        return Texts(stream, **options, alphabet=recipe.data.alphabet)
    if recipe.data.kind == "video":
        return Films(stream, **options)
    return Images(stream, **options)


def open_translated(
    recipe: Recipe, shards: str | tuple[str, ...]
) -> ShardDataset | UnpairedDataset:
    """The images of `shards` that a generator from image to image is given, and is to make."""
    return (open_pairs if recipe.data.kind == "pairs" else open_unpaired)(recipe, shards)


def build_evaluator(recipe: Recipe, stream: Stream, world: World, run: Run) -> Scores | None:
    """What scores the averaged generator; None if the recipe does without.

    Raises:
        ValueError: the scores cannot be computed as asked, or `checkpoint.best` is none of them.
    """
    plan = recipe.evaluation
    if plan.every < 0:
        return None
    if isinstance(stream, ToyStream):
        return PointEvaluator(stream.toy, seed=recipe.train.seed, world=world)
    if recipe.data.kind in SCORED_APART:
        compared = plan.shards or recipe.data.shards
        evaluator = evaluator_of_kind(recipe, compared, plan.features, world)
        _require_best(recipe, evaluator.scores)
        return evaluator
    assert isinstance(stream, ShardStream), "of images"
    with ExitStack() as opened:
        training = compared = stream.dataset
        if plan.features == "auto" and not training.has_labels:
            # An unconditional run's stream does not read labels; there may be some.
            training = opened.enter_context(open_images(recipe, recipe.data.shards))
        if plan.shards or recipe.data.kind == "video":
            shards = plan.shards or recipe.data.shards
            compared = opened.enter_context(open_compared(recipe, shards))
        features = find_features(
            plan.features,
            training,
            seed=recipe.train.seed,
            cache=run.directory / "classifier.safetensors",
            world=world,
            picture=picture_of(recipe),
        )
        run.say(f"evaluation features: {features.name}")
        evaluator = Evaluator(
            compared,
            features,
            samples=plan.samples,
            batch_size=min(recipe.train.batch_size, 256),
            seed=recipe.train.seed,
            classes=recipe.data.classes,
            world=world,
            metrics=plan.metrics,
            real_samples=plan.real_samples,
            shards=redact(str(plan.shards or recipe.data.shards)),
            picture=picture_of(recipe),
        )
    _require_best(recipe, evaluator.scores)
    return evaluator


def evaluator_of_kind(
    recipe: Recipe, shards: str | tuple[str, ...], features: str, world: World
) -> PairEvaluator | CycleEvaluator | TextEvaluator:
    """What scores a generator of `SCORED_APART` on `shards`; text takes no `features`."""
    if recipe.data.kind == "text":
        return text_evaluator(recipe, shards, world)
    return translation_evaluator(recipe, shards, features, world)


def translation_evaluator(
    recipe: Recipe, shards: str | tuple[str, ...], features: str, world: World
) -> PairEvaluator | CycleEvaluator:
    """What scores a generator from image to image on `shards`.

    `auto` features are none: a classifier needs labels, and pairs have none. There is no FID then.
    """
    options: dict[str, Any] = {
        "samples": recipe.evaluation.samples,
        # One that is small for the optimizer's sake is still enough work for evaluating.
        "batch_size": max(recipe.train.batch_size, world.size),
        "world": world,
        "shards": redact(str(shards)),
    }
    extractor = None if features == "auto" else open_features(features, device=world.device)
    dataset = open_translated(recipe, shards)
    if isinstance(dataset, UnpairedDataset):
        return CycleEvaluator(dataset, extractor, **options)
    source, seed = recipe.data.source, recipe.train.seed
    return PairEvaluator(dataset, extractor, source=source, seed=seed, **options)


def text_evaluator(recipe: Recipe, shards: str | tuple[str, ...], world: World) -> TextEvaluator:
    """What scores a generator of text against that of `shards`."""
    with open_images(recipe, shards) as dataset:
        assert isinstance(dataset, TextDataset)
        return TextEvaluator(
            dataset,
            samples=recipe.evaluation.samples,
            classes=recipe.data.classes,
            batch_size=max(recipe.train.batch_size, world.size),
            seed=recipe.train.seed,
            world=world,
            shards=redact(str(shards)),
        )


def _require_best(recipe: Recipe, scores: Set[str]) -> None:
    best = recipe.checkpoint.best
    if recipe.checkpoint.keep_best and best not in scores:
        raise ValueError(
            f"--checkpoint.best is {best}, which is not among the scores of this run: "
            f"{', '.join(sorted(scores))}; {way_to(best)}"
        )
