"""What each kind of data must say, and what it would ignore."""

import shlex
from collections.abc import Callable
from typing import Any

from dgan.config import TRANSLATED, Recipe
from dgan.metrics.ngrams import LARGEST_ALPHABET

ONLY_OF = {
    "data.source": ("pairs",),
    "data.embedding": ("images",),
    "data.rate": ("audio",),
    "data.peak": ("audio",),
    "data.alphabet": ("text",),
    "data.frames": ("video",),
    "data.frame_stride": ("video",),
}
"""Keys, and the kinds of data that they are for."""

NO_IMAGES = ("points", "latents", "audio", "text", "video")
NOT_OF = {
    "augment.kind": NO_IMAGES,
    "regularizers.bcr": NO_IMAGES,
    "judges.scales": ("points", "audio", "text", "video"),
    "judges.extractor": ("points", "audio", "text", "video"),
    "data.flip": ("latents", "audio", "text"),
    "data.crop": ("latents", "video"),
    "data.classes": ("points", *TRANSLATED),
    "data.weights": ("stacked", "unpaired"),
    "evaluation.metrics": ("text", *TRANSLATED),
    "evaluation.features": ("text",),
    "evaluation.real_samples": ("text", *TRANSLATED),
}
"""Keys, and the kinds of data that would ignore them."""


def check_kind(recipe: Recipe) -> None:
    """Raise `ValueError` for what the recipe's kind of data ignores, needs or cannot have."""
    data = recipe.data
    for key, kinds in ONLY_OF.items():
        value, default = _value_and_default(recipe, key)
        if value != default and data.kind not in kinds:
            raise ValueError(
                f"--{key} {_given(value)} is for --data.kind {' and '.join(kinds)}, not "
                f"{data.kind}: leave it out"
            )
    for key, kinds in NOT_OF.items():
        value, default = _value_and_default(recipe, key)
        if value != default and data.kind in kinds:
            raise ValueError(
                f"--{key} {_given(value)} means nothing to --data.kind {data.kind}: leave it out"
            )
    CHECKS.get(data.kind, _check_channels)(recipe)


def _value_and_default(recipe: Recipe, key: str) -> tuple[Any, Any]:
    name, _, field = key.partition(".")
    section = getattr(recipe, name)
    return getattr(section, field), type(section).__dataclass_fields__[field].default


def _given(value: Any) -> str:
    """As a shell is given it."""
    values = value if isinstance(value, tuple) else (value,)
    return shlex.join(map(str, values))


def _check_channels(recipe: Recipe) -> None:
    if recipe.data.channels not in (1, 3):
        raise ValueError(f"--data.channels is {recipe.data.channels}; it must be 1 or 3")


def _check_stacked(recipe: Recipe) -> None:
    if recipe.data.channels != 3:
        raise ValueError(
            f"--data.channels is {recipe.data.channels}; --data.kind stacked makes 3 of single ones"
        )
    if recipe.evaluation.every >= 0 and recipe.evaluation.features == "auto":
        raise ValueError(
            "--data.kind stacked is scored by a classifier of its parts: --evaluation.features "
            "stacked:PATH, of a run on the single images (its classifier.safetensors), or "
            "--evaluation.every -1"
        )


def _check_latents(recipe: Recipe) -> None:
    if recipe.data.channels < 1:
        raise ValueError(f"--data.channels is {recipe.data.channels}; it must be at least 1")
    if recipe.evaluation.every >= 0:
        raise ValueError(
            "--data.kind latents has no scores, which are of images: set --evaluation.every -1"
        )


def _check_audio(recipe: Recipe) -> None:
    data = recipe.data
    _refuse_resizing(recipe)
    if data.rate < 1:
        raise ValueError(
            f"--data.rate is {data.rate}; --data.kind audio needs the samples a second of its "
            "clips, such as 16000: `dgan data verify SHARDS` says what they have"
        )
    if data.channels < 1:
        raise ValueError(f"--data.channels is {data.channels}; it must be at least 1")
    if not 0 <= data.peak <= 1:
        raise ValueError(f"--data.peak is {data.peak}; it must be from 0 (as stored) to 1")


def _check_text(recipe: Recipe) -> None:
    data, characters = recipe.data, len(recipe.data.alphabet)
    _refuse_resizing(recipe)
    if not 1 < characters <= LARGEST_ALPHABET or len(set(data.alphabet)) != characters:
        raise ValueError(
            f"--data.alphabet {data.alphabet!r} has {characters} characters; it must be 2 to "
            f"{LARGEST_ALPHABET}, each once"
        )
    if data.channels != characters:
        raise ValueError(
            f"--data.channels is {data.channels}, but --data.alphabet has {characters} "
            "characters: set it to their number"
        )


def _refuse_resizing(recipe: Recipe) -> None:
    if recipe.data.crop == "random":
        raise ValueError(
            f"--data.crop random resizes images, and --data.kind is {recipe.data.kind}: `window` "
            "takes any part of a sample, `centre` the middle"
        )


def _check_video(recipe: Recipe) -> None:
    data = recipe.data
    _check_channels(recipe)
    for key, value in (("frames", data.frames), ("frame_stride", data.frame_stride)):
        if value < 1:
            raise ValueError(f"--data.{key} is {value}; --data.kind video takes at least 1")


CHECKS: dict[str, Callable[[Recipe], None]] = {
    "stacked": _check_stacked,
    "latents": _check_latents,
    "audio": _check_audio,
    "text": _check_text,
    "video": _check_video,
}
"""Of the kinds that are not just images."""
