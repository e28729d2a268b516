"""`dgan doctor`: what it prints where all is well, and what it says where it is not."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import Outcome, dgan, end
from launched import launched
from ports import free_port
from ranks import run_ranks

from dgan.doctor import Report, clocks, leftovers, shared_folder
from dgan.parallel.world import launch


def test_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = dgan(capsys, "doctor", "--folder", tmp_path / "runs")
    assert outcome.code == 0, outcome
    for name in ("torch", "NCCL", "gloo", "devices", "free disk", "clocks"):
        assert re.search(rf"^{name} +\S", outcome.out, flags=re.MULTILINE), outcome.out
    assert outcome.out.endswith("nothing is wrong\n")
    assert list((tmp_path / "runs").iterdir()) == []


def test_under_torchrun(tmp_path: Path) -> None:
    outcome = end(launched("torchrun.sh", "doctor", "--folder", tmp_path))
    assert outcome.code == 0, outcome
    assert re.search(r"^ranks +2, met in", outcome.out, flags=re.MULTILINE)
    (speed,) = re.findall(r"^all-reduce +(\S+) GB/s a rank", outcome.out, flags=re.MULTILINE)
    assert float(speed) > 0
    assert "seen by 2 of 2" in outcome.out
    assert outcome.out.count("nothing is wrong") == 1  # one rank speaks for all


def processes(folders: list[Path], started: int, port: int) -> list[Outcome]:
    """The command as `started` of the ranks, each with its own folder."""
    running = []
    for rank in range(started):
        place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable,
            "-m",
            "dgan",
            "doctor",
            "--timeout",
            "5" if started == 1 else "60",
        ]
        running.append(
            subprocess.Popen(
                [*command, "--folder", str(folders[rank])],
                env={**os.environ, **place, **meeting},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return [end(process) for process in running]


def test_a_folder_that_one_rank_does_not_see(tmp_path: Path) -> None:
    first, second = processes([tmp_path / "a", tmp_path / "b"], 2, free_port())
    assert first.code == second.code == 1
    assert "seen by 1 of 2" in first.out
    assert "WRONG: rank 1 does not see in " in first.out
    assert "--run.dir" in first.out
    assert second.out == ""


def test_a_rank_that_does_not_come(tmp_path: Path) -> None:
    port = free_port()
    (first,) = processes([tmp_path], 1, port)
    assert first.code == 1
    assert "WRONG: rank 0 of 2 does not reach the others within 5 s" in first.out
    assert f"127.0.0.1:{port}" in first.out
    assert "Traceback" not in first.out + first.err


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = dgan(capsys, "doctor", "--folder", tmp_path / "file" / "runs")
    assert outcome.code == 1
    assert "WRONG: " in outcome.out
    assert "cannot be written" in outcome.out


def clocks_apart(seconds: float) -> Report:
    """What is said of clocks of which the second is set wrong."""
    report = Report()
    true_time = time.time
    with launch() as world:
        if world.rank == 1:
            time.time = lambda: true_time() + seconds
        clocks(report, world)
    return report


def test_a_clock_that_is_wrong() -> None:
    assert run_ranks(2, clocks_apart, 0.0)[0].problems == []
    (problem,) = run_ranks(2, clocks_apart, -300.0)[0].problems
    assert re.match(r"the clock of rank 0 is (299|300)\.\d s ahead of that of rank 1", problem)


def test_a_lock_that_a_killed_build_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    report = Report()
    leftovers(report)
    assert report.problems == []  # somebody may be building right now
    an_hour_ago = time.time() - 3600
    os.utime(lock, (an_hour_ago, an_hour_ago))
    leftovers(report)
    (problem,) = report.problems
    assert f"{lock} is 60 minutes old" in problem


def shared(folder: Path) -> Report:
    report = Report()
    with launch() as world:
        shared_folder(report, world, folder)
    return report


def test_nothing_is_left_in_the_folder(tmp_path: Path) -> None:
    for report in run_ranks(2, shared, tmp_path):
        assert report.problems == []
    assert list(tmp_path.iterdir()) == []


def test_a_bad_timeout(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--timeout is 0" in dgan(capsys, "doctor", "--timeout", 0).error()
