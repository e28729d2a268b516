"""`dgan plan`: its flags, and how a plan is printed."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dgan.config import Recipe
from dgan.planner import ASSUMPTIONS, Plan, Row, Traffic, merged

GIB = 2**30
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
    if not console.is_terminal:  # else as wide as a page of 80 letters, into which no table fits
        console.width = 180
    for line in made.warnings:
        console.print(f"warning: {line}", markup=False)
    job = made.job
    precision = "bfloat16" if job.bfloat16 else "float32"
    console.print(
        f"{recipe.name} on {job.nodes} × {job.gpus_per_node} {made.gpu}: {job.batch_size} samples "
        f"an update, {job.rows} on each GPU at a time, in {precision}",
        markup=False,
    )
    for player, count in made.parameters.items():
        flops = made.forward_flops[player]
        console.print(f"{player:14} {count:,} parameters, {_short(flops)}FLOP forward a sample")
    console.print(_strategies(made))
    console.print(_traffic(made))
    console.print(_scaling(made))
    for line in ASSUMPTIONS:
        console.print(f"assumed: {line}", markup=False)
    if flags["--json"]:
        path = Path(flags["--json"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made.as_json(), indent=1) + "\n")
        console.print(f"written to {path}", markup=False)


def _count(flag: str, value: str) -> int:
    if not value.isdecimal():
        raise ValueError(f"{flag} is {value!r}; it must be a whole number")
    return int(value)


COLUMNS = {
    "weights": ("weights", "weights cast"),
    "gradients": ("gradients", "gradients on their way", "buckets"),
    "optimizer": ("optimizer", "optimizer's temporaries"),
    "average": ("average",),
    "in flight": ("in flight",),
    "activations": ("activations",),
}
"""Of the table of memory, and the labels that each adds up."""


def _strategies(plan: Plan) -> Table:
    table = Table(
        "", "strategy", "blocks", *COLUMNS, "penalty's", "needs", "fits", "sent", "FLOP", "a step",
        title="GiB (M: MiB) on each GPU at the worst moment; what it sends and computes in a step",
        box=None, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for column in table.columns[3:]:
        column.justify = "right"
    for index, row in enumerate(plan.rows):
        each = row.footprint
        table.add_row(
            "→" if index == plan.best else "",
            each.strategy,
            "recomputed" if each.checkpointing else "kept",
            *(_gib(sum(each.memory[label] for label in labels)) for labels in COLUMNS.values()),
            "" if each.penalty is None else _gib(each.penalty),
            _gib(row.needs),
            "yes" if row.fits else "no",
            f"{_short(each.sent)}B",
            _short(each.flops),
            _time(row),
        )
    return table


def _traffic(plan: Plan) -> Table:
    """What each strategy exchanges, where recomputing blocks changes nothing of it."""
    table = Table(
        "strategy", "collective", "over", "whole", "each GPU sends", "times",
        title="exchanged in a step", box=None, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for row in plan.rows:
        if row.footprint.checkpointing:
            continue
        for each in merged(row.footprint.traffic):
            if each.sent:
                table.add_row(
                    row.footprint.strategy, each.collective, _between(each, row.footprint.ranks),
                    f"{_short(each.whole)}B", f"{_short(each.sent)}B", f"{each.times:.4g}",
                )  # fmt: skip
    return table


def _between(exchange: Traffic, ranks: int) -> str:
    if not exchange.across:
        return f"{exchange.ranks} GPUs of a node"
    return f"{exchange.ranks} GPUs" + (", one of each node" if exchange.ranks < ranks else "")


def _scaling(plan: Plan) -> Table:
    table = Table(
        "nodes", "GPUs", "samples a GPU", "best strategy", "blocks", "a step", "samples a second",
        title="the same batch on other numbers of nodes", box=None, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for nodes, row in plan.scaling:
        each = row.footprint
        fast, slow = (plan.job.batch_size / seconds for seconds in row.seconds)
        table.add_row(
            str(nodes), str(each.ranks), str(plan.job.batch_size // each.ranks), each.strategy,
            "recomputed" if each.checkpointing else "kept", _time(row),
            f"{_short(slow)} to {_short(fast)}",
        )  # fmt: skip
    return table


def _gib(size: float) -> str:
    if size < GIB / 10:
        return f"{size / 2**20:.3g}M" if size else "0"
    return f"{size / GIB:.2f}" if size < 100 * GIB else f"{size / GIB:.0f}"


def _time(row: Row) -> str:
    return " to ".join(f"{_short(seconds)}s" for seconds in row.seconds)


def _short(number: float) -> str:
    """Three digits and a unit's prefix."""
    if number == 0:
        return "0 "
    prefixes = {1e15: "P", 1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k", 1.0: "", 1e-3: "m", 1e-6: "µ"}
    scale = next((s for s in prefixes if number >= s), 1e-6)
    return f"{number / scale:.3g} {prefixes[scale]}"
