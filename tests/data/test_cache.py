"""The cache: whole or absent, whoever dies; one download for all; never larger than allowed."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pytest
from shard_helpers import write_shards
from web_server import Fault, serving

from dgan.data import ShardDataset, ShardStream
from dgan.data.aside import written_aside
from dgan.data.cache import Cache, default_folder
from dgan.data.indexing import index_shards

SPAWN = multiprocessing.get_context("fork")


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def entry(folder: Path) -> Path:
    (path,) = [path for path in files(folder) if not path.name.endswith(".partial")]
    return path


def held(folder: Path) -> int:
    """Bytes of what lies there, while others may be at it."""
    total = 0
    for path in files(folder):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def never() -> bytes:
    raise AssertionError("it is in the cache")


def test_an_entry_is_made_once(tmp_path):
    cache = Cache(tmp_path)
    made = []
    for begin, end in ((0, 4), (1, 3), (3, 4)):
        data = cache.read("a", 4, lambda: made.append(0) or b"1234", begin, end)
        assert data == b"1234"[begin:end]
    assert len(made) == 1
    assert Cache(tmp_path).read("a", 4, never) == b"1234"
    assert cache.read("b", 4, lambda: b"5678") == b"5678"
    cache.forget("a")
    assert cache.read("a", 4, lambda: b"anew") == b"anew"


@pytest.mark.parametrize("left", [b"", b"12", b"12345"])
def test_an_entry_of_another_size_is_never_taken_for_whole(tmp_path, left):
    cache = Cache(tmp_path)
    cache.read("a", 4, lambda: b"1234")
    entry(tmp_path).write_bytes(left)
    assert not cache.has("a", 4)
    assert cache.read("a", 4, lambda: b"anew", 0, 2) == b"an"
    assert cache.read("a", 4, never) == b"anew"


def test_a_failure_leaves_nothing(tmp_path):
    cache = Cache(tmp_path)
    with pytest.raises(OSError, match="gone"):
        cache.read("a", 4, fail)
    assert files(tmp_path) == []
    assert cache.read("a", 4, lambda: b"1234") == b"1234"


def fail() -> bytes:
    raise OSError("gone")


def test_threads_wait_for_one_of_them(tmp_path):
    cache, made = Cache(tmp_path), []

    def make() -> bytes:
        made.append(0)
        time.sleep(0.2)
        return b"1234"

    threads = [
        threading.Thread(target=cache.read, args=("a", 4, make), daemon=True) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert len(made) == 1


def hold(folder: Path, ready, killed: bool) -> None:
    def make() -> bytes:
        ready.set()
        time.sleep(60)
        return b"late"

    Cache(folder).read("a", 4, make)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_others_take_over_from_a_process_that_is_killed_or_stopped(tmp_path, how):
    ready = SPAWN.Event()
    process = SPAWN.Process(target=hold, args=(tmp_path, ready, True))
    process.start()
    try:
        assert ready.wait(10)
        assert process.pid is not None
        os.kill(process.pid, how)
        begun = time.monotonic()
        cache = Cache(tmp_path, wait=0.5)
        assert cache.read("a", 4, lambda: b"1234") == b"1234"
        assert time.monotonic() - begun < 3
        assert cache.read("a", 4, never) == b"1234"
    finally:
        process.kill()
        process.join()


def test_what_the_dead_left_is_removed(tmp_path):
    ready = SPAWN.Event()
    process = SPAWN.Process(target=hold, args=(tmp_path, ready, True))
    process.start()
    assert ready.wait(10)
    (left,) = files(tmp_path)
    assert left.name.endswith(".partial")
    Cache(tmp_path).read("b", 1, lambda: b"1")  # the first entry of a process: it looks around
    assert left.exists()  # its maker is alive
    process.kill()
    process.join()
    Cache(tmp_path).read("c", 1, lambda: b"1")
    assert not left.exists()


def test_the_oldest_entries_go_first(tmp_path):
    cache = Cache(tmp_path, 100e-6)  # 100 kB
    for i in range(50):
        cache.read(str(i), 5000, lambda: bytes(5000))
        if i:
            path = cache._path(str(i))
            os.utime(path, (i, i))  # so long ago that no clock's grain matters
            cache.read("0", 5000, lambda: bytes(5000))
        assert sum(path.stat().st_size for path in files(tmp_path)) <= 105_000
    kept = [i for i in range(50) if cache.has(str(i), 5000)]
    assert kept[0] == 0  # used again and again
    assert kept[1:] == list(range(50 - len(kept) + 1, 50))
    assert 14 <= len(kept) <= 20


def test_what_is_written_while_others_are_removed_counts_too(tmp_path, monkeypatch):
    cache, usage = Cache(tmp_path, 100e-6), shutil.disk_usage

    def slow(path: Path):
        time.sleep(0.2)  # the others have written all of theirs meanwhile
        return usage(path)

    monkeypatch.setattr("shutil.disk_usage", slow)
    threads = [
        threading.Thread(target=cache.put, args=(str(i), bytes(5000)), daemon=True)
        for i in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 100_000


def test_a_cache_that_cannot_be_written_is_told_once_and_done_without(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file" / "cache")
    with pytest.warns(UserWarning, match="cannot be written"):
        data = cache.read("a", 4, lambda: b"1234")
    assert data == b"1234"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.read("a", 4, lambda: b"1234") == b"1234"
        cache.put("b", b"1")


def test_a_full_disk_is_done_without(tmp_path, monkeypatch):
    cache = Cache(tmp_path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.warns(UserWarning, match="No space left"):
        data = cache.read("a", 4, lambda: b"1234")
    assert data == b"1234"
    assert files(tmp_path) == []


def test_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("DGAN_CACHE", str(tmp_path / "a"))
    assert default_folder() == tmp_path / "a"
    monkeypatch.delenv("DGAN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert Cache().folder == tmp_path / "b" / "dgan"
    assert Cache(tmp_path).folder == tmp_path
    for size in (-1.0, 0.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="gigabytes"):
            Cache(tmp_path, size)


# --- files written aside


def test_what_is_written_aside_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    target, synced = tmp_path / "new" / "x.json", []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    with written_aside(target) as file:
        file.write(b"old")
        assert not target.exists()
    assert synced == []
    (tmp_path / "plain").touch()
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(TypeError), written_aside(target) as file:
        file.writelines([b"half", None])  # type: ignore[list-item]
    assert [(path.name, path.read_bytes()) for path in files(target.parent)] == [("x.json", b"old")]
    with written_aside(target, sync=True) as file:
        file.write(b"newer")
    assert (synced, target.read_bytes()) == ([5], b"newer")


def test_two_who_write_the_same_file_never_mix(tmp_path):
    target, stop = tmp_path / "x", threading.Event()
    contents, failed = {bytes([i]) * 200_000 for i in range(3)}, []

    def write(content: bytes) -> None:
        try:
            while not stop.is_set():
                with written_aside(target) as file:
                    for begin in range(0, len(content), 50_000):
                        file.write(content[begin : begin + 50_000])
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    try:
        while not target.exists():
            time.sleep(0.001)
        assert all(target.read_bytes() in contents for _ in range(200))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert files(tmp_path) == [target]


# --- through streams


def read_all(url: str, folder: Path, rank: int, results) -> None:
    with ShardStream(
        url, batch_size=20, rank=rank, world_size=2, cache=folder, workers=2
    ) as stream:
        results.put((rank, [batch["__key__"] for batch in islice(stream, 10)]))


def test_two_processes_share_one_download(tmp_path, monkeypatch):
    monkeypatch.setattr("dgan.data.remote.BLOCK", 1 << 14)
    shards = write_shards(tmp_path, [40, 17, 43])
    url = "/train-{000000..000002}.tar"
    with serving(tmp_path, latency=0.01) as server:
        results = SPAWN.Queue()
        ranks = [
            SPAWN.Process(target=read_all, args=(server.url + url, tmp_path / "c", rank, results))
            for rank in (0, 1)
        ]
        for process in ranks:
            process.start()
        shown = dict(results.get(timeout=30) for _ in ranks)
        for process in ranks:
            process.join(10)
            assert process.exitcode == 0
        asked = [(path, wanted) for path, wanted, _ in server.requests]
        blocks = [a for a in asked if a[0].endswith(".tar") and a[1] != "bytes=0-0"]
        assert len(blocks) == len(set(blocks))
    with ShardStream(shards, batch_size=20) as stream:
        local = [batch["__key__"] for batch in islice(stream, 10)]
    assert [a + b for a, b in zip(shown[0], shown[1])] == local


SCRIPT = """
import sys
from itertools import islice
import dgan.data.remote
from dgan.data import ShardStream
dgan.data.remote.BLOCK = 1 << 14
with ShardStream(sys.argv[1], batch_size=10, cache=sys.argv[2], workers=2) as stream:
    for batch in islice(stream, 10):
        print(*batch["__key__"], flush=True)
"""


def test_kill_in_the_middle_of_caching_leaves_nothing_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr("dgan.data.remote.BLOCK", 1 << 14)
    (shard,) = write_shards(tmp_path, [100])
    folder = tmp_path / "cache"
    slow = Fault("slow", rate=60_000.0, whole=False)
    with serving(tmp_path, slow) as server:
        url = f"{server.url}/train-000000.tar"
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, url, str(folder)])
        until = time.monotonic() + 60
        while len(files(folder)) < 3 and time.monotonic() < until:  # some whole, one under way
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        left = files(folder)
        assert any(path.name.endswith(".partial") for path in left)
        server.faults.clear()
        server.requests.clear()
        with ShardDataset(url, cache=folder) as dataset, ShardDataset(shard) as local:
            for there, here in zip(dataset, local, strict=True):
                assert there["__key__"] == here["__key__"]
                assert (there["image"] == here["image"]).all()
        whole = -(-shard.stat().st_size // (1 << 14))
        assert 0 < len(server.asked(r"\.tar$")) < whole  # what was whole is not fetched again
    assert not any(path.name.endswith(".partial") for path in files(folder))


def read_on(url: str, folder: Path, rank: int, file: Path) -> None:
    """Batches after those that `file` holds, their keys a line each."""
    done = file.read_text().count("\n") if file.exists() else 0
    with ShardStream(
        url, batch_size=20, seed=2, rank=rank, world_size=2, cache=folder, workers=2
    ) as stream:
        stream.load_state_dict({**stream.state_dict(), "position": 20 * done})
        with file.open("a") as lines:
            for batch in islice(stream, 20 - done):
                values = batch["image"][:, 0, 0, 0].tolist()
                assert values == [int(key) % 251 for key in batch["__key__"]]
                lines.write(" ".join(batch["__key__"]) + "\n")
                lines.flush()


def test_one_of_two_processes_is_killed_and_no_sample_is_lost_or_there_twice(tmp_path, monkeypatch):
    """It is killed while it fetches into the cache that both share, and started again."""
    monkeypatch.setattr("dgan.data.remote.BLOCK", 1 << 12)
    shards = write_shards(tmp_path, [160, 70, 170])
    list(index_shards(shards))  # else all of them would be in the cache before the first batch
    folder, files_of = tmp_path / "cache", [tmp_path / "0.txt", tmp_path / "1.txt"]
    slow = Fault("slow", rate=60_000.0, whole=False)
    with serving(tmp_path, slow) as server:
        url = server.url + "/train-{000000..000002}.tar"

        def begin(rank: int):
            process = SPAWN.Process(target=read_on, args=(url, folder, rank, files_of[rank]))
            process.start()
            return process

        both, until = [begin(0), begin(1)], time.monotonic() + 30
        while time.monotonic() < until:  # until it is in the middle of its work
            some = [path for path in files(folder) if path.name.endswith(".partial")]
            if some and files_of[1].exists() and files_of[1].stat().st_size:
                break
            time.sleep(0.002)
        both[1].kill()
        both[1].join()
        assert both[1].exitcode == -signal.SIGKILL
        before = files_of[1].read_text().count("\n")
        server.faults.clear()
        both[1] = begin(1)
        for process in both:
            process.join(30)
            assert process.exitcode == 0
    assert 0 < before < 20
    lines = [path.read_text().splitlines() for path in files_of]
    keys = [key for a, b in zip(*lines, strict=True) for key in f"{a} {b}".split()]
    assert sorted(keys) == [f"{i:05d}" for i in range(400)]  # an epoch, each exactly once
    with ShardStream(shards, batch_size=20, seed=2) as stream:
        assert keys == [key for batch in islice(stream, 20) for key in batch["__key__"]]
    assert not any(path.name.endswith(".partial") for path in files(folder))


def test_a_cache_smaller_than_the_data_works_and_stays_small(tmp_path, monkeypatch):
    monkeypatch.setattr("dgan.data.remote.BLOCK", 1 << 14)
    write_shards(tmp_path, [100, 100])
    with serving(tmp_path) as server:
        url = f"{server.url}/train-{{000000..000001}}.tar"
        with ShardStream(url, batch_size=50, cache=tmp_path / "c", cache_gigabytes=1e-4) as stream:
            for _ in range(2):
                keys = [key for batch in islice(stream, 4) for key in batch["__key__"]]
                assert len(set(keys)) == 200
    # Blocks that were under way when the stream was closed may still come, and are then looked at.
    limit = time.monotonic() + 30
    while held(tmp_path / "c") > 100_000:
        assert time.monotonic() < limit, f"{held(tmp_path / 'c'):,} bytes are kept"
        time.sleep(0.02)
