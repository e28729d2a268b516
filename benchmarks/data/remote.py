"""Images a second from a web server with latency: a request a sample, a block, or a shard.

    python benchmarks/data/remote.py --folder FOLDER

Makes shards of 256×256 JPEGs (about 20 KB) in `--folder` if it has none, serves them from another
process that waits `--latency` before each answer and sends at `--rate` on each connection, and
reads batches through `ShardStream` with an empty cache for `--seconds` or one window of the order.
"""

import argparse
import http.server
import io
import multiprocessing
import re
import sys
import tarfile
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import dgan.data.remote
from dgan.data import ShardStream
from dgan.data.index import scan, write_index

sys.path.insert(0, str(Path(__file__).parents[1]))
from report import median_row, store

MODES = {"sample": None, "256 KiB": 1 << 18, "1 MiB": 1 << 20, "2 MiB": 2 << 20, "4 MiB": 4 << 20,
         "8 MiB": 8 << 20, "shard": 1 << 34}  # fmt: skip


def make_shards(folder: Path, count: int, samples: int = 1000, distinct: int = 200) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random, pictures = np.random.default_rng(0), []
    for _ in range(distinct):
        coarse = random.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC).save(
            buffer, "JPEG", quality=90
        )
        pictures.append(buffer.getvalue())
    for shard in range(count):
        path = folder / f"train-{shard:06d}.tar"
        with tarfile.open(path, "w") as tar:
            for i in range(samples):
                member = tarfile.TarInfo(f"{shard:04d}{i:06d}.jpg")
                data = pictures[(shard * samples + i) % distinct]
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        write_index(scan(path))


class Handler(http.server.SimpleHTTPRequestHandler):
    """One range of one file, late and not too fast."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    folder, latency, rate = Path(), 0.0, 0.0
    sent: Any = None

    def log_message(self, *_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pass

    def do_GET(self) -> None:
        path = self.folder / self.path.lstrip("/")
        time.sleep(self.latency)
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        begin, end = map(int, re.findall(r"\d+", self.headers.get("Range") or f"0-{size - 1}"))
        end = min(end, size - 1)
        self.send_response(206)
        self.send_header("ETag", f'"{path.stat().st_mtime_ns:x}"')
        self.send_header("Content-Range", f"bytes {begin}-{end}/{size}")
        self.send_header("Content-Length", str(end + 1 - begin))
        self.end_headers()
        with path.open("rb") as file, suppress(ConnectionError):
            file.seek(begin)
            left, due = end + 1 - begin, time.monotonic()
            while left:
                data = file.read(min(left, 1 << 18))
                self.wfile.write(data)
                left -= len(data)
                due += len(data) / self.rate
                time.sleep(max(0.0, due - time.monotonic()))
        with self.sent.get_lock():
            self.sent[0] += 1
            self.sent[1] += end + 1 - begin


def serve(port: Any, folder: Path, latency: float, rate: float, sent: Any) -> None:
    Handler.folder, Handler.latency, Handler.rate, Handler.sent = folder, latency, rate, sent
    http.server.ThreadingHTTPServer.request_queue_size = 128
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.put(server.server_address[1])
    server.serve_forever()


@contextmanager
def served(folder: Path, latency: float, rate: float) -> Any:
    context = multiprocessing.get_context("spawn")
    port, sent = context.Queue(), context.Array("q", 2)
    process = context.Process(target=serve, args=(port, folder, latency, rate, sent), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port.get(timeout=60)}", sent
    finally:
        process.kill()
        process.join()


def measure(shards: str, seconds: float, **options: Any) -> dict[str, Any]:
    """Opening time, time to the first batch of 64, and images a second from then on."""
    begun = time.monotonic()
    with ShardStream(shards, batch_size=64, resolution=256, channels=3, **options) as stream:
        opened = time.monotonic()
        next(stream)
        first = time.monotonic()
        images = 0
        while time.monotonic() - first < seconds and images < 16_384:
            next(stream)
            images += 64
        spent = time.monotonic() - first
        assert not stream.skipped, stream.drain_skipped()
    return {
        "open_s": round(opened - begun, 2),
        "first_batch_s": round(first - opened, 2),
        "images_per_s": round(images / spent),
        "images": images,
    }


def measure_mode(
    mode: str, shards: str, arguments: argparse.Namespace, sent: Any
) -> dict[str, Any]:
    block = MODES.get(mode)
    dgan.data.remote.BLOCK = block or dgan.data.remote.BLOCK
    before = list(sent)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as cache:
        options = {"workers": arguments.workers, "cache": cache}
        options["cache_gigabytes"] = 50.0 if block else 0.0
        row = {"unit": mode, **measure(shards, arguments.seconds, **options)}
    row["requests"] = sent[0] - before[0]
    row["bytes_per_image"] = round((sent[1] - before[1]) / (row["images"] + 64))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--count", type=int, default=80)
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--rate", type=float, default=100e6, help="bytes a second a connection")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--modes", nargs="*", default=list(MODES))
    parser.add_argument("--out", type=Path, help="instead of benchmarks/results/<device>")
    arguments = parser.parse_args()
    if not any(arguments.folder.glob("train-*.tar")):
        make_shards(arguments.folder, arguments.count)
    pattern = f"train-{{000000..{arguments.count - 1:06d}}}.tar"
    found: dict[str, list[dict[str, Any]]] = {mode: [] for mode in ("disk", *arguments.modes)}
    with served(arguments.folder, arguments.latency, arguments.rate) as (url, sent):
        for _ in range(arguments.rounds):  # in turns, so that a slow minute falls on all of them
            for mode, rounds in found.items():
                where = arguments.folder if mode == "disk" else url
                rounds.append(measure_mode(mode, f"{where}/{pattern}", arguments, sent))
                print(rounds[-1], flush=True)
    notes = (
        f"medians of {arguments.rounds} rounds; {arguments.count} shards of 1,000 JPEGs of "
        f"256×256, {arguments.workers} decoding threads, {arguments.latency * 1e3:.0f} ms before "
        f"each answer, {arguments.rate / 1e6:.0f} MB/s a connection; the cache is empty at first; "
        "bytes include sidecars and what was fetched ahead"
    )
    rows = [median_row(rounds, "images_per_s") for rounds in found.values()]
    print(store("data-remote", rows, notes, arguments.out))


if __name__ == "__main__":
    main()
