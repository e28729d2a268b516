"""What a recipe names, opened: its data, its run's directory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from dgan.checkpoint import complete
from dgan.config import Data, Recipe
from dgan.data import ShardDataset, ShardStream
from dgan.data.aside import write_aside
from dgan.data.clips import ClipDataset, Places
from dgan.data.conditions import ConditionedDataset
from dgan.data.decode import DecodeError, image_channels, open_image
from dgan.data.latents import LatentDataset
from dgan.data.location import holds_secret
from dgan.data.stacked import StackedDataset
from dgan.data.text import TextDataset
from dgan.data.toy import ToyStream
from dgan.data.unpaired import DOMAINS, UnpairedDataset, UnpairedStream
from dgan.data.waveforms import AudioDataset
from dgan.metrics.spectrogram import Spectrogram
from dgan.parallel.world import World
from dgan.recipe_file import differences, foreign, from_toml, to_toml
from dgan.run import Run
from dgan.stored import facts_of
from dgan.visible import Picture, visible

Stream = ShardStream | ToyStream | UnpairedStream


def open_stream(recipe: Recipe, world: World) -> Stream:
    """This rank's part of the recipe's data.

    Raises:
        ValueError: the batch cannot be divided, or the images or labels are not what the recipe
            says. FileNotFoundError: no such shards.
    """
    pairs = 2 if recipe.task.mismatch else 1  # which exchange what they are labelled with
    parts = world.size * recipe.train.accumulation * pairs
    if recipe.train.batch_size % parts:
        of_pairs = " of pairs (--task.mismatch)" if recipe.task.mismatch else ""
        raise ValueError(
            f"--train.batch_size {recipe.train.batch_size} (over all ranks) cannot be divided into "
            f"{world.size} ranks × {recipe.train.accumulation} micro-batches{of_pairs}: "
            f"take a multiple of {parts}"
        )
    data = recipe.data
    _refuse_secrets(data.shards, "data.shards")
    _refuse_secrets(recipe.evaluation.shards, "evaluation.shards")
    place: dict[str, Any] = {
        "batch_size": recipe.train.batch_size,
        "seed": recipe.train.seed,
        "rank": world.rank,
        "world_size": world.size,
    }
    if data.kind == "points":
        return ToyStream(str(data.shards), **place)
    # All ranks together are counted by `Skips`, so that they stop together.
    reading = {"flip": data.flip, "workers": data.workers, "device": world.device}
    reading |= {"max_skipped": 1.0}
    if data.kind == "unpaired":
        return UnpairedStream(open_unpaired(recipe, data.shards), **place, **reading)
    if data.kind == "pairs":
        dataset = open_pairs(recipe, data.shards)
        return ShardStream(dataset, **place, **reading, weights=data.weights)
    plain = data.kind == "images" and not data.embedding
    source = _as_stored(data) if plain else {}
    stream = ShardStream(
        data.shards if plain else open_images(recipe, data.shards),
        **place,
        **source,
        **reading,
        weights=data.weights,
    )
    _check_labels(stream, data)
    return stream


def _as_stored(data: Data) -> dict[str, Any]:
    """How the images of shards are to be read."""
    return {
        "resolution": data.resolution,
        "channels": data.channels,
        "labels": None if data.classes else False,
        "crop": data.crop,
        **({"resize": data.resize} if data.resize else {}),
        "cache": data.cache or None,
        "cache_gigabytes": data.cache_gigabytes,
    }


def _check_labels(stream: ShardStream, data: Data) -> None:
    if data.classes and not stream.has_labels:
        raise ValueError(
            f"--data.classes is {data.classes}, but {stream.dataset.table} has no labels: "
            f"{stream.dataset.describe(stream.dataset.table.first_without('cls') or 0)} is the "
            "first without. Pack a folder with a subfolder a class, or set --data.classes 0"
        )
    if data.classes and stream.num_classes > data.classes:
        raise ValueError(
            f"{stream.dataset.table} has labels up to {stream.num_classes - 1}, but --data.classes "
            f"is {data.classes}: set it to {stream.num_classes}"
        )


def open_images(recipe: Recipe, shards: str | tuple[str, ...]) -> ShardDataset:
    """The images of `shards` as the recipe sees its own, with their labels if they have any."""
    options: dict[str, Any] = _as_stored(recipe.data) | {"labels": None}
    if recipe.data.kind == "stacked":
        del options["labels"], options["channels"]
        return StackedDataset(shards, **options)
    if recipe.data.kind == "latents":
        del options["crop"]
        options["labels"] = None if recipe.data.classes else False
        return LatentDataset(shards, **options)
    if recipe.data.kind == "audio":
        return AudioDataset(shards, rate=recipe.data.rate, peak=recipe.data.peak, **options)
    if recipe.data.kind == "text":
        del options["channels"]
        return TextDataset(shards, alphabet=recipe.data.alphabet, **options)
    if recipe.data.kind == "video":
        return ClipDataset(shards, **_as_clips(recipe))
    if recipe.data.embedding:
        plan = recipe.data
        return ConditionedDataset(shards, size=plan.embedding, encoder=plan.encoder, **options)
    return ShardDataset(shards, **options)


def picture_of(recipe: Recipe) -> Picture:
    """What is seen of the recipe's samples."""
    if recipe.data.kind == "audio":
        return Spectrogram(rate=recipe.data.rate, resolution=recipe.data.resolution)
    return visible


def open_compared(recipe: Recipe, shards: str | tuple[str, ...]) -> ShardDataset:
    """What scores compare with: the images of `shards`, or several places of each clip."""
    if recipe.data.kind == "video":
        return Places(shards, each=PLACES, **_as_clips(recipe))
    return open_images(recipe, shards)


PLACES = 16
"""Of each clip that scores compare with."""


def _as_clips(recipe: Recipe) -> dict[str, Any]:
    """How the clips of shards are to be read."""
    options, data = _as_stored(recipe.data) | {"labels": None}, recipe.data
    del options["crop"]
    return options | {"frames": data.frames, "stride": data.frame_stride}


def open_pairs(recipe: Recipe, shards: str | tuple[str, ...]) -> ShardDataset:
    """The pairs of `shards`, with images `a` and `b`.

    Raises:
        ValueError: a sample lacks one of them, or they are colour and the recipe says grey; names
            its key and shard. FileNotFoundError: no such shards.
    """
    return _open_halves(recipe, shards, DOMAINS)


def open_unpaired(recipe: Recipe, shards: str | tuple[str, ...]) -> UnpairedDataset:
    """Two sets of images: those of two entries of `shards`, or the halves of one entry's pairs.

    Raises: as `open_pairs`.
    """
    entries = (shards,) if isinstance(shards, str) else shards
    if len(entries) == 1:
        return UnpairedDataset(*(_open_halves(recipe, entries, (name,)) for name in DOMAINS))
    if len(entries) == 2:
        return UnpairedDataset(*(_open_halves(recipe, entry, ("image",)) for entry in entries))
    raise ValueError(
        f"--data.shards has {len(entries)} entries; --data.kind unpaired takes two, images of `a` "
        "and of `b`, or one of pairs (a pattern such as 'x-*.tar' is one entry, in quotes)"
    )


def _open_halves(
    recipe: Recipe, shards: str | tuple[str, ...], names: tuple[str, ...]
) -> ShardDataset:
    options: dict[str, Any] = _as_stored(recipe.data) | {"labels": False}
    dataset = ShardDataset(shards, images=names, **options)
    for name in names:
        _check_channels(dataset, name, recipe.data.channels)
    return dataset


def _check_channels(dataset: ShardDataset, name: str, channels: int) -> None:
    """Grey images become colour ones without loss; the other way the first sample is an error."""
    try:
        found = image_channels(open_image(dataset.table.read(0, name)))
    except DecodeError:
        return  # of a damaged one nothing is known; it will be skipped
    if found > channels:
        raise ValueError(
            f"{dataset.describe(0)}: {name!r} is a colour image, and --data.channels is "
            f"{channels}: set it to 3, or pack the shards with --channels 1"
        )


def _refuse_secrets(shards: str | tuple[str, ...], key: str) -> None:
    """The recipe is written into the run's directory, which people show to each other."""
    if any(map(holds_secret, [shards] if isinstance(shards, str) else shards)):
        raise ValueError(
            f"--{key} holds a user, password, key or signature, which the run's recipe.toml "
            "would show: name environment variables in their place, in single quotes, as in "
            "'https://$NAME:$PASSWORD@host/x.tar' or 'https://host/x.tar?$SIGNATURE', or read "
            "s3://bucket/x.tar with AWS_* variables"
        )


def open_run(recipe: Recipe, world: World) -> Run:
    """The run's directory, new or to be resumed, with the recipe written into it.

    Raises:
        ValueError: the directory holds another run, or any run though `--run.fresh` was given.
    """
    directory = recipe.directory
    conflict = _conflict(recipe, directory) if world.is_first else None
    if problem := world.gather(conflict)[0]:
        raise ValueError(str(problem))
    if world.is_first:
        directory.mkdir(parents=True, exist_ok=True)
        if not complete(directory / "checkpoints"):
            # What an attempt that came to nothing may have trained on other shards.
            (directory / "classifier.safetensors").unlink(missing_ok=True)
        kept = replace(recipe, run=replace(recipe.run, dir=str(directory), fresh=False))
        write_aside(directory / "recipe.toml", to_toml(kept))
    return Run(
        directory,
        writes=world.is_first,
        total=recipe.train.steps,
        images_per_step=recipe.train.batch_size * recipe.train.discriminator_updates,
        wandb=recipe.run.wandb,
    )


def _conflict(recipe: Recipe, directory: Path) -> str | None:
    saved, found = directory / "recipe.toml", complete(directory / "checkpoints")
    if recipe.run.fresh and (saved.exists() or found):
        return (
            f"{directory} already holds a run, and --run.fresh does not overwrite: "
            "name another --run.dir, or delete it yourself"
        )
    # Without a checkpoint there is nothing to go on with: a recipe that failed may be mended.
    if not found:
        return None
    if saved.exists() and (changed := differences(from_toml(saved), recipe)):
        return (
            f"{directory} holds a run of another recipe; {', '.join(changed)} "
            f"{'differs' if len(changed) == 1 else 'differ'}: go on with the saved one "
            f"(`dgan train {directory}`) or name another --run.dir"
        )
    # The recipe's file may have been deleted, or a checkpoint copied in.
    problems = (foreign(path, facts_of(path), recipe) for path in reversed(found))
    return next(filter(None, problems), None)
