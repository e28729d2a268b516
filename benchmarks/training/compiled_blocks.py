"""A training step with compiled blocks beside one without, by family.

    python benchmarks/training/compiled_blocks.py [--rounds 12] [--only NAME] [--out FOLDER]

As `against.py` measures: narrow networks at 32×32, batch 32, one process and thread, by turns, in
seconds of the processor, with a GPU in those of the clock; `ratio` is the median over rounds of
compiled over not. `penalty` says when blocks have to run as they are written: `double`, in the
whole of the discriminator's update; `forward`, in its second pass; `none`, never. Compiling, before
the first step, is not counted.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from against import CASES, batch_of, compare, ours, recipe_of, two_beside
from dgan.config import Recipe
from dgan.parallel.world import World
from dgan.schedule import constant

PENALTIES = ("none", "double", "forward")


def variant(recipe: Recipe, penalty: str, compiled: bool) -> Recipe:
    off = {"gamma": constant(0.0)}
    changes: dict[str, Any] = off if penalty == "none" else {"method": penalty}
    return replace(
        recipe,
        penalty=replace(recipe.penalty, **changes),
        parallel=replace(recipe.parallel, compile=compiled),
    )


def rows_of(name: str, world: World, rounds: int) -> Iterator[dict[str, Any]]:
    case = CASES[name]
    recipe, batch = recipe_of(case), batch_of(case)
    for penalty in PENALTIES if case.gamma else PENALTIES[:1]:
        torch.compiler.reset()
        plain, compiled = (ours(variant(recipe, penalty, on), batch, world) for on in (False, True))
        times = two_beside(rounds, compiled=compiled, plain=plain)
        yield {"family": name, "penalty": penalty, **times}


if __name__ == "__main__":
    compare(
        "Compiled blocks beside blocks as written.",
        rows_of,
        "{family:12} {penalty:8} {plain_ms:8.1f} {compiled_ms:8.1f} ms  {ratio:.3f}",
        result="training-compiled",
        notes=(__doc__ or "").partition("\n\n")[2],
    )
