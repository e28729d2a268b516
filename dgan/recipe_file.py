"""A recipe's form on disk: TOML, with the version of that form."""

import dataclasses
import json
import tomllib
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tomli_w

from dgan.config import Recipe, nearest

FORMAT = 1
"""Version of the recipe's form on disk; raised when an old file can no longer be read as it is."""

MAY_CHANGE = ("run", "parallel", "checkpoint", "divergence", "samples", "evaluation")
MAY_CHANGE_TOO = (
    "penalty.check",
    "penalty.keep_unsharded",
    "train.steps",
    "train.log_every",
    "train.kernels",
    "data.shards",
    "data.workers",
    "data.cache",
    "data.cache_gigabytes",
    "data.max_skipped",
)
"""What a resumed run may set anew: it does not alter the weights that a healthy run trains
towards."""


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML, with the version of its form."""
    return tomli_w.dumps({"format": FORMAT, **dataclasses.asdict(recipe)})


def from_toml(path: Path) -> Recipe:
    """Read a recipe that `to_toml` wrote, perhaps edited by hand.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not TOML, another format, an unknown key or a value of the wrong type.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no recipe at {path}")
    try:
        tree = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    version = tree.pop("format", None)
    if version != FORMAT:
        raise ValueError(
            f"{path} has recipe format {version}, this dgan reads format {FORMAT}: use the dgan "
            "that wrote it, or start from a recipe of this version (`dgan recipes`)"
        )
    return _build(Recipe, tree, str(path), "")


def settings(recipe: Recipe) -> dict[str, Any]:
    """Every value of a recipe, by dotted key."""
    return _flatten(dataclasses.asdict(recipe))


def default_settings() -> dict[str, Any]:
    """What `settings` are if nobody sets them; those that somebody must set are not there."""
    return _flatten(_defaults(Recipe))


def _defaults(kind: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            value: Any = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        elif dataclasses.is_dataclass(hints[field.name]):
            value = _defaults(hints[field.name])
        else:
            continue
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        tree[field.name] = value
    return tree


def fixed(recipe: Recipe) -> dict[str, Any]:
    """What a resumed run may not change, by dotted key, as it is in JSON."""
    flat = json.loads(json.dumps(_flatten(dataclasses.asdict(recipe))))
    return {
        key: value
        for key, value in flat.items()
        if key.split(".")[0] not in MAY_CHANGE and key not in MAY_CHANGE_TOO
    }


def differences(a: Recipe, b: Recipe) -> list[str]:
    """The dotted keys in which two recipes differ, of those a resumed run may not change."""
    ours, theirs = fixed(a), fixed(b)
    return sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key))


def foreign(checkpoint: Path, facts: dict[str, Any], recipe: Recipe) -> str | None:
    """Why a checkpoint with such facts is not of a run of `recipe`; None if it may be.

    Those from before facts had a recipe are taken. Only of a network's options does the lack of a
    key say something: others are of a version of dgan that has more of them.
    """
    ours, theirs = fixed(recipe), facts.get("recipe")
    if not theirs:
        return None
    keys = {key for key in ours | theirs if ".options." in key} | (ours.keys() & theirs.keys())
    if not (changed := sorted(key for key in keys if ours.get(key) != theirs.get(key))):
        return None
    return (
        f"{checkpoint} is of a run of another recipe; {', '.join(changed)} "
        f"{'differs' if len(changed) == 1 else 'differ'}: move it out of this run, or go on with "
        "the recipe that wrote it"
    )


def _build(kind: Any, value: Any, path: str, key: str) -> Any:
    """Turn TOML's `value` into `kind`, or say which key of which file does not fit."""
    where = f"{path}: {key or 'the recipe'}"
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a table, not {value!r}")
        hints = get_type_hints(kind)
        for name in value:
            if name not in hints:
                raise ValueError(
                    f"{path}: unknown key {_join(key, name)!r}; {nearest(name, list(hints))}"
                )
        known = {n: _build(hints[n], v, path, _join(key, n)) for n, v in value.items()}
        required = [
            f.name
            for f in dataclasses.fields(kind)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]
        if missing := [_join(key, name) for name in required if name not in known]:
            raise ValueError(f"{path}: missing {', '.join(missing)}")
        return kind(**known)  # type: ignore[reportCallIssue]
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            choices = ", ".join(map(str, get_args(kind)))
            raise ValueError(f"{where} is {value!r}; choose from {choices}")
        return value
    if get_origin(kind) is UnionType:  # one of something, or several
        one, several = get_args(kind)
        kind = several if isinstance(value, list) else one
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} is {value!r}; it must be a list")
        (element, _) = get_args(kind)
        return tuple(_build(element, v, path, f"{key}[{i}]") for i, v in enumerate(value))
    if get_origin(kind) is dict and isinstance(value, dict):
        return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{where} is {value!r}; it must be of type {kind.__name__}")
    return value


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = _join(prefix, name)
        flat |= _flatten(value, key) if isinstance(value, dict) else {key: value}
    return flat
