"""What a checkpoint costs the steps during which it is written.

    python benchmarks/training/checkpoint.py [--width 20] [--every 50] [--rounds 5] [--out FOLDER]

The `digits` recipe, `width` times as wide as it is (20: 50 million parameters in both networks),
is trained in windows of `every` steps. Every other window begins with an asynchronous checkpoint,
of weights, average and both moments of Adam, so that the windows take turns on a machine whose
speed wanders. `stall` is the time for which `save` itself holds the loop up (the copy), `overhead`
how much longer a window with a checkpoint takes than the one before it; the goal is 5 %. Medians
over rounds; the first round, which allocates the copies, is left out. `last save` is what a run
that is told to stop has left to do after its step, at worst: a checkpoint that has just begun, and
the last one; launchers must give it that time. Under torchrun every rank takes part, with
`--parallel` as strategy. Needs `data/digits`.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from dgan.build import build_players, pace
from dgan.checkpoint import Checkpoints
from dgan.config import Recipe
from dgan.data import ShardStream
from dgan.opening import open_stream
from dgan.parallel.world import World, launch
from dgan.recipes import digits
from dgan.step import Players, adversarial_step

sys.path.insert(0, str(Path(__file__).parents[1]))
from report import store


def wide_digits(width: int, batch_size: int, strategy: str) -> Recipe:
    recipe = digits()
    widths = {"widths": tuple(width * w for w in (64, 48))}
    generator, discriminator = recipe.generator, recipe.discriminator
    return replace(
        recipe,
        generator=replace(generator, options={**generator.options, **widths}),
        discriminator=replace(discriminator, options={**discriminator.options, **widths}),
        train=replace(recipe.train, batch_size=batch_size),
        parallel=replace(recipe.parallel, strategy=strategy),
    )


def window(
    players: Players, stream: ShardStream, recipe: Recipe, world: World, first: int, steps: int
) -> float:
    """Seconds that so many steps take, on the slowest rank."""
    world.barrier()
    begin = time.perf_counter()
    for step in range(first, first + steps):
        adversarial_step(players, stream, step, pace(recipe), world)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return max(world.gather(time.perf_counter() - begin))


def measure(
    recipe: Recipe, world: World, *, every: int, rounds: int, folder: Path
) -> dict[str, object]:
    with (
        open_stream(recipe, world) as stream,
        Checkpoints(folder, keep=1, world=world) as checkpoints,
    ):
        players = build_players(recipe, world)
        networks = (players.generator.replica, players.discriminator.replica)
        parameters = sum(p.numel() for replica in networks for p in replica.parameters)
        window(players, stream, recipe, world, 1, 3)
        plain, saving, stalls, writing = [], [], [], []
        for index in range(rounds + 1):
            first = 4 + 2 * index * every
            plain.append(window(players, stream, recipe, world, first, every))
            begin = time.perf_counter()
            checkpoints.save(index + 1, players.state(), {})
            stalls.append(max(world.gather(time.perf_counter() - begin)))
            saving.append(window(players, stream, recipe, world, first + every, every) + stalls[-1])
            # What the window was too short for is not hidden: it would hold up the next save.
            begin = time.perf_counter()
            checkpoints.wait()
            writing.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        for number in (1, 2):
            checkpoints.save(rounds + 1 + number, players.state(), {})
        checkpoints.wait()
        last_save = time.perf_counter() - begin
        size = sum(path.stat().st_size for path in folder.glob("step-*/*"))
    ratios = [with_it / without - 1 for without, with_it in zip(plain[1:], saving[1:])]
    return {
        "parameters": parameters,
        "checkpoint_mib": size / 2**20,
        "ranks": world.size,
        "strategy": recipe.parallel.strategy,
        "every": every,
        "seconds_per_step": statistics.median(plain[1:]) / every,
        "stall_seconds": statistics.median(stalls[1:]),
        "first_stall_seconds": stalls[0],
        "seconds_left_to_write": statistics.median(writing[1:]),
        "last_save_seconds": last_save,
        "overhead": statistics.median(ratios),
        "rounds": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What a checkpoint costs the training.")
    parser.add_argument("--width", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64, help="images of a step")
    parser.add_argument("--every", type=int, default=50, help="steps of a window")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parallel", default="single", help="strategy")
    parser.add_argument("--out", type=Path, help="folder for the result")
    options = parser.parse_args()
    recipe = wide_digits(options.width, options.batch, options.parallel)
    with launch() as world:
        Path("runs").mkdir(exist_ok=True)
        shared = tempfile.mkdtemp(dir="runs", prefix="checkpoint-") if world.is_first else ""
        folder = Path(world.gather(shared)[0])
        row = measure(recipe, world, every=options.every, rounds=options.rounds, folder=folder)
        if world.is_first:
            shutil.rmtree(folder)
            notes = (__doc__ or "").partition("\n\n")[2]
            path = store("training-checkpoint", [row], notes=notes, out=options.out)
            for key, value in row.items():
                print(f"{key:22} {value:.4g}" if isinstance(value, float) else f"{key:22} {value}")
            print(f"stored in {path}")


if __name__ == "__main__":
    main()
