"""Ring and grid over losses and seeds, beside the published numbers.

    python benchmarks/training/toys.py                       # ring and grid, 5 seeds, 20,000 steps
    python benchmarks/training/toys.py --toys ring --methods relativistic non_saturating --seeds 2

A run takes about 5 minutes of one core. Runs that are finished are not made again.
"""

import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parents[1]))
from rich.console import Console

from dgan.config_game import Loss
from dgan.data.toy import find_toy
from dgan.laboratory.table import PUBLISHED, rows_of, summary
from dgan.toy import Method, Penalised, play, toy_recipe
from report import RESULTS, device, store
from runs import parser, with_budget

METHODS = ("relativistic", "relativistic+none", "non_saturating", "minimax", "wasserstein")


def method_named(name: str) -> Method:
    loss, _, penalty = name.partition("+")
    penalty = penalty or "own"
    if loss not in get_args(Loss) or penalty not in get_args(Penalised):
        raise SystemExit(f"no method {name!r}: a loss, perhaps + and a penalty")
    return Method(loss, penalty)  # pyright: ignore[reportArgumentType]


def main() -> None:
    asked = parser("Modes of the toys over losses and seeds.", "runs/toys")
    asked.add_argument("--toys", nargs="+", default=["ring", "grid"])
    asked.add_argument("--methods", nargs="+", default=METHODS)
    asked.add_argument("--seeds", type=int, default=5)
    options = asked.parse_args()
    methods = [method_named(name) for name in options.methods]
    options.out.mkdir(parents=True, exist_ok=True)
    folder = options.results or RESULTS / device()
    for toy in options.toys:
        trials = []
        for method in methods:
            plan = with_budget(toy_recipe(toy, method.loss, penalty=method.penalty), options)
            steps = plan.train.steps
            trials += play(toy, [method], range(options.seeds), steps, options.out)
            rows: list[dict[str, Any]] = [{"steps": steps, **row} for row in rows_of(trials)]
            rows += [{"toy": toy, "published": True, **asdict(row)} for row in PUBLISHED[toy]]
            path = store(f"toys-{toy}", rows, notes=__doc__.splitlines()[0], out=folder)
            last = sorted((options.out / f"toy-{toy}-{method.name}-0/samples").glob("step-*"))[-1]
            shutil.copy(last, folder / f"toys-{toy}-{method.name}.png")
        Console().print(summary(toy, find_toy(toy).modes, trials))
        print(f"stored in {path}")


if __name__ == "__main__":
    main()
