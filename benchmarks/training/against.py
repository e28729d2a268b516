"""A training step of dgan beside that of a direct PyTorch script with the same networks and losses.

    python benchmarks/training/against.py [--rounds 12] [--only NAME] [--out FOLDER]

Each family at 32×32, narrow, batch 32, in one process; the step is all of it, averages and logging
too, from a batch that lies in memory. Both take turns in one process on one thread, in seconds of
the processor rather than of the clock: who else is on the machine then counts little. `ratio` is
the median over rounds of dgan's time over the script's; `control` is the script's second run over
its first. The goals: no family above 1.03; R3GAN beside the formulation of its training code
(`direct.Apart`) at most 1 / 1.2.
"""

import argparse
import copy
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dgan.build import build_players, pace
from dgan.build_networks import build_network
from dgan.config import Average, Data, Parallel, Penalty, Player, Recipe, Task, Train
from dgan.parallel.world import World, launch
from dgan.schedule import constant
from dgan.step import Players, adversarial_step

sys.path.insert(0, str(Path(__file__).parents[1]))
from direct import Apart, Direct, with_plain_layers
from report import store

RESOLUTION, BATCH, WARMUP = 32, 32, 2
WIDTHS = (96, 64, 32, 16)
BLOCKS = {"blocks": (1, 1, 1, 1), "groups": (12, 8, 4, 2)}


@dataclass(frozen=True)
class Case:
    """A family, its size, and what it plays for."""

    family: str
    options: dict[str, Any]
    latent: dict[str, Any] = field(default_factory=lambda: {"z_dim": 64})
    loss: str = "non_saturating"
    gamma: float = 0.0
    classes: int = 0


CASES = {
    "mlp": Case("mlp", {"widths": (512, 512)}),
    "dcgan": Case("dcgan", {"widths": WIDTHS[:-1]}),
    "sngan": Case("sngan", {"widths": WIDTHS}, loss="hinge", classes=10),
    "biggan": Case("biggan", {"widths": WIDTHS}, loss="hinge", classes=10),
    "stylegan2": Case(
        "stylegan2", {"widths": WIDTHS}, {"z_dim": 64, "w_dim": 64}, gamma=0.1, classes=10
    ),
    "r3gan": Case("r3gan", {"widths": WIDTHS, **BLOCKS}, loss="relativistic", gamma=0.1),
    "transformer": Case(
        "transformer", {"width": 96, "depth": 3, "heads": 4, "patch": 4},
        loss="relativistic", gamma=0.1,
    ),
}  # fmt: skip


def recipe_of(case: Case) -> Recipe:
    player = Player(network=case.family, options=case.options)
    return Recipe(
        name="against",
        data=Data(shards="none", resolution=RESOLUTION, classes=case.classes),
        generator=replace(player, options={**case.options, **case.latent}),
        discriminator=player,
        train=Train(steps=1000, batch_size=BATCH),
        task=Task(loss=case.loss),  # pyright: ignore[reportArgumentType]
        penalty=Penalty(gamma=constant(case.gamma), check=False),
        average=Average(half_life_kimg=constant(10.0)),
        parallel=Parallel(strategy="single"),
    )


def batch_of(case: Case) -> dict[str, Any]:
    seeded = torch.Generator().manual_seed(0)
    shape = (BATCH, 3, RESOLUTION, RESOLUTION)
    batch: dict[str, Any] = {
        "__key__": [str(row) for row in range(BATCH)],
        "image": torch.randint(256, shape, dtype=torch.uint8, generator=seeded),
    }
    if case.classes:
        batch["label"] = torch.randint(case.classes, (BATCH,), generator=seeded)
    return batch


def ours(
    recipe: Recipe,
    batch: dict[str, Any],
    world: World,
    within: Callable[[Players], AbstractContextManager[object]] = nullcontext,
) -> Callable[[], object]:
    """dgan's step; `within` changes the players, and makes what every step of theirs runs in."""
    players, plan = build_players(recipe, world), pace(recipe)
    numbers, batches = itertools.count(1), itertools.repeat(batch)
    around = within(players)

    def step() -> None:
        with around:
            adversarial_step(players, batches, next(numbers), plan, world)

    return step


def script(
    recipe: Recipe, case: Case, batch: dict[str, Any], kind: type[Direct], plain: bool
) -> Any:
    networks = [build_network(recipe, role) for role in ("generator", "discriminator")]
    generator, discriminator = map(with_plain_layers, networks) if plain else networks
    made = kind(
        generator, discriminator, loss=case.loss, gamma=case.gamma, z_dim=case.latent["z_dim"],
        separate=getattr(networks[1], "couples_samples", True), decay=0.999,
    )  # fmt: skip
    return lambda: made.step(batch)


def measure(runs: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each, by turns; where there is a GPU, of the clock."""
    now = time.perf_counter if torch.cuda.is_available() else time.process_time
    for run in runs:
        for _ in range(WARMUP):
            run()
    taken: list[list[float]] = [[] for _ in runs]
    for index in range(rounds):
        places = list(range(len(runs)))
        places = places[index % len(runs) :] + places[: index % len(runs)]
        for place in places if index % 2 else reversed(places):
            begin = now()
            runs[place]()
            taken[place].append(now() - begin)
    return taken


def milliseconds(seconds: list[float]) -> float:
    return 1e3 * statistics.median(seconds)


def ratio(over: list[float], under: list[float]) -> float:
    """The median over rounds."""
    return statistics.median(a / b for a, b in zip(over, under))


def two_beside(rounds: int, **runs: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of two runs under their names, and the time of the first over the second's."""
    (one, other), taken = runs, measure(list(runs.values()), rounds)
    return {
        f"{one}_ms": milliseconds(taken[0]),
        f"{other}_ms": milliseconds(taken[1]),
        "ratio": ratio(*taken),
        "rounds": rounds,
    }


def row_of(name: str, beside: str, runs: list[Callable[[], object]], rounds: int) -> dict[str, Any]:
    mine, theirs, again = measure(runs, rounds)
    return {
        "family": name,
        "beside": beside,
        "ours_ms": milliseconds(mine),
        "script_ms": milliseconds(theirs),
        "ratio": ratio(mine, theirs),
        "control": ratio(again, theirs),
        "rounds": rounds,
    }


def check_plain_layers(recipe: Recipe) -> None:
    """The second baseline's networks compute what ours do."""
    for role, inputs in (("generator", (4, 64)), ("discriminator", (4, 3, RESOLUTION, RESOLUTION))):
        network = build_network(recipe, role)
        x = torch.randn(inputs, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(with_plain_layers(network)(x), network(x))


def rows_of(name: str, world: World, rounds: int) -> Iterator[dict[str, Any]]:
    case = CASES[name]
    recipe, batch = recipe_of(case), batch_of(case)
    kinds = [("the same networks, a direct script", Direct, False)]
    if name == "r3gan":
        check_plain_layers(recipe)
        kinds.append(("its training code's formulation", Apart, True))
    for beside, kind, plain in kinds:
        scripts = [script(recipe, case, copy.copy(batch), kind, plain) for _ in range(2)]
        yield row_of(name, beside, [ours(recipe, batch, world), *scripts], rounds)


def compare(
    description: str,
    rows_of: Callable[[str, World, int], Iterator[dict[str, Any]]],
    line: str,
    result: str,
    notes: str,
) -> None:
    """The rows of each family that is asked for, printed as `line`; of all of them, stored."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=12, help="a multiple of 6")
    parser.add_argument("--only", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--out", type=Path, help="folder for the result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with launch() as world:
        for name in options.only:
            for row in rows_of(name, world, options.rounds):
                rows.append(row)
                print(line.format(**row), flush=True)
    if options.only == list(CASES):
        print(f"stored in {store(result, rows, notes=notes, out=options.out)}")


if __name__ == "__main__":
    compare(
        "dgan's step beside direct scripts'.",
        rows_of,
        "{family:12} {beside:36} {ours_ms:8.1f} {script_ms:8.1f} ms  {ratio:.3f}  "
        "control {control:.3f}",
        result="training-against",
        notes=(__doc__ or "").partition("\n\n")[2],
    )
