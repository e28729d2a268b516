"""A rank that hangs: the others say where they stand and end, and the run goes on from its last
checkpoint."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from commands import (
    assert_same_checkpoint,
    checkpoint_of,
    end,
    metrics,
    wait_until,
    write_recipe,
)
from launched import launched, rank_of

from dgan.watchdog import START_AGAIN

PLAN = {"train__steps": 300, "checkpoint__every": 10, "train__deterministic": True}


def test_a_stopped_rank_is_noticed_and_the_run_goes_on(digits: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "run", digits, **PLAN)
    run = tmp_path / "run"
    process = launched("torchrun.sh", "train", recipe, "--run.stall_minutes", 0.1)
    wait_until(lambda: checkpoint_of(run, 20).exists(), process)
    os.kill(rank_of(process.pid, 1), signal.SIGSTOP)
    outcome = end(process)
    assert outcome.code == 0, outcome
    (said,) = re.findall(r"rank 0, step (\d+), phase '([a-z ]+)': nothing has moved", outcome.err)
    step, phase = int(said[0]), said[1]
    assert step >= 20
    assert re.search("update|checkpoint|reading data", phase)
    # It is the other rank that is stuck, which told this a moment before it was stopped.
    place = r"Rank 1 \(step (\d+), phase '[a-z ]+', \d+ s ago\) no longer told where it stands"
    (last,) = re.findall(place, outcome.err)
    assert 0 < int(last) <= step
    assert not (run / ".ranks").exists()
    # The stacks show the very line at which it waits.
    assert re.search(r"Thread 0x\w+ .*\(most recent call first\):", outcome.err)
    assert 'dgan/train.py", line' in outcome.err

    (resumed,) = re.findall(r"going on from \S+step-(\d+)", outcome.out)
    assert 20 <= int(resumed) <= step
    whole = write_recipe(tmp_path, "whole", digits, **PLAN)
    assert end(launched("torchrun.sh", "train", whole)).code == 0
    assert_same_checkpoint(checkpoint_of(run, 300), checkpoint_of(tmp_path / "whole", 300))
    assert metrics(run) == metrics(tmp_path / "whole")


def watch(body: str) -> subprocess.CompletedProcess[str]:
    """A process of its own that does `body` under a watchdog of 0.6 s, and 6 s at the start."""
    lines = [
        "import time",
        "from dgan.watchdog import Watchdog",
        "with Watchdog(rank=3, start_minutes=0.1, stall_minutes=0.01) as watchdog:",
        *(f"    {line}" for line in body.splitlines()),
        "print('done')",
    ]
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60
    )


def test_what_moves_is_left_alone() -> None:
    ended = watch("watchdog.settle()\nfor _ in range(10): time.sleep(0.2); watchdog.at('update')")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_the_start_may_take_longer() -> None:
    assert watch("time.sleep(2)").returncode == 0
    ended = watch("watchdog.at('checkpoint', 7)\nwatchdog.settle()\ntime.sleep(20)")
    assert ended.returncode == START_AGAIN
    assert "rank 3, step 7, phase 'checkpoint'" in ended.stderr
    assert "--run.stall_minutes" in ended.stderr
    assert "done" not in ended.stdout


def test_a_start_that_stalls_names_its_own_key() -> None:
    ended = watch("time.sleep(20)")
    assert ended.returncode == START_AGAIN
    assert "--run.start_minutes" in ended.stderr
