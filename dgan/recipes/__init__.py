"""Ready recipes: functions that return a complete configuration.

Each docstring says what the recipe costs, on what, and what score to expect. What is published was
not run by us unless it says so; where a recipe differs from the publication, it says in what.
"""

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

from dgan.config import Recipe, nearest
from dgan.recipe_file import from_toml
from dgan.recipes.audio import fsdd_wavegan
from dgan.recipes.classic import cifar10_sngan, cifar10_wgan_gp, imagenet128_biggan, lsun64_dcgan
from dgan.recipes.r3gan import (
    cifar10_r3gan,
    ffhq64_r3gan,
    ffhq256_r3gan,
    imagenet32_r3gan,
    imagenet64_r3gan,
)
from dgan.recipes.small import digits, digits_stylegan2, fashion_mnist, mnist, stacked_mnist
from dgan.recipes.stylegan2 import cifar10_stylegan2, cifar10_stylegan2_conditional
from dgan.recipes.text import characters_wgan_gp
from dgan.recipes.transformer import imagenet256_transformer, ten_billion
from dgan.recipes.translation import facades_cyclegan_64, facades_pix2pix, facades_pix2pix_128
from dgan.recipes.video import weizmann_video

RECIPES: dict[str, Callable[[], Recipe]] = {
    "digits": digits,
    "digits-stylegan2": digits_stylegan2,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "stacked-mnist": stacked_mnist,
    "cifar10-r3gan": cifar10_r3gan,
    "cifar10-stylegan2": cifar10_stylegan2,
    "cifar10-stylegan2-conditional": cifar10_stylegan2_conditional,
    "cifar10-sngan": cifar10_sngan,
    "cifar10-wgan-gp": cifar10_wgan_gp,
    "ffhq64-r3gan": ffhq64_r3gan,
    "ffhq256-r3gan": ffhq256_r3gan,
    "imagenet32-r3gan": imagenet32_r3gan,
    "imagenet64-r3gan": imagenet64_r3gan,
    "imagenet128-biggan": imagenet128_biggan,
    "imagenet256-transformer": imagenet256_transformer,
    "lsun64-dcgan": lsun64_dcgan,
    "10b": ten_billion,
    "characters-wgan-gp": characters_wgan_gp,
    "facades-pix2pix": facades_pix2pix,
    "facades-pix2pix-128": facades_pix2pix_128,
    "facades-cyclegan-64": facades_cyclegan_64,
    "fsdd-wavegan": fsdd_wavegan,
    "weizmann-video": weizmann_video,
}


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
            f"there is no recipe {name!r} (one of `dgan recipes`, an import path "
            f"mypackage.recipes:mine, or a run's recipe.toml); {nearest(name, list(RECIPES))}"
        )
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, TypeError) as error:  # TypeError: a relative path
        raise ValueError(f"the recipe {name!r} cannot be imported: {error}") from error
    recipe = make()
    if not isinstance(recipe, Recipe):
        raise ValueError(f"{name} returned {type(recipe).__name__}, not a dgan.config.Recipe")
    return recipe


def describe() -> dict[str, str]:
    """Each recipe's docstring."""
    return {name: inspect.getdoc(function) or "" for name, function in RECIPES.items()}
