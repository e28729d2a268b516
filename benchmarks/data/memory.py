"""Whether a stream's memory grows: its resident memory after each of some epochs.

    python benchmarks/data/memory.py

Reads JPEGs of 128×128 in ten shards through `ShardStream` with two decoding threads, alone and as a
mixture, each in a process of its own.
"""

import argparse
import gc
import io
import json
import resource
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dgan.data import ShardStream

sys.path.insert(0, str(Path(__file__).parents[1]))
from report import store

SHARDS, PER_SHARD, SIZE = 10, 200, 128
KINDS = {"one data set": (), "a mixture of two": (3, 1)}


def make_shards(folder: Path) -> None:
    random = np.random.default_rng(0)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"train-{shard:06d}.tar", "w") as tar:
            for i in range(PER_SHARD):
                coarse = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
                buffer = io.BytesIO()
                coarse.resize((SIZE, SIZE)).save(buffer, "JPEG", quality=90)
                for name, data in (("jpg", buffer.getvalue()), ("cls", str(i % 10).encode())):
                    member = tarfile.TarInfo(f"{shard:02d}{i:04d}.{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def rss() -> float:
    """Memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def read(folder: Path, weights: tuple[float, ...], epochs: int, workers: int) -> list[float]:
    """Resident memory after each epoch."""
    shards = [str(folder / "train-00000[0-4].tar"), str(folder / "train-00000[5-9].tar")]
    found = []
    with ShardStream(shards, weights=weights, batch_size=50, workers=workers, flip=True) as stream:
        for _ in range(epochs):
            for _ in range(SHARDS * PER_SHARD // stream.batch_size):
                next(stream)
            gc.collect()
            found.append(round(rss(), 2))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("KIND", "FOLDER"), help="one measurement")
    arguments = parser.parse_args()
    if arguments.one:
        kind, folder = arguments.one
        print(json.dumps(read(Path(folder), KINDS[kind], arguments.epochs, arguments.workers)))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        make_shards(Path(folder))
        for kind in KINDS:
            options = ["--epochs", str(arguments.epochs), "--workers", str(arguments.workers)]
            command = [sys.executable, sys.argv[0], *options, "--one", kind, folder]
            found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            growth = 100 * (found[-1] / found[0] - 1)
            rows.append({"kind": kind, "rss_mb": found, "growth_percent": round(growth, 2)})
            print(rows[-1], flush=True)
    notes = (
        f"after each of {arguments.epochs} epochs of {SHARDS * PER_SHARD} JPEGs of {SIZE}×{SIZE}, "
        f"{arguments.workers} decoding threads; growth is from the first to the last"
    )
    print(store("data-memory", rows, notes, arguments.out))


if __name__ == "__main__":
    main()
