"""What is for audio is refused of images, and what is for images of audio."""

from dgan.config import Data, Recipe


def check_audio(recipe: Recipe) -> None:
    """Raise `ValueError` for what a recipe of audio, or one of something else, cannot have."""
    data = recipe.data
    if data.kind != "audio":
        _refuse_of_audio(data)
        return
    of_images = {
        "data.flip": data.flip,
        "augment.kind": recipe.augment.kind != "none",
        "regularizers.bcr": recipe.regularizers.bcr,
        "judges.scales": recipe.judges.scales > 1,
        "judges.extractor": recipe.judges.extractor,
    }
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
