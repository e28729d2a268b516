"""Measure the kernels against eager PyTorch and torch.compile, or check them without a GPU.

    python benchmarks/kernels/run.py [--only NAME …] [--out FOLDER] [--seconds S] [--table]

Eager PyTorch and ours first, for every case of every operator, then what takes seconds to compile.
After each case `kernels-<operator>.json` and `.csv` are written anew, and what is in them is not
measured again: a run that ends early goes on where it was. The table of all of it comes last.
`plot.py` draws it. Without a GPU small cases run in Triton's interpreter, and nothing is timed.
"""

import argparse
import csv
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when dgan_kernels is imported

sys.path.insert(0, str(Path(__file__).parents[1]))
from dgan_kernels.checks import TRITON
from kernels.harness import PROVIDERS, check, measure
from kernels.operators import OPERATORS
from report import RESULTS, device, store

GPU = torch.cuda.is_available()


QUICK = ("eager", "ours")
Rows = list[dict[str, Any]]


def stored(folder: Path, name: str) -> Rows:
    path = folder / f"kernels-{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def measure_all(names: list[str], folder: Path, deadline: float, again: bool) -> None:
    """Add to what `folder` has until the deadline; a case that is begun is finished."""
    found: dict[str, Rows] = {name: [] if again else stored(folder, name) for name in names}
    for group in (QUICK, tuple(p for p in PROVIDERS if p not in QUICK)):
        for name in names:
            operator, rows = OPERATORS[name], found[name]
            for case in operator.cases:
                done = {row["provider"] for row in rows if row["case"] == str(case)}
                missing = [p for p in operator.providers(case) if p in group and p not in done]
                if not missing or time.monotonic() > deadline:
                    continue
                try:
                    rows += measure(operator, case, missing)
                except Exception as error:  # one case must not cost a lent GPU the others
                    print(f"{name} {case} by {', '.join(missing)}: {type(error).__name__}: {error}")
                    continue
                write_csv(store(f"kernels-{name}", rows, out=folder).with_suffix(".csv"), rows)
            print(f"{name}: {len(rows)} rows", flush=True)


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def table(rows: Rows) -> str:
    """`rows` as text, with times where there are any."""
    lines, heading = [], None
    for row in rows:
        if (row["operator"], row["case"]) != heading:
            heading = row["operator"], row["case"]
            lines.append(f"\n{heading[0]} {heading[1]}")
        timing = ""
        if "ms" in row:
            timing = (
                f"{row['ms']:8.3f} ms {row['gb_per_s']:7.0f} GB/s {row['of_copy']:6.0%} of copy "
                f"{row['peak_mib']:7.0f} MiB"
            )
        lines.append(
            f"  {row['order']:9s}{row['provider']:19s}{timing}  differs by {row['error']:.0e}"
        )
    return "\n".join(lines)


def thresholds(rows: Rows) -> str:
    """From how many elements on no order of an operator was slower than eager PyTorch.

    For `dgan_kernels.checks.SMALLEST`.
    """
    times = {(r["operator"], r["case"], r["order"], r["provider"]): r["ms"] for r in rows}
    slower: dict[str, int] = {}
    for row in rows:
        eager = times.get((row["operator"], row["case"], row["order"], "eager"))
        if row["provider"] == "ours" and eager is not None and row["ms"] > eager:
            slower[row["operator"]] = max(slower.get(row["operator"], 0), row["elements"])
    found = [f"  {name}: slower up to {size:,} elements" for name, size in sorted(slower.items())]
    return "\n".join(found or ["  nowhere"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the kernels on this GPU.")
    parser.add_argument("--only", nargs="+", default=list(OPERATORS), choices=OPERATORS)
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no case later")
    parser.add_argument("--again", action="store_true", help="measure what is there already too")
    parser.add_argument("--table", action="store_true", help="measure nothing, show what is there")
    options = parser.parse_args()
    if not TRITON:
        print("triton is not installed: nothing to measure")
        return
    folder = options.out or RESULTS / device()
    if not GPU:
        print("no GPU here, so no times: checking small cases in Triton's interpreter")
        for name in options.only:
            rows = [r for case in OPERATORS[name].small for r in check(OPERATORS[name], case)]
            print(table(rows), flush=True)
        return
    if not options.table:
        deadline = time.monotonic() + options.seconds
        measure_all(options.only, folder, deadline, options.again)
    rows = [row for name in options.only for row in stored(folder, name)]
    print(f"{table(rows)}\n\nours slower than eager PyTorch:\n{thresholds(rows)}")


if __name__ == "__main__":
    main()
