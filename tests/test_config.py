"""Recipes on disk and back, and what is said about the ones that cannot be."""

import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from tiny import tiny

from dgan.config import Recipe
from dgan.recipe_file import (
    FORMAT,
    MAY_CHANGE,
    MAY_CHANGE_TOO,
    differences,
    from_toml,
    to_toml,
)
from dgan.recipes import RECIPES
from dgan.schedule import Cosine
from dgan.validation import validate


def saved(path: Path, recipe: Recipe) -> Path:
    path.write_text(to_toml(recipe))
    return path


@pytest.fixture
def recipe() -> Recipe:
    return tiny("data/*.tar", "runs/tiny")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_the_disk(name: str, tmp_path: Path) -> None:
    made = RECIPES[name]()
    validate(made)
    read = from_toml(saved(tmp_path / "recipe.toml", made))
    assert read == made
    assert to_toml(read) == to_toml(made)


def test_every_kind_of_value_survives_the_disk(tmp_path: Path, recipe: Recipe) -> None:
    options = {"widths": (3, 4), "act": 'quoted "γ"', "normalize": False, "slope": 0.5, "depth": 2}
    odd = replace(
        recipe,
        generator=replace(recipe.generator, options=options, epsilon=1e-300),
        train=replace(recipe.train, seed=2**40, deterministic=True),
    )
    read = from_toml(saved(tmp_path / "recipe.toml", odd))
    assert read == odd
    assert isinstance(read.generator.options["widths"], tuple)
    assert isinstance(read.generator.learning_rate, Cosine)


def test_a_mixture_survives_the_disk(tmp_path: Path) -> None:
    mixed = tiny("", "", data__shards=("a-*.tar", "b.tar"), data__weights=(3, 0.5))
    validate(mixed)
    path = saved(tmp_path / "recipe.toml", mixed)
    read = from_toml(path)
    assert read == mixed
    assert tomllib.loads(path.read_text())["data"]["weights"] == [3, 0.5]
    assert differences(read, replace(read, data=replace(read.data, weights=()))) == ["data.weights"]


@pytest.mark.parametrize(
    ("shards", "weights", "message"),
    [
        ("a.tar", (3, 1), r"--data.weights is 3 1, but --data.shards has 1 entries"),
        (("a.tar", "b.tar"), (3,), r"--data.weights is 3, but --data.shards has 2 entries"),
        (("a.tar", "b.tar"), (3, 0), r"--data.weights is 3 0; .*positive numbers"),
        (("a.tar", "b.tar"), (3, -1), r"positive numbers"),
        (("a.tar", "b.tar"), (3, float("inf")), r"positive numbers"),
    ],
)
def test_weights_that_do_not_fit(shards: Any, weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(tiny("", "", data__shards=shards, data__weights=weights))


def test_the_form_carries_its_version(recipe: Recipe) -> None:
    assert tomllib.loads(to_toml(recipe))["format"] == FORMAT


def test_an_integer_will_do_for_a_float(tmp_path: Path, recipe: Recipe) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(recipe).replace("beta1 = 0.0", "beta1 = 0"))
    read = from_toml(path)
    assert read == recipe
    assert isinstance(read.generator.beta1, float)


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'format = {FORMAT}\nname = "short"\ndata = {{shards = "x.tar", resolution = 8}}\n'
        'generator = {network = "mlp"}\ndiscriminator = {network = "mlp"}\n'
        "train = {steps = 5, batch_size = 4}\n"
    )
    read = from_toml(path)
    assert (read.data.channels, read.task.loss, read.train.accumulation) == (3, "relativistic", 1)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.batch_sise", 4, r"unknown key 'train.batch_sise'; did you mean 'batch_size'\?"),
        ("penatly", {}, r"unknown key 'penatly'; did you mean 'penalty'\?"),
        ("train.zzz", 4, r"unknown key 'train.zzz'; choose from accumulation, batch_size, "),
        ("train.steps", "4", r"train.steps is '4'; it must be of type int"),
        ("train.steps", 4.0, r"train.steps is 4.0; it must be of type int"),
        ("train.steps", True, r"train.steps is True; it must be of type int"),
        ("data.shards", 3, r"data.shards is 3; it must be of type str"),
        ("data.shards", ["a", 3], r"data.shards\[1\] is 3; it must be of type str"),
        ("data.weights", 3, r"data.weights is 3; it must be a list"),
        ("data.weights", [3, "a"], r"data.weights\[1\] is 'a'; it must be of type float"),
        ("data.flip", 1, r"data.flip is 1; it must be of type bool"),
        ("penalty.gamma.kimg", True, r"penalty.gamma.kimg is True; it must be of type float"),
        ("generator.network", 3, r"generator.network is 3; it must be of type str"),
        ("generator.options", 3, r"generator.options is 3; it must be of type dict"),
        ("run", 3, r"run must be a table, not 3"),
        (
            "task.loss",
            "hinges",
            r"task.loss is 'hinges'; choose from minimax, .*hinge, wasserstein, ",
        ),
        ("parallel.strategy", 1, r"parallel.strategy is 1; choose from single, ddp, fsdp"),
        ("train.steps", None, r"missing train.steps$"),
        ("train", {"seed": 3}, r"missing train.steps, train.batch_size$"),
        ("format", 99, r"recipe format 99, this dgan reads format 1: .*`dgan recipes`"),
        ("format", None, r"recipe format None"),
    ],
)
def test_a_wrong_file_is_explained(
    key: str, value: Any, message: str, tmp_path: Path, recipe: Recipe
) -> None:
    tree = tomllib.loads(to_toml(recipe))
    *sections, name = key.split(".")
    table = tree
    for section in sections:
        table = table[section]
    if value is None:
        del table[name]
    else:
        table[name] = value
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps(tree))
    with pytest.raises(ValueError, match=message) as caught:
        from_toml(path)
    assert str(path) in str(caught.value)


def test_what_is_not_toml_is_located(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("format = 1\nsteps = = 4\n")
    with pytest.raises(ValueError, match=r"recipe.toml is not valid TOML: .*line 2"):
        from_toml(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no recipe at .*nothing.toml"):
        from_toml(tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    ("key", "value", "least"),
    [
        ("train__steps", 0, 1),
        ("train__batch_size", 0, 1),
        ("train__accumulation", 0, 1),
        ("train__discriminator_updates", 0, 1),
        ("train__generator_updates", 0, 1),
        ("train__log_every", 0, 1),
        ("train__seed", -1, 0),
        ("data__resolution", 0, 1),
        ("data__classes", -1, 0),
        ("data__workers", -1, 0),
        ("checkpoint__every", 0, 1),
        ("checkpoint__keep", 0, 1),
        ("samples__every", 0, 1),
        ("samples__count", 0, 1),
        ("evaluation__every", -2, -1),
        ("evaluation__samples", 1, 2),
        ("evaluation__real_samples", -1, 0),
    ],
)
def test_values_below_the_least_are_refused(key: str, value: int, least: int) -> None:
    option = key.replace("__", ".")
    with pytest.raises(ValueError, match=rf"--{option} is {value}; it must be at least {least}$"):
        validate(tiny("x.tar", "", **{key: value}))
    validate(tiny("x.tar", "", **{key: least}))


def test_channels_are_grey_or_colour(recipe: Recipe) -> None:
    validate(tiny("x.tar", "", data__channels=3))
    with pytest.raises(ValueError, match=r"--data.channels is 4; it must be 1 or 3"):
        validate(tiny("x.tar", "", data__channels=4))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"train__seed": 1}, ["train.seed"]),
        ({"task__loss": "hinge", "train__batch_size": 8}, ["task.loss", "train.batch_size"]),
        ({"penalty__gamma": Cosine(start=2.0, end=9.0, kimg=0.1)}, ["penalty.gamma.end"]),
        ({"name": "other"}, ["name"]),
        # What does not alter the weights that the recipe trains towards.
        ({"train__steps": 9, "train__log_every": 7, "data__shards": "y", "data__workers": 3}, []),
        ({"run__dir": "elsewhere", "parallel__strategy": "ddp", "checkpoint__every": 9}, []),
        ({"samples__every": 9, "evaluation__every": 9}, []),
    ],
)
def test_differences_that_matter(
    changes: dict[str, Any], expected: list[str], recipe: Recipe
) -> None:
    name = changes.get("name")
    changed = replace(recipe, name=name) if name else tiny("data/*.tar", "runs/tiny", **changes)
    assert differences(recipe, changed) == expected
    assert differences(changed, recipe) == expected


def test_options_of_a_network_that_differ_are_named(recipe: Recipe) -> None:
    options = {**recipe.generator.options, "z_dim": 7, "expansion": 3}
    changed = replace(recipe, generator=replace(recipe.generator, options=options))
    expected = ["generator.options.expansion", "generator.options.z_dim"]
    assert differences(recipe, changed) == differences(changed, recipe) == expected


def test_what_may_change_exists(recipe: Recipe) -> None:
    """A renamed section would silently refuse to be changed."""
    assert set(MAY_CHANGE) <= {field.name for field in fields(recipe)}
    for key in MAY_CHANGE_TOO:
        section, name = key.split(".")
        assert hasattr(getattr(recipe, section), name)


def test_the_directory_of_a_run(recipe: Recipe) -> None:
    assert recipe.directory == Path("runs/tiny")
    assert replace(recipe, run=replace(recipe.run, dir="")).directory == Path("runs/tiny")
    assert replace(recipe, run=replace(recipe.run, dir="/a/b")).directory == Path("/a/b")


@pytest.mark.parametrize(
    ("strategy", "key", "value", "instead"),
    [
        ("ddp", "copies", 2, "it is for fsdp"),
        ("deepspeed", "reshard_after_forward", False, "it is for fsdp"),
        ("fsdp", "zero_stage", 2, "it is for deepspeed"),
        ("single", "offload", True, "it is for fsdp and deepspeed"),
    ],
)
def test_options_of_another_strategy_are_errors(
    recipe: Recipe, strategy: str, key: str, value: Any, instead: str
) -> None:
    parallel = replace(recipe.parallel, strategy=strategy, **{key: value})
    with pytest.raises(ValueError, match=f"--parallel.{key} .*--parallel.strategy.*{instead}"):
        validate(replace(recipe, parallel=parallel))
