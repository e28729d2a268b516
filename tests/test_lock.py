"""One run at a time in a directory, and none for ever."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import dgan, end, start, wait_until, write_recipe
from ranks import run_ranks

from dgan.lock import InUse, Lock, hold
from dgan.parallel.world import launch

HOLD = """
import sys, time
from pathlib import Path
from dgan.lock import Lock
lock = Lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def elsewhere(path: Path) -> None:
    """A file as a process on another machine leaves it."""
    holder = {"host": "node7", "pid": 99, "since": "noon", "kernel": "another", "token": "x"}
    path.write_text(json.dumps(holder))


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE)
    try:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(InUse, match=rf"{tmp_path} is in use by process {process.pid} on "):
            Lock(path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    # What a killed process leaves does not hold anybody up.
    begin = time.monotonic()
    lock = Lock(path, dead_s=600)
    assert time.monotonic() - begin < 60
    lock.confirm()
    lock.release()
    assert not path.exists()


def test_a_holder_on_another_machine(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    elsewhere(path)
    # Here no kernel's lock tells: only that nothing beats.
    lock = Lock(path, dead_s=0.2)
    assert json.loads(path.read_text())["pid"] == os.getpid()
    elsewhere(path)  # it was alive after all, and took the directory back
    with pytest.raises(InUse, match=r"process 99 on node7, since noon took .* over"):
        lock.confirm()
    lock.release()
    assert path.exists()  # it is not ours to remove

    beat = "import os, sys, time\nwhile True: os.utime(sys.argv[1]); time.sleep(0.05)"
    process = subprocess.Popen([sys.executable, "-c", beat, path])
    try:
        with pytest.raises(InUse, match=r"in use by process 99 on node7, since noon"):
            Lock(path, dead_s=60)
    finally:
        process.kill()
        process.wait()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the heartbeat decides on one machine too."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / ".lock"
    first = Lock(path)
    with pytest.raises(InUse, match=rf"process {os.getpid()} on "):
        Lock(path, dead_s=60)
    first.release()
    Lock(path).release()


def test_a_file_that_says_nothing_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    for content in ("", "{", "[1]"):
        path.write_text(content)
        Lock(path).release()
        assert not path.exists()


def both_ranks(directory: Path) -> str:
    with launch(precision="float32") as world:
        try:
            with hold(directory, world):
                return "held"
        except InUse as error:
            return str(error)


def test_every_rank_ends_when_the_directory_is_held(tmp_path: Path) -> None:
    assert run_ranks(2, both_ranks, tmp_path) == ["held", "held"]
    lock = Lock(tmp_path / ".lock")
    first, second = run_ranks(2, both_ranks, tmp_path)
    assert first == second
    assert f"{tmp_path} is in use by process {os.getpid()}" in first
    lock.release()


def test_a_second_run_is_refused_and_a_killed_one_is_not_in_the_way(
    digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, "run", digits, train__steps=100_000)
    run = tmp_path / "run"
    process = start("train", recipe)
    kept = run / "checkpoints"
    wait_until(lambda: len(list(kept.glob("step-*/facts.json"))) > 0, process)
    message = dgan(capsys, "train", run).error()
    assert re.search(rf"{run} is in use by process {process.pid} on .* --run\.dir", message)
    assert process.poll() is None
    process.kill()
    end(process)
    step = max(int(path.parent.name[5:]) for path in kept.glob("step-*/facts.json"))
    again = dgan(capsys, "train", run, "--train.steps", step + 1)
    assert again.code == 0, again
    assert "going on from" in again.out
    assert not (run / ".lock").exists()
