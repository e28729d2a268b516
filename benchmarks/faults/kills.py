"""SIGKILL of a rank under torchrun, which starts all of them again."""

import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from broken import BrokenRun, Job
from evidence import (
    Attempt,
    Try,
    attempts,
    check_equal,
    check_whole,
    newest_step,
    recovery_s,
    undisturbed_start_up_s,
)
from watched import EVERY

from dgan.parallel.storage import damage

STEPS = 200


@dataclass(frozen=True)
class Kill:
    """A rank that was killed, and how the run stood once all ranks were dead."""

    at: float
    """Seconds since 1970."""
    rank: int
    done: int
    """Steps."""
    kept: int
    """Step of the newest checkpoint."""


def at_random_steps(
    broken: BrokenRun, undisturbed: BrokenRun, choose: Random, tries: int
) -> list[Try]:
    """Any rank at a random step, so many times in one launch; every checkpoint is kept."""
    job = broken.torchrun(restarts=tries)
    kills: list[Kill] = []
    for at in sorted(choose.sample(range(2, STEPS - 30), tries)):
        step = max(at, kills[-1].done + 2 if kills else 0)
        broken.reach(step, job)
        kills.append(kill(job, broken, choose.randrange(2)))
    assert job.end() == [0], job.said()[-4000:]
    check_whole(broken, STEPS)
    check_equal(broken, undisturbed, STEPS)
    return outcomes(broken, kills, [f"rank {k.rank} in step {k.done + 1}" for k in kills])


def in_checkpoints(
    broken: BrokenRun, undisturbed: BrokenRun, choose: Random, tries: int
) -> list[Try]:
    """Any rank between the first byte of a checkpoint and the end of its publication.

    Two checkpoints are kept, so that a publication removes one. A kill that came too late, when
    nothing was under way any more, counts for the run but not as a try.
    """
    broken.options += ("--checkpoint.keep", "2")
    job = broken.torchrun(restarts=4 * tries)
    kills, phases = list[Kill](), list[str | None]()
    seconds = saving_takes(job, broken)
    while sum(phase is not None for phase in phases) < tries:
        assert len(kills) < 4 * tries, f"too few kills fell into a checkpoint: {phases}"
        # Of those to come: a dead attempt's are not removed before the next has begun.
        known = {path.name for path in under_way(broken)}
        due = EVERY * (broken.steps_done() // EVERY + choose.choice([1, 1, 2]))
        due = min(due, STEPS)
        job.until(partial(saves, broken, due, known), f"checkpoint of step {due}")
        time.sleep(choose.uniform(0.0, seconds))
        kills.append(kill(job, broken, choose.randrange(2)))
        phases.append(phase(broken, known))
    assert job.end() == [0], job.said()[-4000:]
    check_whole(broken, STEPS, keep=2)
    check_equal(broken, undisturbed, STEPS)
    found = outcomes(broken, kills, [f"rank {k.rank}, {p}" for k, p in zip(kills, phases)])
    return [outcome for outcome, phase in zip(found, phases) if phase is not None]


def kill(job: Job, broken: BrokenRun, rank: int) -> Kill:
    """SIGKILL, and wait until the others have ended too."""
    ranks, before = job.ranks(), newest_step(broken.run)
    at = time.time()
    os.kill(ranks[rank], signal.SIGKILL)
    job.until_dead(ranks)
    kept = newest_step(broken.run)
    assert kept >= before, f"the checkpoint of step {before} is gone"
    if kept:
        problems = damage(broken.run / "checkpoints" / f"step-{kept:09d}")
        assert not problems, problems
    return Kill(at, rank, broken.steps_done(), kept)


def outcomes(broken: BrokenRun, kills: list[Kill], notes: list[str]) -> list[Try]:
    """What each kill cost, by what the attempt after it noted."""
    found = attempts(broken)
    assert len(found) == len(kills) + 1, f"{len(found)} attempts after {len(kills)} kills"
    start_up = undisturbed_start_up_s(found)
    after: list[Attempt] = list(found.values())[1:]
    for k, attempt in zip(kills, after):
        assert attempt.first == k.kept, f"step {k.kept} was there, {attempt.first} was read"
    return [
        Try(
            survived=True,
            lost_steps=k.done - k.kept,
            recovery_s=recovery_s(k.at, attempt, start_up),
            note=note,
        )
        for k, attempt, note in zip(kills, after, notes)
    ]


def under_way(broken: BrokenRun) -> list[Path]:
    """Folders of checkpoints that are being written, or removed."""
    return list((broken.run / "checkpoints").glob(".tmp-*"))


def saves(broken: BrokenRun, due: int, known: set[str]) -> bool:
    """Whether a checkpoint of step `due`, or later, is being written."""
    return any(step_of(p) >= due and p.name not in known for p in under_way(broken))


def step_of(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def saving_takes(job: Job, broken: BrokenRun) -> float:
    """Seconds of a checkpoint: the second, which nothing disturbs."""
    second = broken.run / "checkpoints" / f"step-{2 * EVERY:09d}"
    job.until(lambda: any(step_of(p) == 2 * EVERY for p in under_way(broken)), "a checkpoint")
    begin = time.monotonic()
    job.until(second.exists, "its end")
    return time.monotonic() - begin


def phase(broken: BrokenRun, known: set[str]) -> str | None:
    """How far the checkpoint had come in which the kill fell; None if it was done."""
    left = [path for path in under_way(broken) if path.name not in known]
    if not left:
        return None
    names = {path.name for path in left[0].iterdir()}
    if "-old-" in left[0].name:
        return "removing an old one"
    if "digests.json" in names:
        return "complete, not renamed"
    return "metadata written" if {".metadata", "facts.json"} & names else "writing tensors"
