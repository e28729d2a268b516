"""What is for text is refused of images, and what is for images of text."""

from dgan.config import Recipe
from dgan.metrics.ngrams import LARGEST_ALPHABET


def check_text(recipe: Recipe) -> None:
    """Raise `ValueError` for what a recipe of text, or one of something else, cannot have."""
    data = recipe.data
    if data.kind != "text":
        if data.alphabet:
            raise ValueError(f"--data.alphabet is for --data.kind text, not {data.kind}")
        return
    of_images = {
        "data.flip": data.flip,
        "augment.kind": recipe.augment.kind != "none",
        "regularizers.bcr": recipe.regularizers.bcr,
        "judges.scales": recipe.judges.scales > 1,
        "judges.extractor": recipe.judges.extractor,
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
