"""DeepSpeed's ZeRO, as measured: an engine for each network.

It is not rehearsed. Stages 1 and 2 pass through a whole network, as one process does; stage 3
gathers as FSDP2 does. What the engines hold and send besides was measured on 2 ranks, in float32
and bfloat16 (`tests/distributed/test_plan_reality.py`).
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Literal

from dgan.planner.footprint import (
    MASTER,
    PLAYERS,
    Footprint,
    Memory,
    Moments,
    Rehearsals,
    Traffic,
    elements,
    exchanged,
    footprint,
    moments_of,
    over_all,
    statistics,
    times,
    updates,
)
from dgan.planner.job import Job
from dgan.planner.ledger import (
    AVERAGE,
    CAST,
    GRADIENTS,
    IN_FLIGHT,
    ON_THEIR_WAY,
    OPTIMIZER,
    REST,
    WEIGHTS,
)

BUCKETS = "buckets"

Stage = Literal[1, 2, 3]


def deepspeed(found: Rehearsals, job: Job, stage: Stage) -> Footprint:
    """ZeRO 1, 2 or 3: the optimizer's state is spread over ranks, gradients too, weights too."""
    rehearsal = found.sharded if stage == 3 else found.whole
    whole = {player: elements(rehearsal, player) for player in PLAYERS}
    held = _held(stage, whole, job)
    moments = {}
    for name, found_of in moments_of(rehearsal, job).items():
        trained = whole["generator" if name == "generator" else "discriminator"]
        part = MASTER * trained / job.ranks
        moments[name] = Moments(
            [held + _working(stage, each, part, whole, job) for each in found_of.passes],
            [held + Counter({REST: each[REST], GRADIENTS: part}) for each in found_of.stepping],
        )
    traffic = [*statistics(found, job), *_traffic(found, job, stage, whole)]
    flags = f"--parallel.strategy deepspeed --parallel.zero_stage {stage}"
    return footprint(
        f"deepspeed {stage}", flags, found, rehearsal, job, moments, traffic, job.ranks
    )


def _keeps_gradients(stage: Stage, job: Job) -> bool:
    """Stage 1 in bfloat16 is an optimizer of its own: all gradients in float32, no bucket."""
    return stage == 1 and job.bfloat16


def _held(stage: Stage, whole: dict[str, int], job: Job) -> Memory:
    """What both engines hold all the time, and the bucket that one of them fills."""
    n, size, both = job.ranks, job.compute_bytes, sum(whole.values())
    gradients = 1 if _keeps_gradients(stage, job) else 1 / n if stage == 3 else 0
    buckets = 0 if _keeps_gradients(stage, job) else 2 if stage == 3 else 1
    return Counter(
        {
            # And those in float32 that the optimizer moves: others, even where all are float32.
            WEIGHTS: size * both / (n if stage == 3 else 1) + MASTER * both / n,
            OPTIMIZER: 2 * MASTER * both / n,
            AVERAGE: MASTER * whole["generator"] / n,
            GRADIENTS: MASTER * both * gradients,
            BUCKETS: buckets * size * job.bucket,
        }
    )


def _working(stage: Stage, passes: Memory, part: float, whole: dict[str, int], job: Job) -> Memory:
    """What comes and goes in the forward and backward passes."""
    gradients = _gradients(stage, passes, part, job)
    same = {label: passes[label] for label in (REST, ON_THEIR_WAY)}
    working = Counter({**same, GRADIENTS: gradients})
    if not job.bfloat16:  # in which the weights are else already: autocast makes no copies
        working[CAST] = passes[CAST]
    if stage == 3:
        # Of what a pass gathers, little is freed before the next one.
        working[IN_FLIGHT] = job.compute_bytes * sum(whole.values())
    return working


def _gradients(stage: Stage, passes: Memory, part: float, job: Job) -> float:
    """What grows in a backward pass, besides what is held: whole ones, or this rank's part."""
    if stage == 1 and not job.bfloat16:
        return passes[GRADIENTS]
    return part if stage == 2 else 0.0


def _traffic(found: Rehearsals, job: Job, stage: Stage, whole: dict[str, int]) -> Iterator[Traffic]:
    for player, count in updates(job):
        size, buckets = whole[player], math.ceil(whole[player] / job.bucket)
        backwards = count * (job.accumulation if stage > 1 else 1)
        reduction = "reduce_scatter" if stage == 3 else "all_reduce"
        yield over_all(reduction, job, MASTER * size * backwards, buckets * backwards)
        if stage < 3:
            yield over_all("all_gather", job, job.compute_bytes * size * count, count)
    if stage == 3:
        gathered, count = exchanged(found.sharded, job, "all_gather")
        if found.sharded.penalised:
            # The second pass of a penalty finds the weights of the first still there.
            again = times(job, "discriminator", found.sharded) * job.accumulation
            gathered -= job.compute_bytes * whole["discriminator"] * again
        yield over_all("all_gather", job, gathered, count)
