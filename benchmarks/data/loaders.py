"""Images a second of 256×256 JPEGs in batches of 64: decoding alone, ours, and other loaders.

    python benchmarks/data/loaders.py --folder FOLDER --source 'SHARDS'

Makes `--samples` JPEGs of about 20 KB in `--folder` from the images of `--source` (any WebDataset
tars of photographs), then measures each loader in a process of its own, in turns for `--rounds`.
All decode with simplejpeg and hand out uint8. A loop between two batches either does nothing, or is
busy for `--busy` ms: in Python, or starting small torch operations as a training loop does that
keeps a GPU going. What cannot be imported is listed as missing.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from data import loader_formats, loader_kinds
from report import store

BATCH = 64
LOOPS = ("idle", "python", "torch")


def python_work(rounds: int) -> None:
    for i in range(rounds):
        _ = i * i


def torch_work(rounds: int) -> None:
    x = torch.zeros(64)
    for _ in range(rounds):
        x.add_(1.0)


WORK: dict[str, Callable[[int], None]] = {"python": python_work, "torch": torch_work}


def calibrate(milliseconds: float) -> dict[str, int]:
    """How many rounds of each kind of work take so long when nothing else runs."""
    rounds = {"idle": 0}
    for name, work in WORK.items():
        spent = []
        for _ in range(20):
            begun = time.perf_counter()
            work(10_000)
            spent.append(time.perf_counter() - begun)
        rounds[name] = round(10_000 * milliseconds / 1e3 / statistics.median(spent))
    return rounds


def measure(
    name: str, folder: Path, workers: int, seconds: float, loop: str, rounds: int
) -> dict[str, float]:
    """Images a second, and the milliseconds of a step spent waiting for its batch."""
    if name in loader_kinds.DECODE_ONLY:
        how = loader_kinds.DECODE_ONLY[name]
        return {"images_per_s": loader_kinds.decode_only(folder, workers, seconds, *how)}
    batches = loader_kinds.LOADERS[name](folder, workers)
    for _ in range(6):  # what is decoded ahead must not count
        next(batches)
    images, waited = 0, []
    begun = now = time.perf_counter()
    while now - begun < seconds:
        images += len(next(batches)[0])
        waited.append(time.perf_counter() - now)
        if loop in WORK:
            WORK[loop](rounds)
        now = time.perf_counter()
    return {
        "images_per_s": images / (now - begun),
        "wait_ms": 1e3 * statistics.mean(waited),
        "step_ms": 1e3 * (now - begun) / len(waited),
    }


def child(arguments: argparse.Namespace) -> None:
    """One measurement, printed as JSON; leaves at once, whatever threads and workers there are."""
    torch.set_num_threads(1)
    try:
        found: dict[str, Any] = measure(
            arguments.measure,
            arguments.folder,
            arguments.workers[0],
            arguments.seconds,
            arguments.loops[0],
            arguments.work,
        )
    except ImportError as error:
        found = {"missing": str(error)}
    print(json.dumps(found), flush=True)
    loader_kinds.kill_children()
    os._exit(0)


def run(name: str, workers: int, loop: str, work: int, arguments: argparse.Namespace) -> Any:
    command = [sys.executable, __file__, "--measure", name, "--workers", str(workers)]
    command += ["--loops", loop, "--work", str(work), "--seconds", str(arguments.seconds)]
    command += ["--folder", str(arguments.folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"failed": "no result within 300 s"}
    except (IndexError, ValueError):
        return {"failed": done.stderr.strip().splitlines()[-1:]}


def summarise(rounds: list[dict[str, Any]], ceilings: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, and of the ratios to the decoding alone of the same round."""
    good = [found for found in rounds if "images_per_s" in found]
    if not good:
        return rounds[0]
    row: dict[str, Any] = {
        key: round(statistics.median(found[key] for found in good), 1) for key in good[0]
    }
    ratios = [
        found["images_per_s"] / ceiling["images_per_s"]
        for found, ceiling in zip(rounds, ceilings)
        if "images_per_s" in found
    ]
    if ratios:
        row["of_decode_only"] = round(statistics.median(ratios), 3)
    return {**row, "rounds": [round(found["images_per_s"]) for found in good]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--source", default="", help="shards to make the JPEGs of")
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=list(LOOPS))
    parser.add_argument("--busy", type=float, default=20.0, help="ms of a busy loop's step")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    kinds = [*loader_kinds.DECODE_ONLY, *loader_kinds.LOADERS]
    parser.add_argument("--loaders", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<device>")
    parser.add_argument("--measure", choices=kinds, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return child(arguments)
    loader_formats.make(arguments.folder, arguments.source, arguments.samples)
    work = calibrate(arguments.busy)
    cases = list(itertools.product(arguments.loops, arguments.workers, arguments.loaders))
    found: dict[Any, list[Any]] = {case: [] for case in cases}
    for _ in range(arguments.rounds):  # in turns, so that a slow minute falls on all of them
        for loop, workers, name in cases:
            if name in loader_kinds.DECODE_ONLY and loop != "idle":
                continue
            result = run(name, workers, loop, work[loop], arguments)
            found[loop, workers, name].append(result)
            print(loop, workers, name, result, flush=True)
    rows = [
        {"loop": loop, "workers": workers, "loader": name}
        | summarise(rounds, found.get((loop, workers, loader_kinds.CEILING), []))
        for (loop, workers, name), rounds in found.items()
        if rounds
    ]
    notes = (
        f"medians of {arguments.rounds} rounds of {arguments.seconds:g} s; {arguments.samples} "
        f"JPEGs of 256×256, batches of {BATCH}; simplejpeg for all; a busy loop works "
        f"{arguments.busy:g} ms a step when it is alone; {os.cpu_count()} cores"
    )
    print(store("data-loaders", rows, notes, arguments.out))


if __name__ == "__main__":
    main()
