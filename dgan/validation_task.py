"""Keys that the chosen task or kind of data would ignore are refused, as is what does not fit."""

from dataclasses import fields
from typing import Any

from dgan.build_tasks import TASKS
from dgan.config import Augment, Balance, Judges, Recipe, Regularizers, Task, Translation, nearest

KINDS = {
    "synthesis": ("images", "stacked", "latents", "video", "audio", "text", "points"),
    "paired": ("pairs",),
    "unpaired": ("unpaired",),
}
"""Of data, that a task is for."""

OF_TASK = {
    "l1": ("paired",),
    "cycle": ("unpaired",),
    "identity": ("unpaired",),
    "history": ("unpaired",),
    "adversarial": ("paired", "unpaired"),
    "discriminator": ("paired", "unpaired"),
}
"""Which tasks an option of `Translation` is for."""


def check_task(recipe: Recipe) -> None:
    """Raise `ValueError` for what the recipe's task, or its kind of data, does not know."""
    task, data = recipe.task, recipe.data
    if task.name not in TASKS and ":" not in task.name:
        raise ValueError(
            f"--task.name {task.name!r} is no task; {nearest(task.name, list(TASKS))}, or name a "
            "class by its import path, mypackage.tasks:MyTask"
        )
    kinds = KINDS.get(task.name, (data.kind,))
    if data.kind not in kinds:
        raise ValueError(
            f"--task.name {task.name} is for --data.kind {' or '.join(kinds)}, not {data.kind}"
        )
    if task.name in TASKS and task.options:
        raise ValueError(f"--task.options are for a task of one's own, and this is {task.name}")
    for key, default in _changed(recipe.translation, Translation()).items():
        value = getattr(recipe.translation, key)
        if task.name not in OF_TASK[key]:
            raise ValueError(
                f"--translation.{key} {value} means nothing to --task.name {task.name}: it is for "
                f"{' and '.join(OF_TASK[key])}; leave it at {default}"
            )
        if value < 0:
            raise ValueError(f"--translation.{key} is {value}; it must be at least 0")
    if task.name != "synthesis":
        _refuse_of_synthesis(recipe)
    _check_images(recipe)


def _refuse_of_synthesis(recipe: Recipe) -> None:
    task = recipe.task
    given = {
        **_keys("task", recipe.task, Task(name=task.name, loss=task.loss), "generator latents"),
        **_keys("regularizers", recipe.regularizers, Regularizers(clip=recipe.regularizers.clip)),
        **_keys("augment", recipe.augment, Augment()),
    }
    own = task.name not in TASKS
    given |= _keys("balance", recipe.balance, Balance()) if own else {}
    given |= {} if own else _keys("judges", recipe.judges, Judges())
    for key, default in given.items():
        raise ValueError(
            f"--{key} means nothing to --task.name {task.name}: it is for others; leave it at "
            f"{default}"
        )
    gamma = recipe.penalty.gamma
    if task.name == "unpaired" and (gamma.start or gamma.end):
        raise ValueError(
            "--task.name unpaired takes no gradient penalty: set --penalty.gamma.start 0 and "
            "--penalty.gamma.end 0"
        )


def _check_images(recipe: Recipe) -> None:
    data = recipe.data
    if data.resize and (data.crop != "random" or data.resize < data.resolution):
        raise ValueError(
            f"--data.resize {data.resize} is for --data.crop random, to at least "
            f"--data.resolution {data.resolution}, which is cut out of it; crop is {data.crop}"
        )


def _changed(section: Any, default: Any) -> dict[str, Any]:
    """The keys that are not at their defaults, with these."""
    names = [field.name for field in fields(section)]
    pairs = {name: (getattr(section, name), getattr(default, name)) for name in names}
    return {name: before for name, (now, before) in pairs.items() if now != before}


def _keys(name: str, section: Any, default: Any, only: str = "") -> dict[str, Any]:
    wanted = only.split()
    changed = _changed(section, default).items()
    return {f"{name}.{key}": before for key, before in changed if not wanted or key in wanted}
