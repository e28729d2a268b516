"""What benchmarks that train have in common: a budget, runs that are not made twice, curves."""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image, ImageDraw

from dgan.config import Recipe, Run
from dgan.run import metrics_of
from dgan.schedule import Cosine
from dgan.train import train

PROBE = 30
"""Steps that tell how fast a recipe is on this machine."""

COLOURS = ("#1b6ca8", "#c0392b", "#27ae60", "#8e44ad", "#d68910", "#16a085", "#7f8c8d", "#2c3e50")


def parser(description: str, out: str) -> argparse.ArgumentParser:
    """With the options that all of them have."""
    made = argparse.ArgumentParser(description=description)
    budget = made.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, help="of each run")
    budget.add_argument("--minutes", type=float, help="of training of each run, scores apart")
    made.add_argument("--out", type=Path, default=Path(out), help="folder of the runs")
    made.add_argument("--results", type=Path, help="folder of the results, if not the committed")
    return made


def with_budget(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    """`recipe` with the steps that it was given, its schedules over all of them.

    The steps of so many minutes are measured once and kept beside the runs: the same command again
    goes on with the same runs.
    """
    steps = options.steps or recipe.train.steps
    if options.minutes:
        path = options.out / f"{recipe.name}-{options.minutes:g}-minutes.json"
        if not path.exists():
            speed = images_per_second(recipe, options.out / f"probe-{recipe.name}")
            made = max(1, round(60 * options.minutes * speed / images_of_a_step(recipe)))
            path.write_text(json.dumps({"images_per_second": speed, "steps": made}) + "\n")
        steps = json.loads(path.read_text())["steps"]
    factor = steps / recipe.train.steps

    def stretched(schedule: Cosine) -> Cosine:
        return replace(schedule, kimg=schedule.kimg * factor)

    def player(of: Any) -> Any:
        return replace(of, learning_rate=stretched(of.learning_rate), beta2=stretched(of.beta2))

    return replace(
        recipe,
        generator=player(recipe.generator),
        discriminator=player(recipe.discriminator),
        penalty=replace(recipe.penalty, gamma=stretched(recipe.penalty.gamma)),
        augment=replace(recipe.augment, noise=stretched(recipe.augment.noise)),
        average=replace(recipe.average, half_life_kimg=stretched(recipe.average.half_life_kimg)),
        train=replace(recipe.train, steps=steps, log_every=max(1, steps // 100)),
    )


def images_of_a_step(recipe: Recipe) -> int:
    return recipe.train.batch_size * recipe.train.discriminator_updates


def images_per_second(recipe: Recipe, folder: Path) -> float:
    """The median speed of some steps in `folder`, which is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    train(
        replace(
            recipe,
            train=replace(recipe.train, steps=PROBE, log_every=PROBE // 6),
            checkpoint=replace(recipe.checkpoint, every=PROBE, keep_best=0),
            evaluation=replace(recipe.evaluation, every=-1),
            run=Run(dir=str(folder)),
        )
    )
    speeds = [
        line["images_per_second"] for line in metrics_of(folder) if "images_per_second" in line
    ]
    shutil.rmtree(folder)
    return median(speeds[1:])


def trained(recipe: Recipe, out: Path) -> Path:
    """The directory of a finished run of `recipe`, which goes on where it was left."""
    directory = out / recipe.name
    stopped_by = train(replace(recipe, run=Run(dir=str(directory))))
    if stopped_by:
        raise SystemExit(f"{recipe.name} was stopped by {stopped_by}: the same command goes on")
    return directory


def curve(directory: Path, *keys: str) -> list[tuple[float, float]]:
    """Thousand images, and the first of `keys` minus the second, if there is one."""
    lines = [line for line in metrics_of(directory) if all(key in line for key in keys)]
    signs = (1, -1)
    return [
        (line["kimg"], sum(sign * line[key] for sign, key in zip(signs, keys))) for line in lines
    ]


def draw(path: Path, title: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Curves over thousand images, on a linear scale from the smallest to the largest value."""
    width, height, left, top, bottom = 900, 520, 80, 40, 50
    points = [point for line in curves.values() for point in line]
    if not points:
        return
    most = max(x for x, _ in points) or 1.0
    values = sorted(y for _, y in points)
    # What a few early values are beyond would leave no room for the others.
    low, high = values[0], values[round(0.98 * (len(values) - 1))]
    span = (high - low) or 1.0
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + x / most * (width - left - 20)
        up = (min(y, high) - low) / span * (height - top - bottom)
        return across, height - bottom - up

    for part in range(5):
        value = low + part / 4 * span
        pen.line([place(0, value), place(most, value)], fill="#dddddd")
        pen.text((6, place(0, value)[1] - 6), f"{value:.4g}", fill="#333333")
        across = place(most * part / 4, low)[0]
        pen.text((across - 10, height - bottom + 8), f"{most * part / 4:.4g}", fill="#333333")
    pen.text((left, 10), f"{title}, over thousand images", fill="#000000")
    for index, (name, line) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        pen.line([place(*point) for point in line], fill=colour, width=2)
        pen.text((width - 220, top + 14 * index), name, fill=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
