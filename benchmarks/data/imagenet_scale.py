"""A data set of ImageNet's size and the plans of 512 ranks, without its pictures.

    python benchmarks/data/imagenet_scale.py --folder FOLDER

Makes in `--folder`, unless it is there, 1,281 shards of 1,000 samples: sparse files as long as the
real ones, with the real thing's indexes, all of whose samples are one small picture. Measures what
it takes to open them, to resume, to know who reads what, and checks the latter for 512 ranks.
"""

import argparse
import io
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dgan.data import ShardStream
from dgan.data.index import ShardIndex, write_index
from dgan.data.order import Order

sys.path.insert(0, str(Path(__file__).parents[1]))
from report import median_row, store

SHARDS, PER_SHARD, CLASSES = 1281, 1000, 1000
N = SHARDS * PER_SHARD
SHARD_BYTES = 140_000_000
RANKS, BATCH = 512, 4096
PATTERN = f"train-{{000000..{SHARDS - 1:06d}}}.tar"


def make_shards(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    picture = buffer.getvalue()
    places = SHARD_BYTES - 100_000 + 512 * np.stack([np.zeros(PER_SHARD), np.ones(PER_SHARD)], 1)
    sizes = np.tile([len(picture), 3], (PER_SHARD, 1))
    for shard in range(SHARDS):
        path = folder / f"train-{shard:06d}.tar"
        with path.open("wb") as file:
            file.truncate(SHARD_BYTES)
            for place, data in zip(places[0].astype(int).tolist(), (picture, b"000")):
                file.seek(place)
                file.write(data)
        numbers = shard * PER_SHARD + np.arange(PER_SHARD)
        keys = np.array([f"n{n * CLASSES // N:08d}_{n:07d}".encode() for n in numbers.tolist()])
        index = ShardIndex(path, SHARD_BYTES, ("png", "cls"), keys, places.astype(np.int64), sizes)
        write_index(index, numbers * CLASSES // N)


def rss() -> float:
    """Memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def open_and_read(folder: Path, position: int, world_size: int) -> dict[str, Any]:
    """In a process of its own: opening, and the first batch of the last rank at `position`."""
    options = {"batch_size": 256, "rank": world_size - 1, "world_size": world_size}
    before, begun, busy = rss(), time.perf_counter(), time.process_time()
    with ShardStream(f"{folder}/{PATTERN}", resolution=8, channels=3, **options) as stream:
        assert stream.num_classes == CLASSES, "part of a start, as a run asks for it"
        opened, memory = time.perf_counter(), rss() - before
        busy = time.process_time() - busy
        state = {**stream.state_dict(), "position": position}
        restored = time.perf_counter()
        stream.load_state_dict(state)
        next(stream)
        first = time.perf_counter()
        return {
            "position": position,
            "world_size": world_size,
            "open_s": round(opened - begun, 3),
            "open_cpu_s": round(busy, 3),
            "first_batch_s": round(first - restored, 3),
            "index_rss_mb": round(memory, 1),
            "state_bytes": len(json.dumps(stream.state_dict())),
        }


def seconds(function: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    function()
    return round(time.perf_counter() - begun, 3)


def check_plans() -> dict[str, Any]:
    """What each of 512 ranks reads in an epoch and a thousand batches around its end.

    Each rank asks its own order for its own rows of each batch, as a stream does.
    """
    share, per_epoch = BATCH // RANKS, -(-N // BATCH)
    batches = per_epoch + 1000
    begun = time.perf_counter()
    plans = np.empty((batches, RANKS, share), np.int64)
    for rank in range(RANKS):
        order = Order(N, 1)
        for batch in range(batches):
            plans[batch, rank] = order.take(batch * BATCH + rank * share, share)
    spent = time.perf_counter() - begun
    shown = plans.ravel()
    assert (shown == Order(N, 1).take(0, len(shown))).all(), "the order of a single rank"
    first, second = shown[:N], shown[N : 2 * N]
    assert (np.bincount(first, minlength=N) == 1).all(), "an epoch is complete and disjoint"
    assert (np.bincount(second, minlength=N) <= 1).all(), "so is what was seen of the next"
    return {"ranks": RANKS, "batches": batches, "seconds_a_rank": round(spent / RANKS, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", type=int, nargs=2, help="position and world size: one measurement")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(open_and_read(arguments.folder, *arguments.one)))
        return
    if not (arguments.folder / f"train-{SHARDS - 1:06d}.tar.index.json").exists():
        make_shards(arguments.folder)
    rows: list[dict[str, Any]] = []
    command = [sys.executable, *sys.argv[:1], "--folder", str(arguments.folder), "--one"]
    places = ((0, 1), (700_160, 8), (N - 256, 64), (1000 * N + 12_345 * 256, 128))
    found: dict[tuple[int, int], list[dict[str, Any]]] = {place: [] for place in places}
    for _ in range(arguments.rounds):  # in turns, so that a slow minute falls on all of them
        for place in places:
            line = [*command, *map(str, place)]
            done = subprocess.run(line, check=True, capture_output=True)
            found[place].append(json.loads(done.stdout))
    for rounds in found.values():
        rows.append(median_row(rounds, "open_s"))
        print(rows[-1], flush=True)
    for name, samples in (("one_epochs_order_s", (0, N)), ("one_jump_s", (N // 2, 256))):
        times = [seconds(lambda take=samples: Order(N, 0).take(*take)) for _ in range(9)]
        rows.append({name: statistics.median(times)})
    rows.append(check_plans())
    print(rows[-3:])
    notes = (
        f"{SHARDS} shards of {PER_SHARD} samples with indexes beside them, warm; each opening in a "
        "process of its own, imports not counted, labels counted; medians of "
        f"{arguments.rounds} rounds (open_cpu_s is this process's own time); a "
        "batch is 256 samples of 8×8 over all ranks"
    )
    print(store("data-imagenet-scale", rows, notes, arguments.out))


if __name__ == "__main__":
    main()
