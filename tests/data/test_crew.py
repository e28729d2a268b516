"""Threads that nobody has to wait for: a read that never returns ends neither run nor program."""

import gc
import os
import subprocess
import sys
import threading
import time

import pytest
from shard_helpers import write_shards

from dgan.data import ShardStream
from dgan.data.crew import Crew
from dgan.data.patience import Patience


def silence(shard) -> None:
    """Has reading `shard` hang, as where a server is gone: nobody ever writes into the pipe."""
    shard.unlink()
    os.mkfifo(shard)


def release(shard) -> None:
    end = os.open(shard, os.O_RDWR)  # whoever waits for it to be opened goes on
    shard.unlink()
    os.close(end)
    for thread in threading.enumerate():
        if thread.name.startswith("dgan-data"):
            thread.join(5)
    gc.collect()  # what failed in them refers to open files


def test_a_read_that_never_returns_is_an_error_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr("dgan.data.stream._STUCK", 0.5)
    monkeypatch.setattr("dgan.data.stream._CLOSING", 0.2)
    monkeypatch.setattr("dgan.data.patience.PATIENCE", Patience(attempts=1))
    (shard,) = write_shards(tmp_path, [20])
    stream = ShardStream(shard, batch_size=4, workers=2, resolution=8, channels=1)
    silence(shard)
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=rf"reading {shard} has not come to an end in 0 s"):
        next(stream)
    assert stream.position == 0
    stream.close()
    assert time.monotonic() - begun < 5
    release(shard)


def test_a_program_ends_all_the_same(tmp_path):
    (shard,) = write_shards(tmp_path, [20])
    code = (
        "import os, dgan.data.stream as s\n"
        "s._STUCK = s._CLOSING = 0.3\n"
        f"with s.ShardStream({str(shard)!r}, batch_size=4, resolution=8, channels=1) as stream:\n"
        f"    os.unlink({str(shard)!r}), os.mkfifo({str(shard)!r})\n"
        "    next(stream)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"TimeoutError: reading {shard} has not come to an end" in done.stderr


def test_results_errors_and_what_is_cancelled():
    crew, gate, ran = Crew(1, "some"), threading.Event(), []
    blocked = crew.submit(gate.wait)
    cancelled = crew.submit(ran.append, 1)
    failing, good = crew.submit(int, "x"), crew.submit(pow, 2, 5)
    assert cancelled.cancel()
    gate.set()
    assert blocked.result(5)
    assert good.result(5) == 32
    with pytest.raises(ValueError, match="invalid literal"):
        failing.result(5)
    crew.close(5)
    assert not ran
    assert not any(thread.name.startswith("some") for thread in threading.enumerate())
