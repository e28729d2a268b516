"""Megabytes of tar a second over which indexes are built, beside tarfile and the disk.

    python benchmarks/data/index.py --folder FOLDER

Makes shards of pictures of 20 KB with labels in `--folder` if it has none. `tarfile` lists members
and does no more; `index` finds samples, reads labels and writes the index beside each shard;
`checksums` takes the sha256 as well; `read` reads all bytes. With `--cold` the shards are dropped
from the page cache before each measurement.
"""

import argparse
import io
import os
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from dgan.data.indexing import Indexer, index_shards

sys.path.insert(0, str(Path(__file__).parents[1]))
from report import store


def make_shards(folder: Path, count: int, samples: int, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for shard in range(count):
        with tarfile.open(folder / f"train-{shard:06d}.tar", "w") as tar:
            for i in range(samples):
                for field, data in (("jpg", random.bytes(size)), ("cls", b"%d" % (i % 1000))):
                    member = tarfile.TarInfo(f"{shard:04d}{i:06d}.{field}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def list_members(shards: Sequence[Path]) -> None:
    for shard in shards:
        with tarfile.open(shard, "r:") as tar:
            assert [(m.name, m.offset_data, m.size) for m in tar]


def index(shards: Sequence[Path], workers: int, checksums: bool = False) -> None:
    for _ in index_shards(shards, Indexer(checksums=checksums), workers=workers):
        pass


def read(shards: Sequence[Path]) -> None:
    for shard in shards:
        with shard.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def drop(shards: Sequence[Path]) -> None:
    """Has the system forget the shards' bytes, but for what it cannot."""
    for shard in shards:
        with shard.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


MODES: dict[str, Callable[[Sequence[Path]], None]] = {
    "tarfile": list_members,
    "index, 1 process": partial(index, workers=1),
    "index, 2 processes": partial(index, workers=2),
    "checksums, 1 process": partial(index, workers=1, checksums=True),
    "checksums, 2 processes": partial(index, workers=2, checksums=True),
    "read": read,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--size", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--out", type=Path, help="instead of benchmarks/results/<device>")
    arguments = parser.parse_args()
    if not any(arguments.folder.glob("train-*.tar")):
        make_shards(arguments.folder, arguments.count, arguments.samples, arguments.size)
    shards = sorted(arguments.folder.glob("train-*.tar"))
    megabytes = sum(shard.stat().st_size for shard in shards) / 1e6
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    for _ in range(arguments.rounds):  # in turns, so that a slow minute falls on all of them
        for mode, run in MODES.items():
            if arguments.cold:
                drop(shards)
            begun = time.perf_counter()
            run(shards)
            seconds[mode].append(time.perf_counter() - begun)
    rows = []
    for mode, times in seconds.items():
        speeds = [round(megabytes / spent) for spent in times]
        rows.append({"what": mode, "mb_per_s": statistics.median(speeds), "all": speeds})
        print(rows[-1])
    notes = (
        f"the median of {arguments.rounds} rounds, {'cold' if arguments.cold else 'cached'}; "
        f"{len(shards)} shards, {megabytes:,.0f} MB"
    )
    print(store("data-index-cold" if arguments.cold else "data-index", rows, notes, arguments.out))


if __name__ == "__main__":
    main()
