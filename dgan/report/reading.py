"""What the files of a run's directory tell."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dgan.config import Recipe
from dgan.lock import is_held
from dgan.recipe_file import from_toml
from dgan.run import lines_of, metrics_of
from dgan.scores import SCORES, Score
from dgan.stored import candidates

OF_POINTS = {
    "high_quality": Score("higher", "points within 3σ of a mode"),
    "distance": Score("lower", "mean distance to the nearest centre"),
}
"""Scores of toys alone."""

KNOWN = {**SCORES, **OF_POINTS}

LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (.*)")
PROGRESS = re.compile(r"step \d+(/\d+)?  ")
STEP = re.compile(r"\bstep[ -]0*(\d+)")

KINDS = {
    "rolled back": "alarm",
    "warning:": "warning",
    "going on from": "resume",
    "skipped sample": "skip",
}
"""Of events, by what their text holds; others are notes."""


@dataclass(frozen=True)
class Event:
    """Something of a run's log besides its progress."""

    time: str
    kind: str
    text: str

    @property
    def step(self) -> int | None:
        """The step that it is about, if it says so."""
        found = STEP.findall(self.text)
        return int(found[-1 if self.kind == "resume" else 0]) if found else None


@dataclass(frozen=True)
class Account:
    """A run, as its directory has it at this moment.

    Attributes:
        recipe_text: of `recipe.toml`.
        records: of `metrics.jsonl`.
        starts: of `environment.jsonl`, a line for each start.
        events: of `log.txt`, but for the lines that report progress.
        times: of the first and the last line of `log.txt`; empty if it has none.
        grids: step and file of each picture of samples, in order.
        evaluations: what `dgan evaluate` wrote afterwards, by file.
        checkpoints: the steps of those that are kept.
        is_running: as far as the heartbeat tells.
    """

    directory: Path
    recipe: Recipe
    recipe_text: str
    records: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    events: list[Event]
    times: tuple[str, ...]
    grids: list[tuple[int, Path]]
    evaluations: dict[str, dict[str, Any]]
    checkpoints: list[int]
    is_running: bool

    @cached_property
    def trained(self) -> list[dict[str, Any]]:
        """The records of training steps."""
        return [record for record in self.records if "images_per_second" in record]

    @cached_property
    def scored(self) -> list[dict[str, Any]]:
        """The records of evaluations."""
        return [record for record in self.records if KNOWN.keys() & record.keys()]

    @property
    def step(self) -> int:
        """The last one that is recorded."""
        return max((record["step"] for record in self.records), default=0)

    @property
    def state(self) -> str:
        """`running`, `done`, `stopped` or `empty`."""
        if self.is_running:
            return "running"
        if self.step >= self.recipe.train.steps:
            return "done"
        return "stopped" if self.records else "empty"


def read(directory: Path) -> Account:
    """Everything there is; what a run has not written yet is empty.

    Raises:
        FileNotFoundError: there is no recipe, so no run.
        ValueError: the recipe is damaged, or of another version.
    """
    path = directory / "recipe.toml"
    recipe = from_toml(path)
    log = directory / "log.txt"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    times = [match[1] for line in lines if (match := LINE.match(line))]
    grids = sorted((directory / "samples").glob("step-*.png"))
    evaluations = sorted(directory.glob("evaluation-*.json"))
    return Account(
        directory=directory,
        recipe=recipe,
        recipe_text=path.read_text(),
        records=metrics_of(directory),
        starts=lines_of(directory / "environment.jsonl"),
        events=events_of(lines),
        times=(times[0], times[-1]) if times else (),
        grids=[(int(path.stem[5:]), path) for path in grids],
        evaluations={path.name: json.loads(path.read_text()) for path in evaluations},
        checkpoints=[int(path.name[5:]) for path in candidates(directory / "checkpoints")],
        is_running=is_held(directory),
    )


def events_of(lines: list[str]) -> list[Event]:
    """The messages of a log that are not progress; a line without a time belongs to the last."""
    messages: list[list[str]] = []
    for line in lines:
        if match := LINE.match(line):
            messages.append([match[1], match[2]])
        elif messages:
            messages[-1][1] += "\n" + line
    return [
        Event(time, next((kind for words, kind in KINDS.items() if words in text), "note"), text)
        for time, text in messages
        if not PROGRESS.match(text)
    ]
