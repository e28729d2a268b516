"""Measure the kernels against eager PyTorch and torch.compile, or check them without a GPU.

    python benchmarks/kernels/run.py [--only NAME …] [--out FOLDER] [--again]

Writes `kernels-<operator>.json` and `.csv` as each operator is done, and goes on after those that
are there already; the table of all of them comes last. `plot.py` draws them. Without a GPU it runs
small cases in Triton's interpreter and times nothing.
"""

import argparse
import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when dgan_kernels is imported

sys.path.insert(0, str(Path(__file__).parents[1]))
from dgan_kernels.checks import TRITON
from kernels.harness import check, measure
from kernels.operators import OPERATORS
from report import RESULTS, device, store

GPU = torch.cuda.is_available()


def rows_of(name: str) -> list[dict[str, Any]]:
    """Every case of one operator, measured or checked."""
    operator = OPERATORS[name]
    cases, run = (operator.cases, measure) if GPU else (operator.small, check)
    return [row for case in cases for row in run(operator, case)]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def table(rows: list[dict[str, Any]]) -> str:
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
            f"  {row['order']:9s}{row['provider']:8s}{timing}  differs by {row['error']:.0e}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the kernels on this GPU.")
    parser.add_argument("--only", nargs="+", default=list(OPERATORS), choices=OPERATORS)
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--again", action="store_true", help="measure what is there already too")
    options = parser.parse_args()
    if not TRITON:
        print("triton is not installed: nothing to measure")
        return
    if not GPU:
        print("no GPU here, so no times: checking small cases in Triton's interpreter")
    everything: list[dict[str, Any]] = []
    for name in options.only:
        folder = options.out or RESULTS / device()
        path = folder / f"kernels-{name}.json"
        if GPU and path.exists() and not options.again:
            everything += json.loads(path.read_text())["rows"]
            continue
        rows = rows_of(name)
        if GPU or options.out:
            write_csv(store(f"kernels-{name}", rows, out=options.out).with_suffix(".csv"), rows)
        print(f"{name}: {len(rows)} rows", flush=True)
        everything += rows
    print(table(everything))


if __name__ == "__main__":
    main()
