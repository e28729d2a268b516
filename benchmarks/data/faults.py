"""How often each sample arrives where servers fail and readers are killed: counts, no timings.

    python benchmarks/data/faults.py --shards 'SHARDS/*.tar'

Two ranks read whole epochs of the shards (or of some that are made, if none are named), decoded to
64×64, from a web server behind a fault injector, from the same server as a bucket, and from moto's
S3 server; then single readers are killed (kill -9) while they fill a cache that holds half of the
data, and the next one goes on from the last batch that was reported. Each sample is to arrive once
an epoch, with its pixels.
"""

import argparse
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import dgan.data.remote
from dgan.data import ShardStream, expand
from dgan.data.indexing import index_shards

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "data"))
from shard_helpers import write_shards
from web_server import Fault, serving

from report import store

BATCH, RANKS, BUCKET = 50, 2, "shards"
SMALL_BLOCK = 1 << 16  # so that there are many to be cached
VIEW: dict[str, Any] = {"resolution": 64, "channels": 3, "crop": "centre"}
FAULTS = (
    Fault("reset"), Fault("reset", at=0), Fault("truncate"), Fault("closed"), Fault("stall"),
    Fault("length", whole=False), Fault("shifted", whole=False), Fault("status"),
    Fault("status", status=500), Fault("status", status=429, headers={"Retry-After": "0"}),
    Fault("corrupt", at=20_000, whole=False),
)  # fmt: skip
Shown = list[tuple[str, str]]
"""Key and a hash of the pixels of each sample, in order."""


def shown(batch: dict[str, Any]) -> Shown:
    pixels = (hashlib.sha256(image.numpy().tobytes()).hexdigest()[:16] for image in batch["image"])
    return list(zip(batch["__key__"], pixels))


def read(where: Any, cache: Path, steps: int) -> tuple[Shown, int]:
    """What all ranks are shown, side by side, and how many samples they skipped."""
    options = {"batch_size": BATCH, "world_size": RANKS, "workers": 2, "cache": cache, **VIEW}
    streams = [ShardStream(where, rank=rank, **options) for rank in range(RANKS)]
    parts: list[list[Shown]] = [[] for _ in streams]

    def go(rank: int) -> None:
        parts[rank] = [shown(batch) for batch in islice(streams[rank], steps)]

    threads = [threading.Thread(target=go, args=(rank,)) for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    skipped = sum(stream.skipped.total() for stream in streams)
    for stream in streams:
        stream.close()
    return [sample for batch in zip(*parts) for part in batch for sample in part], skipped


def counts(what: str, found: Shown, skipped: int, expected: Shown, n: int) -> dict[str, Any]:
    """How often the samples of each epoch arrived. Raises AssertionError unless each did once."""
    epochs = [Counter(key for key, _ in found[at : at + n]) for at in range(0, len(found), n)]
    row = {
        "what": what,
        "samples": n,
        "epochs": len(epochs),
        "arrived": len(found),
        "lost": sum(n - len(epoch) for epoch in epochs),
        "twice": sum(count > 1 for epoch in epochs for count in epoch.values()),
        "skipped": skipped,
        "as_from_disk": sum(a == b for a, b in zip(found, expected)),
    }
    assert row["lost"] == row["twice"] == skipped == 0, row
    assert found == expected[: len(found)], "another order or other pixels than from the disk"
    return row


def behind_faults(folder: Path, steps: int, scheme: str) -> tuple[Shown, int, dict[str, int]]:
    faults = [Fault(**{**vars(fault), "times": 3, "seconds": 1.0}) for fault in FAULTS]
    pattern = f"{BUCKET}/{{{','.join(sorted(path.name for path in folder.glob('*.tar')))}}}"
    with serving(folder.parent, *faults) as server, tempfile.TemporaryDirectory() as cache:
        where = f"{server.url}/{pattern}" if scheme == "http" else f"s3://{pattern}"
        with credentials(server.url):
            found, skipped = read(where, Path(cache), steps)
        happened = sum(3 - fault.times for fault in faults)
        return found, skipped, {"faults": happened, "requests": len(server.requests)}


def from_moto(folder: Path, steps: int) -> tuple[Shown, int, dict[str, int]]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with credentials(f"http://{host}:{port}"), tempfile.TemporaryDirectory() as cache:
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        for path in sorted(folder.glob("*.tar")):
            client.upload_file(str(path), BUCKET, path.name)
        found, skipped = read(f"s3://{BUCKET}/*.tar", Path(cache), steps)
    server.stop()
    return found, skipped, {}


@contextmanager
def credentials(endpoint: str) -> Any:
    names = {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
    names |= {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "secret"}
    before = dict(os.environ)
    os.environ.update(names)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def child(where: str, cache: str, gigabytes: float, position: int) -> None:
    """Reads from `position` on, for ever; a line for each batch."""
    dgan.data.remote.BLOCK = SMALL_BLOCK
    options = {"cache": cache, "cache_gigabytes": gigabytes, "workers": 2, **VIEW}
    with ShardStream(where, batch_size=BATCH, **options) as stream:
        stream.load_state_dict({**stream.state_dict(), "position": position})
        for batch in stream:
            print(json.dumps([stream.position, stream.skipped.total(), shown(batch)]), flush=True)


def killed(folder: Path, steps: int, kills: int) -> tuple[Shown, int, dict[str, int]]:
    """Readers that are killed at any time, whose cache holds what dead ones left."""
    choose, found, skipped = random.Random(0), [], 0
    gigabytes = sum(path.stat().st_size for path in folder.glob("*.tar")) / 2e9
    pattern = f"{BUCKET}/{{{','.join(sorted(path.name for path in folder.glob('*.tar')))}}}"
    happened = left = 0
    with serving(folder.parent, latency=0.02) as server, tempfile.TemporaryDirectory() as cache:
        while len(found) < steps * BATCH:
            line = [sys.executable, __file__, "--child", f"{server.url}/{pattern}", cache]
            line += [str(gigabytes), str(len(found))]
            before = len(server.asked())
            reader = subprocess.Popen(line, stdout=subprocess.PIPE)
            assert reader.stdout is not None
            if happened < kills:
                until = time.monotonic() + 10
                while len(server.asked()) == before and time.monotonic() < until:
                    time.sleep(0.002)
                time.sleep(choose.uniform(0.0, 0.5))  # its first blocks are on their way, or later
                reader.send_signal(signal.SIGKILL)
                happened += 1
            for text in reader.stdout:
                if not text.endswith(b"\n") or len(found) >= steps * BATCH:
                    break  # the former: it was killed while it wrote
                position, skipped, samples = json.loads(text)
                found += [(key, pixels) for key, pixels in samples]
                assert position == len(found)
            reader.kill()
            reader.wait()
            left += sum(1 for _ in Path(cache).rglob("*.partial"))
    return (
        found,
        skipped,
        {"kills": happened, "files_aside": left, "requests": len(server.requests)},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shards", default="", help="of images; made ones if none are named")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--out", type=Path, help="instead of benchmarks/results/<device>")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        where, cache, gigabytes, position = arguments.child
        return child(where, cache, float(gigabytes), int(position))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / BUCKET
        folder.mkdir()
        given: Iterable[Path] = expand(arguments.shards) if arguments.shards else ()
        shards = [Path(shutil.copy(path, folder / path.name)) for path in given]
        shards = shards or write_shards(folder, [400, 170, 430])
        list(index_shards(shards))  # so that the shards' bytes are fetched under way, not at once
        n = len(ShardStream(shards, batch_size=BATCH, **VIEW).dataset)
        steps = arguments.epochs * n // BATCH
        expected, _ = read(shards, Path(name) / "none", steps)
        rows = []
        for what, result in (
            ("HTTP behind a fault injector", behind_faults(folder, steps, "http")),
            ("S3 behind a fault injector", behind_faults(folder, steps, "s3")),
            ("S3, moto's server", from_moto(folder, steps)),
            ("kill -9 while a cache is filled", killed(folder, steps, arguments.kills)),
        ):
            found, skipped, more = result
            rows.append({**counts(what, found, skipped, expected, n), **more})
            print(rows[-1], flush=True)
    source = "shards of real photographs" if arguments.shards else "made shards"
    notes = f"counts over {len(shards)} {source}; two ranks, but for kill -9; all decoded to 64×64"
    print(store("data-faults", rows, notes, arguments.out))


if __name__ == "__main__":
    main()
