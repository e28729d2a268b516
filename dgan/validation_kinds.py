"""Of recipes of audio, text and clips: what each must say, and what is of another kind of data."""

from typing import Any

from dgan.config import Data, Recipe
from dgan.metrics.ngrams import LARGEST_ALPHABET


def _of_images(recipe: Recipe) -> dict[str, Any]:
    """Keys that mean nothing to samples that are no images, and whether they are set."""
    return {
        "augment.kind": recipe.augment.kind != "none",
        "regularizers.bcr": recipe.regularizers.bcr,
        "judges.scales": recipe.judges.scales > 1,
        "judges.extractor": recipe.judges.extractor,
    }


def check_audio(recipe: Recipe) -> None:
    """Raise `ValueError` for what a recipe of audio, or one of something else, cannot have."""
    data = recipe.data
    if data.kind != "audio":
        _refuse_of_audio(data)
        return
    of_images = {"data.flip": data.flip, **_of_images(recipe)}
    for key in (key for key, is_set in of_images.items() if is_set):
        raise ValueError(f"--{key} is for images, and --data.kind is audio: leave it out")
    if data.crop == "random":
        raise ValueError(
            "--data.crop random resizes images, and --data.kind is audio: `window` takes any part "
            "of a clip, `centre` the middle"
        )
    if data.rate < 1:
        raise ValueError(
            f"--data.rate is {data.rate}; --data.kind audio needs the samples a second of its "
            "clips, such as 16000: `dgan data verify SHARDS` says what they have"
        )
    if data.channels < 1:
        raise ValueError(f"--data.channels is {data.channels}; it must be at least 1")
    if not 0 <= data.peak <= 1:
        raise ValueError(f"--data.peak is {data.peak}; it must be from 0 (as stored) to 1")


def _refuse_of_audio(data: Data) -> None:
    for key in ("rate", "peak"):
        if value := getattr(data, key):
            raise ValueError(f"--data.{key} {value} is for --data.kind audio, not {data.kind}")


def check_text(recipe: Recipe) -> None:
    """Raise `ValueError` for what a recipe of text, or one of something else, cannot have."""
    data = recipe.data
    if data.kind != "text":
        if data.alphabet:
            raise ValueError(f"--data.alphabet is for --data.kind text, not {data.kind}")
        return
    of_images = {
        "data.flip": data.flip,
        **_of_images(recipe),
        "evaluation.metrics": recipe.evaluation.metrics != ("fid",),
        "evaluation.features": recipe.evaluation.features != "auto",
        "evaluation.real_samples": recipe.evaluation.real_samples,
    }
    for key in (key for key, is_set in of_images.items() if is_set):
        raise ValueError(f"--{key} is for images, and --data.kind is text: leave it out")
    if data.crop == "random":
        raise ValueError(
            "--data.crop random resizes images, and --data.kind is text: `window` takes any part "
            "of a text, `centre` the middle"
        )
    characters = len(data.alphabet)
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


def check_video(recipe: Recipe) -> None:
    """Raise `ValueError` for keys that clips do not know, or that only clips know."""
    data = recipe.data
    if data.kind != "video":
        for key, value, default in (
            ("frames", data.frames, 0),
            ("frame_stride", data.frame_stride, 1),
        ):
            if value != default:
                raise ValueError(
                    f"--data.{key} {value} is for --data.kind video, not {data.kind}: leave it at "
                    f"{default}"
                )
        return
    for key, value in (("frames", data.frames), ("frame_stride", data.frame_stride)):
        if value < 1:
            raise ValueError(f"--data.{key} is {value}; --data.kind video takes at least 1")
    of_images = {"data.crop": data.crop != "none", **_of_images(recipe)}
    for key in (key for key, is_set in of_images.items() if is_set):
        raise ValueError(f"--{key} is of images, and --data.kind is video: leave it out")
