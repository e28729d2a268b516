"""Ready recipes: functions that return a complete configuration.

Each docstring says what the recipe costs, on what, and what score to expect.
"""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dgan.config import (
    Average,
    Checkpoint,
    Data,
    Evaluation,
    Penalty,
    Player,
    Recipe,
    Samples,
    Train,
    from_toml,
    nearest,
)
from dgan.schedule import Cosine


def digits() -> Recipe:
    """Handwritten digits at 8×8, a small class-conditional R3GAN.

    Data: `dgan data pack digits data/digits` (1,797 images that come with scikit-learn).
    """
    shape = {"widths": (96, 64), "blocks": (1, 1), "groups": (12, 8)}
    length = 1200 * 64 / 1000
    player = Player(
        network="r3gan",
        options=shape,
        learning_rate=Cosine(start=1e-3, end=1e-4, kimg=length),
        beta2=Cosine(start=0.9, end=0.99, kimg=length),
    )
    return Recipe(
        name="digits",
        data=Data(shards="data/digits/train-*.tar", resolution=8, channels=1, classes=10),
        generator=replace(player, options={"z_dim": 32, **shape}),
        discriminator=player,
        train=Train(steps=1200, batch_size=64, log_every=50),
        penalty=Penalty(gamma=Cosine(start=1.0, end=0.1, kimg=length)),
        average=Average(half_life_kimg=Cosine(start=0.0, end=5.0, kimg=length)),
        checkpoint=Checkpoint(every=400),
        samples=Samples(every=200, count=100),
        evaluation=Evaluation(samples=2000),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {recipe.__name__: recipe for recipe in (digits,)}


def find(name: str) -> Recipe:
    """The recipe that `name` means: a name, an import path, a `recipe.toml` or a run's directory.

    Raises:
        ValueError: there is no such recipe; FileNotFoundError: no such file.
    """
    if name in RECIPES:
        return RECIPES[name]()
    path = Path(name)
    if path.suffix == ".toml" or path.is_dir():
        return from_toml(path / "recipe.toml" if path.is_dir() else path)
    module, separator, function = name.partition(":")
    if not separator:
        raise ValueError(
            f"there is no recipe {name!r}; {nearest(name, list(RECIPES))} A recipe is one of "
            "`dgan recipes`, an import path mypackage.recipes:mine, or a run's recipe.toml"
        )
    try:
        recipe = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the recipe {name!r} cannot be imported: {error}") from error
    if not isinstance(recipe, Recipe):
        raise ValueError(f"{name} returned {type(recipe).__name__}, not a dgan.config.Recipe")
    return recipe


def describe() -> dict[str, str]:
    """Each recipe's docstring."""
    return {name: inspect.getdoc(function) or "" for name, function in RECIPES.items()}
