"""Store what a finished run measured: its scores over time, its speed, its last samples.

    python benchmarks/training/history.py runs/mnist "dgan train mnist"

The second argument is the command that made the run.
"""

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from report import RESULTS, device, store


def main() -> None:
    parser = argparse.ArgumentParser(description="Store a run's scores over time.")
    parser.add_argument("run", type=Path)
    parser.add_argument("made_by", help="the command that made the run")
    options = parser.parse_args()
    records: list[dict[str, Any]] = [
        json.loads(line) for line in (options.run / "metrics.jsonl").read_text().splitlines()
    ]
    rows = [record for record in records if "fid" in record]
    speed = statistics.median(r["images_per_second"] for r in records if "images_per_second" in r)
    notes = f"made by: {options.made_by}; median {speed:.0f} images/s"
    name = options.run.name
    path = store(f"{name}-scores", rows, notes=notes)
    last = sorted((options.run / "samples").glob("step-*.png"))[-1]
    shutil.copy(last, RESULTS / device() / f"{name}-samples.png")
    print("| step | kimg | FID | coverage |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['step']} | {row['kimg']:.1f} | {row['fid']:.1f} | {row['coverage']:.0%} |")
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
