"""A training step with compiled blocks beside one without, by family.

    python benchmarks/training/compiled_blocks.py [--rounds 12] [--only NAME] [--out FOLDER]

As `against.py` measures: narrow networks at 32×32, batch 32, one process and thread, by turns, in
seconds of the processor, with a GPU in those of the clock; `ratio` is the median over rounds of
compiled over not. `penalty` says when blocks have to run as they are written: `double`, in the
whole of the discriminator's update; `forward`, in its second pass; `none`, never. Compiling, before
the first step, is not counted.
"""

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from against import CASES, batch_of, measure, ours, recipe_of
from dgan.config import Recipe
from dgan.parallel.world import launch
from dgan.schedule import constant
from report import store

PENALTIES = ("none", "double", "forward")


def variant(recipe: Recipe, penalty: str, compiled: bool) -> Recipe:
    off = {"gamma": constant(0.0)}
    changes: dict[str, Any] = off if penalty == "none" else {"method": penalty}
    return replace(
        recipe,
        penalty=replace(recipe.penalty, **changes),
        parallel=replace(recipe.parallel, compile=compiled),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Compiled blocks beside blocks as written.")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--only", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--out", type=Path, help="folder for the result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with launch() as world:
        for name in options.only:
            case = CASES[name]
            recipe, batch = recipe_of(case), batch_of(case)
            for penalty in PENALTIES if case.gamma else PENALTIES[:1]:
                torch.compiler.reset()
                runs = [ours(variant(recipe, penalty, on), batch, world) for on in (False, True)]
                plain, compiled = measure(runs, options.rounds)
                row = {
                    "family": name,
                    "penalty": penalty,
                    "plain_ms": 1e3 * statistics.median(plain),
                    "compiled_ms": 1e3 * statistics.median(compiled),
                    "ratio": statistics.median(b / a for a, b in zip(plain, compiled)),
                    "rounds": options.rounds,
                }
                rows.append(row)
                print(
                    f"{name:12} {penalty:8} {row['plain_ms']:8.1f} {row['compiled_ms']:8.1f} ms  "
                    f"{row['ratio']:.3f}",
                    flush=True,
                )
    if options.only == list(CASES):
        notes = (__doc__ or "").partition("\n\n")[2]
        print(f"stored in {store('training-compiled', rows, notes=notes, out=options.out)}")


if __name__ == "__main__":
    main()
