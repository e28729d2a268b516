"""Seconds a step and peak memory of whole training steps, by strategy.

    python benchmarks/training/step.py [--steps 20] [--rounds 3] [--out FOLDER]

Every case is a process group of its own; the cases take turns in each round, so that a slow
minute of the machine falls on all of them. The recipes are `digits` as it is and `cifar10-r3gan`
scaled down (32×32 as published, but 16 to 96 channels instead of 768, one block a stage instead of
two, batch 32 instead of 512). Needs `data/digits` and `data/cifar10`; what is missing is left out.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dgan.build import build_players, pace
from dgan.opening import open_stream
from dgan.parallel.world import launch
from dgan.recipes import digits
from dgan.step import adversarial_step

sys.path.insert(0, str(Path(__file__).parents[1]))
from cifar10 import narrow_cifar10
from report import store

CASES = [("single", 1), ("ddp", 2), ("fsdp", 2)]
WARMUP = 3


RECIPES = {"digits": digits, "cifar10-r3gan, narrow": narrow_cifar10}


def measure(name: str, strategy: str, steps: int) -> None:
    """One case, on every rank of the group it was started in; the first prints what it took."""
    recipe = RECIPES[name]()
    recipe = replace(recipe, parallel=replace(recipe.parallel, strategy=strategy))
    with launch() as world, open_stream(recipe, world) as stream:
        players = build_players(recipe, world)
        seconds = []
        for step in range(1, WARMUP + steps + 1):
            world.barrier()
            begin = time.perf_counter()
            adversarial_step(players, stream, step, pace(recipe), world)
            seconds.append(time.perf_counter() - begin)
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 2**20
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        peaks = world.gather(peak)
        if world.is_first:
            median = statistics.median(seconds[WARMUP:])
            print(json.dumps({"seconds": median, "peak_mib": max(peaks)}))


def run(name: str, strategy: str, ranks: int, steps: int) -> dict[str, float]:
    """One case in processes of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    arguments = [__file__, "--case", name, "--strategy", strategy, "--steps", str(steps)]
    # As many threads in all as there are cores, whatever the number of ranks.
    threads = max(1, (os.cpu_count() or 1) // ranks)
    output = subprocess.run(
        [sys.executable, *launcher, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return json.loads(output.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Time whole training steps.")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--strategy", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a case in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for the result")
    options = parser.parse_args()
    if options.case:
        measure(options.case, options.strategy, options.steps)
        return
    gpus = torch.cuda.device_count()
    cases = [case for case in CASES if not gpus or case[1] <= gpus]
    rows: list[dict[str, Any]] = []
    for name, recipe in RECIPES.items():
        if not list(Path().glob(recipe().data.shards)):
            print(f"{name}: no shards at {recipe().data.shards}, left out")
            continue
        taken = {case: [] for case in cases}
        for _ in range(options.rounds):
            for case in cases:
                taken[case].append(run(name, *case, options.steps))
        base = statistics.median(result["seconds"] for result in taken[cases[0]])
        for (strategy, ranks), results in taken.items():
            seconds = statistics.median(result["seconds"] for result in results)
            rows.append(
                {
                    "recipe": name,
                    "strategy": strategy,
                    "ranks": ranks,
                    "seconds_per_step": seconds,
                    "of_single": seconds / base,
                    "peak_mib_per_rank": max(result["peak_mib"] for result in results),
                    "rounds": [result["seconds"] for result in results],
                }
            )
    path = store("training-step", rows, notes=(__doc__ or "").partition("\n\n")[2], out=options.out)
    print("| recipe | strategy | ranks | s / step | of single | peak MiB a rank |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['recipe']} | {row['strategy']} | {row['ranks']} "
            f"| {row['seconds_per_step']:.3f} | {row['of_single']:.2f} "
            f"| {row['peak_mib_per_rank']:.0f} |"
        )
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
