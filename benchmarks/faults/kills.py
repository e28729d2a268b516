"""SIGKILL of a rank under torchrun, which starts all of them again."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from broken import BrokenRun, Job
from dgan.parallel.storage import damage
from evidence import Attempt, Try, attempts, check_equal, check_whole, newest_step
from watched import EVERY

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
    broken: BrokenRun, undisturbed: BrokenRun, choose: Random, at: Sequence[int]
) -> list[Try]:
    """Any rank at a random step, so many times in one launch; every checkpoint is kept."""
    job = broken.torchrun(restarts=len(at))
    kills: list[Kill] = []
    for drawn in at:
        step = max(drawn, kills[-1].done + 2 if kills else 0)
        broken.reach(step, job)
        kills.append(kill(job, broken, choose.randrange(2)))
    assert job.end() == [0], job.said()[-4000:]
    check_whole(broken, STEPS)
    check_equal(broken, undisturbed, STEPS)
    return outcomes(broken, kills, [f"rank {k.rank} in step {k.done + 1}" for k in kills])


def in_checkpoints(
    broken: BrokenRun, undisturbed: BrokenRun, choose: Random, at: Sequence[int]
) -> list[Try]:
    """Any rank in each phase of a checkpoint, from its first byte to the end of its publication.

    Two checkpoints are kept, so that a publication removes one.
    """
    broken.options += ("--checkpoint.keep", "2")
    job = broken.torchrun(restarts=len(at))
    kills, notes = list[Kill](), list[str]()
    for aim in [*choose.sample(PHASES, len(PHASES)), *choose.choices(PHASES, k=len(at))][: len(at)]:
        broken.reach(broken.steps_done() + choose.randrange(1, 2 * EVERY), job)
        freeze_in(aim, job, broken)
        kills.append(kill(job, broken, choose.randrange(2)))
        notes.append(f"rank {kills[-1].rank}, {aim}")
    assert job.end() == [0], job.said()[-4000:]
    check_whole(broken, STEPS, keep=2)
    check_equal(broken, undisturbed, STEPS)
    return outcomes(broken, kills, notes)


def kill(job: Job, broken: BrokenRun, rank: int) -> Kill:
    """SIGKILL, and wait until the others have ended too."""
    ranks, before = job.ranks(), newest_step(broken.run)
    at = time.time()
    os.kill(ranks[rank], signal.SIGKILL)
    for other in ranks[:rank] + ranks[rank + 1 :]:
        os.kill(other, signal.SIGCONT)  # if it was stopped
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
    after: list[Attempt] = list(found.values())[1:]
    for k, attempt in zip(kills, after):
        assert attempt.first == k.kept, f"step {k.kept} was there, {attempt.first} was read"
    return [
        Try(True, k.done - k.kept, *attempt.goes_on(k.at), note)
        for k, attempt, note in zip(kills, after, notes)
    ]


PHASES = ("writing tensors", "metadata written", "complete, not renamed", "removing an old one")


def freeze_in(aim: str, job: Job, broken: BrokenRun) -> None:
    """Stop all ranks in the phase `aim` of a checkpoint.

    A phase may take less than a millisecond: where they had left it before they stopped, they go
    on, and are stopped in the next checkpoint.
    """
    ranks = job.ranks()
    # Those of a dead attempt are not removed before the next has begun.
    known = {*under_way(broken)}
    with urgent():
        while True:
            job.until(lambda: phase(broken, known) == aim, aim, pause_s=0.0)
            for rank in ranks:
                os.kill(rank, signal.SIGSTOP)
            job.until(lambda: all(map(stopped, ranks)), "all stopped", pause_s=0.0)
            if phase(broken, known) == aim:
                return
            for rank in ranks:
                os.kill(rank, signal.SIGCONT)


@contextmanager
def urgent() -> Iterator[None]:
    """What this process does goes first on a busy machine, if it may."""
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    try:
        yield
    finally:
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, niceness)


def stopped(process: int) -> bool:
    """Whether none of its threads runs (Linux)."""
    threads = Path(f"/proc/{process}/task").glob("*/stat")
    return all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)


def under_way(broken: BrokenRun) -> list[str]:
    """Folders of checkpoints that are being written, or removed."""
    return [name for name in os.listdir(broken.run / "checkpoints") if name.startswith(".tmp-")]


def phase(broken: BrokenRun, known: set[str]) -> str | None:
    """How far the checkpoint has come that is under way, but for those `known`; None without."""
    left = next((name for name in under_way(broken) if name not in known), None)
    if left is None:
        return None
    if "-old-" in left:
        return "removing an old one"
    names: set[str] = set()
    with suppress(FileNotFoundError):  # just renamed
        names = {*os.listdir(broken.run / "checkpoints" / left)}
    if "digests.json" in names:
        return "complete, not renamed"
    if {".metadata", "facts.json"} & names:
        return "metadata written"
    return "writing tensors" if names else None
