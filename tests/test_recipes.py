"""Recipes by name, import path, file and directory; and that each one can be built."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny

from dgan.build_networks import (
    build_discriminator,
    build_network,
    network_arguments,
)
from dgan.config import Judges
from dgan.metrics import ClassifierFeatures
from dgan.metrics.classifier import ClassifierSpec, build_classifier
from dgan.networks import FAMILIES
from dgan.networks.judges import Shadowed
from dgan.networks.layers import BiasAct
from dgan.recipe_file import to_toml
from dgan.recipes import RECIPES, describe, find

MODULE = """
from tiny import tiny

def mine():
    return tiny("x.tar", "", train__seed=7)

def number():
    return 7

def broken():
    return tiny.no_such_attribute
"""


@pytest.fixture
def _user_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes_of_a_user.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("name", RECIPES)
def test_ready_recipes(name: str) -> None:
    recipe = find(name)
    assert recipe == RECIPES[name]()
    assert recipe.name == name
    assert describe()[name]
    with torch.device("meta"):
        for role in ("generator", "discriminator"):
            cls = FAMILIES[getattr(recipe, role).network][role]
            assert list(cls(**network_arguments(recipe, role)).parameters())


def test_descriptions_begin_with_a_sentence() -> None:
    assert describe().keys() == RECIPES.keys()
    for text in describe().values():
        assert text.split("\n\n")[0].rstrip().endswith(".")
        assert all(f"\n{part}: " in text for part in ("Data", "Cost", "Score"))


@pytest.mark.usefixtures("_user_recipes")
def test_a_recipe_by_import_path() -> None:
    assert find("recipes_of_a_user:mine") == tiny("x.tar", "", train__seed=7)


def test_a_saved_recipe_and_its_run(tmp_path: Path) -> None:
    recipe = tiny("x.tar", "", train__seed=9)
    (tmp_path / "recipe.toml").write_text(to_toml(recipe))
    (tmp_path / "other.toml").write_text(to_toml(tiny("x.tar", "", train__seed=10)))
    assert find(str(tmp_path)) == find(str(tmp_path / "recipe.toml")) == recipe
    assert find(str(tmp_path / "other.toml")).train.seed == 10


def test_a_name_comes_before_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find("digits") == RECIPES["digits"]()


@pytest.mark.usefixtures("_user_recipes")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digts", r"no recipe 'digts'.*did you mean 'digits'\?"),
        ("qqq", r"no recipe 'qqq'.*choose from .*digits, .*mnist"),
        ("no_such_module:mine", r"'no_such_module:mine' cannot be imported: No module named"),
        ("recipes_of_a_user:mien", r"cannot be imported: .*no attribute 'mien'"),
        ("./recipes.py:mine", r"'./recipes.py:mine' cannot be imported"),
        ("recipes_of_a_user:number", r"recipes_of_a_user:number returned int, not a .*Recipe"),
    ],
)
def test_unknown_recipes_are_explained(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find(name)


@pytest.mark.usefixtures("_user_recipes")
def test_a_recipes_own_error_is_not_disguised() -> None:
    with pytest.raises(AttributeError, match="no_such_attribute"):
        find("recipes_of_a_user:broken")


def test_missing_files_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "recipe.toml"):
        with pytest.raises(FileNotFoundError, match=r"no recipe at .*recipe.toml"):
            find(str(path))


def test_kernels_can_be_turned_off() -> None:
    """Every layer with a kernel is told; the numbers are those of the kernels' own reference."""
    recipe = tiny("", "", "dcgan")
    plain = replace(recipe, train=replace(recipe.train, kernels=False))
    for made, backend in ((recipe, None), (plain, "reference")):
        layers = [
            m for m in build_network(made, "discriminator").modules() if isinstance(m, BiasAct)
        ]
        assert layers
        assert {layer.backend for layer in layers} == {backend}


def test_judges_stand_beside_the_discriminator(tmp_path: Path) -> None:
    """One for half the resolution, one of features, and the shadow of all in the other's phase."""
    spec = ClassifierSpec(
        num_classes=10, channels=1, height=16, width=16, dimension=9, accuracy=1.0, held_out=1,
        trained_on=1, seed=0,
    )  # fmt: skip
    path = tmp_path / "classifier.safetensors"
    ClassifierFeatures(build_classifier(10, 1, 16, 16, 9, 0), spec).save(path)
    shape = {"widths": (7, 6, 5), "blocks": (1, 1, 1), "groups": (1, 1, 1)}
    recipe = tiny("", "", data__resolution=16, discriminator__options=shape)
    panel = Judges(scales=2, extractor=str(path), shadow_kimg=0.016)
    shadowed = build_discriminator(replace(recipe, judges=panel))
    assert isinstance(shadowed, Shadowed)
    assert shadowed.decay == 0.5
    images, labels = torch.randn(3, 1, 16, 16), torch.tensor([1, 0, 9])
    assert shadowed(images, labels).shape == (3, 3)
    shadowed.judge.requires_grad_(False)
    logits = shadowed(images, labels)
    assert logits.shape == (3, 2, 3)
    assert shadowed.judge.judges[1].embedding.weight.shape == (10, 7)  # of 4×4 and 8×8 alone
    plain = build_discriminator(recipe)
    torch.testing.assert_close(logits[:, 0, 0], plain(images, labels))
    halved = torch.nn.functional.avg_pool2d(images, 2)
    torch.testing.assert_close(logits[:, 0, 1], shadowed.judge.judges[1](halved, labels))


def test_scales_below_the_smallest_resolution_are_refused() -> None:
    with pytest.raises(ValueError, match=r"--judges\.scales 3: .*cannot make resolution 2"):
        build_discriminator(tiny("", "", judges=Judges(scales=3)))
