"""What a scheduler does: it stops a run, moves it to another number of ranks, cuts its network."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from broken import BrokenRun, Node
from dgan.watchdog import START_AGAIN
from evidence import Skip, Try, check_close, check_equal, check_whole, newest_step
from kills import STEPS, Kill, kill, outcomes

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "cluster"))

from namespaces import Nodes, Unavailable

GRACE_S = 240.0
"""The least that the files of launch/ leave a run to save in."""


def preempted(
    broken: BrokenRun, undisturbed: BrokenRun, choose: Random, at: Sequence[int]
) -> list[Try]:
    """SIGTERM or SIGUSR1 to one rank at a random moment: all save the same step and end with 75."""
    stops, notes = list[Kill](), list[str]()
    for drawn in at:
        step = max(drawn, stops[-1].done + 2 if stops else 0)
        job = broken.ranks()
        broken.reach(step, job)
        time.sleep(choose.uniform(0.0, 0.05))
        number = choose.choice([signal.SIGTERM, signal.SIGUSR1])
        rank, moment = choose.randrange(2), time.time()
        os.kill(job.ranks()[rank], number)
        codes = job.end()
        took = time.time() - moment
        assert codes == [START_AGAIN] * 2, (codes, job.said()[-4000:])
        assert took < GRACE_S, f"it took {took:.0f} s to save and end"
        stop = Kill(moment, rank, broken.steps_done(), newest_step(broken.run))
        assert stop.kept == stop.done, f"{stop.done} steps were done, {stop.kept} were saved"
        assert f"stopped by {number.name}, saved at step {stop.done}" in job.said()
        stops.append(stop)
        notes.append(f"{number.name} to rank {rank} at step {stop.done}, over after {took:.1f} s")
    assert broken.ranks().end() == [0, 0]
    check_whole(broken, STEPS)
    check_equal(broken, undisturbed, STEPS)
    return outcomes(broken, stops, notes)


SIZES = (2, 1, 3)


def resized(
    broken: BrokenRun, undisturbed: BrokenRun, choose: Random, at: Sequence[int]
) -> list[Try]:
    """A rank is killed at a random step, and the run goes on with another number of them.

    Ranks add up in another order, so that losses agree to rounding, and not bit for bit; in float64
    that leaves no doubt.
    """
    kills, notes = list[Kill](), list[str]()
    for index in range(len(at) + 1):
        size = SIZES[index % len(SIZES)]
        job = broken.ranks(size)
        if index == len(at):
            assert job.end() == [0] * size, job.said()[-4000:]
            break
        step = max(at[index], kills[-1].done + 2 if kills else 0)
        broken.reach(step, job)
        kills.append(kill(job, broken, choose.randrange(size)))
        codes = job.end()
        assert sorted(codes) == [-signal.SIGKILL, *[START_AGAIN] * (size - 1)], codes
        notes.append(f"{size} ranks to {SIZES[(index + 1) % len(SIZES)]} at step {step}")
    check_whole(broken, STEPS)
    worst = check_close(broken, undisturbed, STEPS, relative=1e-6)
    return outcomes(broken, kills, [f"{note}; losses within {worst:.1g}" for note in notes])


def cut_off(
    broken: BrokenRun, undisturbed: BrokenRun, choose: Random, at: Sequence[int]
) -> list[Try]:
    """Two ranks on two nodes (network namespaces); their link goes down at a random moment.

    Both end by the watchdog, after six seconds of its ticks, and go on when the link is back.

    Raises:
        Skip: this machine has no namespaces for us.
    """
    try:
        nodes = Nodes()
    except Unavailable as reason:
        raise Skip(str(reason)) from None
    places = [
        Node(nodes.within(index), {"GLOO_SOCKET_IFNAME": card})
        for index, card in enumerate(nodes.cards)
    ]
    broken.options += ("--run.stall_minutes", "0.1")
    cuts, notes = list[Kill](), list[str]()
    try:
        for drawn in at:
            step = max(drawn, cuts[-1].done + 2 if cuts else 0)
            job = broken.ranks(at=places, address=nodes.addresses[0])
            broken.reach(step, job)
            pause = choose.uniform(0.0, 0.05)
            time.sleep(pause)
            moment, card = time.time(), choose.randrange(2)
            notes.append(f"card {card} down {1000 * pause:.0f} ms after step {step}")
            nodes.link(card, "down")
            codes = job.end()
            assert codes == [START_AGAIN] * 2, (codes, job.said()[-4000:])
            cuts.append(Kill(moment, card, broken.steps_done(), newest_step(broken.run)))
            nodes.link(card, "up")
        assert broken.ranks(at=places, address=nodes.addresses[0]).end() == [0, 0]
    finally:
        nodes.remove()
    check_whole(broken, STEPS)
    check_equal(broken, undisturbed, STEPS)
    return outcomes(broken, cuts, notes)
