"""A disk that is full, and a directory that is in use."""

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random

from broken import STILL_S, BrokenRun, Job
from dgan.watchdog import START_AGAIN
from evidence import Skip, Try, attempts, check_equal, check_whole, newest_step
from watched import EVERY

STEPS = 200


def full_disk(
    broken: BrokenRun, undisturbed: BrokenRun, choose: Random, at: Sequence[int]
) -> list[Try]:
    """A disk of 48 MB is filled at a random step but for a few bytes or megabytes, and emptied.

    Raises:
        Skip: no file system can be mounted here.
    """
    disk = broken.run
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Skip(f"a file system of its own cannot be mounted: {error}") from None
    try:
        return _full_disk(broken, undisturbed, choose, at)
    finally:
        broken.clear()
        shutil.copytree(disk, broken.folder / "last")
        subprocess.run(["umount", str(disk)], check=True)


def _full_disk(
    broken: BrokenRun, undisturbed: BrokenRun, choose: Random, at: Sequence[int]
) -> list[Try]:
    broken.options += ("--checkpoint.keep", "2")
    lost, faults, notes = list[int](), list[float](), list[str]()
    done = 0
    for drawn in at:
        step = max(drawn, done + 2, EVERY)
        job = broken.single()
        broken.reach(step, job)
        # Nothing, a few files without the tensors, a part of the tensors.
        leave = choose.choice([0, choose.randrange(10_000), choose.randrange(8_500_000)])
        faults.append(time.time())
        ballast = broken.run / "ballast"
        # What the run itself removes on the way is taken too.
        job.until(partial(_fill_and_look, ballast, leave, job), "the end")
        codes = job.end()
        assert codes == [2], (codes, job.said()[-4000:])
        assert re.search(r"dgan: error: .*(space|room)", job.said()), job.said()[-4000:]
        ballast.unlink()
        done, kept = broken.steps_done(), newest_step(broken.run)
        lost.append(done - kept)
        notes.append(f"{leave} bytes left at step {step}")
    assert broken.single().end() == [0]
    check_whole(broken, STEPS, keep=2)
    check_equal(broken, undisturbed, STEPS)
    after = [*attempts(broken).values()][1:]
    return [
        Try(True, steps, *attempt.goes_on(fault), note)
        for steps, attempt, fault, note in zip(lost, after, faults, notes, strict=True)
    ]


def _fill_and_look(ballast: Path, leave: int, job: Job) -> bool:
    """Whether the job is over, with `leave` bytes free on the disk of `ballast`."""
    spare = shutil.disk_usage(ballast.parent).free - leave
    with suppress(OSError), ballast.open("ab", buffering=0) as file:
        file.write(bytes(max(0, spare)))
    return job.over()


def in_use(
    broken: BrokenRun, undisturbed: BrokenRun, choose: Random, at: Sequence[int]
) -> list[Try]:
    """Runs that start in the directory of one that goes on: each is told who is there, and ends.

    The first two start at the same moment, and one of them is refused.
    """
    # The holder goes on for as long as it has to.
    endless = ("--train.steps", "1000000")
    begin = time.monotonic()
    holder, rival = broken.single(*endless), broken.single(*endless)
    found = list[Try]()
    for number in range(len(at)):
        if number:
            time.sleep(choose.uniform(0.0, 0.5))
            begin = time.monotonic()
            rival = broken.single(*endless)
        rival.until(partial(one_is_over, holder, rival), "a refusal", limit_s=STILL_S)
        if holder.over():
            holder, rival = rival, holder
        assert rival.end() == [2], rival.said()
        (pid,) = holder.ranks()
        assert f"{broken.run} is in use by process {pid} on " in rival.said(), rival.said()
        note = f"refused after {broken.steps_done()} steps of the other"
        found.append(Try(True, 0, time.monotonic() - begin, note=note))
    broken.reach(STEPS + 1, holder)
    holder.started[0].process.send_signal(signal.SIGTERM)
    assert holder.end() == [START_AGAIN]
    check_whole(broken, newest_step(broken.run))
    check_equal(broken, undisturbed, STEPS)
    return found


def one_is_over(*jobs: Job) -> bool:
    return any(job.over() for job in jobs)
