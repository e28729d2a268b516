"""`dgan plan`: its flags, and how a plan is printed."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dgan.config import Recipe

FLAGS = {"--nodes": "1", "--gpus-per-node": "8", "--gpu": "h100", "--json": ""}
"""With their defaults; the other flags are a recipe's keys."""


def take_flags(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The command's own flags, and what is left."""
    flags, left, words = dict(FLAGS), list[str](), list(arguments)
    while words:
        flag, separator, value = words.pop(0).partition("=")
        if flag not in flags:
            left.append(flag + separator + value)
            continue
        if not separator:
            if not words:
                raise ValueError(f"{flag} needs a value")
            value = words.pop(0)
        flags[flag] = value
    return flags, left


def show_plan(recipe: Recipe, flags: dict[str, str]) -> None:
    """Make the plan, print it, and write it as JSON where that is asked for."""
    from dgan.planned import plan

    counts = [_count(flag, flags[flag]) for flag in ("--nodes", "--gpus-per-node")]
    made = plan(recipe, nodes=counts[0], gpus_per_node=counts[1], gpu=flags["--gpu"])
    console = Console(highlight=False)
    for line in made.warnings:
        console.print(f"warning: {line}", markup=False)
    job = made.job
    console.print(
        f"{recipe.name} on {job.nodes} × {job.gpus_per_node} {made.gpu}: {job.batch_size} samples an "
        f"update, {job.rows} on each GPU at a time, in {'bfloat16' if job.bfloat16 else 'float32'}",
        markup=False,
    )
    for player, count in made.parameters.items():
        flops = made.forward_flops[player]
        console.print(f"{player:14} {count:,} parameters, {_short(flops)}FLOP forward a sample")
    console.print(_strategies(made))
    console.print(_traffic(made))
    console.print(_scaling(made))
    for line in _assumptions():
        console.print(f"assumed: {line}", markup=False)
    if flags["--json"]:
        path = Path(flags["--json"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made.as_json(), indent=1) + "\n")
        console.print(f"written to {path}", markup=False)
