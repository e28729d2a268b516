"""From what was rehearsed to what each strategy holds and sends, on any number of ranks.

FSDP2's passes are rehearsed as they are, on a few ranks: what is cut into more pieces shrinks in
proportion, and what is gathered grows with its padding. DDP and DeepSpeed hold the network whole
while it computes: they are the passes of one process and what each adds to these. The tests compare
with what real ranks hold and send (`tests/distributed/test_plan_reality.py`).
"""

import math
from collections.abc import Iterator

from dgan.planner.footprint import (
    MASTER,
    Footprint,
    Rehearsals,
    Traffic,
    both,
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
    GRADIENTS,
    IN_FLIGHT,
    ON_THEIR_WAY,
    OPTIMIZER,
    STEPPING,
    WEIGHTS,
)
from dgan.planner.zero import BUCKETS, deepspeed

DDP_BUCKET = 25 * 2**20
"""Bytes that DDP reduces at once."""


def footprints(found: Rehearsals, job: Job) -> Iterator[Footprint]:
    """Of every strategy that can run the job, the simplest first."""
    if job.ranks == 1:  # where all of them are that one
        yield single(found, job)
        return
    yield ddp(found, job)
    yield fsdp(found, job)
    yield fsdp(found, job, keep=True)
    if job.nodes > 1 and job.gpus_per_node > 1:
        yield fsdp(found, job, copies=job.nodes)
    for stage in (1, 2, 3):
        if stage < 3 or job.penalty_method != "double" or not found.whole.penalised:
            yield deepspeed(found, job, stage)


def single(found: Rehearsals, job: Job) -> Footprint:
    """All in one process."""
    whole = found.whole
    flags = "--parallel.strategy single"
    return footprint("single", flags, found, whole, job, moments_of(whole, job), [], 1)


def ddp(found: Rehearsals, job: Job) -> Footprint:
    """Copies. The buckets that gradients are averaged in are a second set of them, kept always."""
    whole, moments = found.whole, moments_of(found.whole, job)
    for moment in (moment for each in moments.values() for moment in each.all):
        moment[BUCKETS] = MASTER * both(whole)
    traffic = [*statistics(found, job)]
    for player, count in updates(job):
        size = MASTER * elements(whole, player)
        buckets = math.ceil(size / DDP_BUCKET)
        traffic.append(over_all("all_reduce", job, count * size, count * buckets))
    return footprint("ddp", "--parallel.strategy ddp", found, whole, job, moments, traffic, 1)


def fsdp(found: Rehearsals, job: Job, *, keep: bool = False, copies: int = 1) -> Footprint:
    """FSDP2; `keep` is reshard_after_forward=False, `copies` is HSDP over nodes."""
    sharded = found.sharded
    shards, before = job.ranks // copies, sharded.setting.ranks
    cut = both(sharded, shards) / both(sharded, before)
    padded = shards / before * cut
    held = dict.fromkeys((WEIGHTS, OPTIMIZER, AVERAGE, GRADIENTS, STEPPING), cut)
    moments = moments_of(sharded, job, {**held, IN_FLIGHT: padded, ON_THEIR_WAY: padded})
    name, flags = "fsdp", "--parallel.strategy fsdp"
    if keep:
        name, flags = f"{name}, kept", f"{flags} --parallel.reshard_after_forward False"
        # Either network is still gathered when the other's backward pass begins.
        everything = job.compute_bytes * shards * both(sharded, shards)
        for moment in (moment for each in moments.values() for moment in each.passes):
            moment[IN_FLIGHT] = max(moment[IN_FLIGHT], everything)
    across = job.nodes > 1 and copies == 1
    size, count = exchanged(sharded, job, "all_gather")
    if keep:
        kept = sum(u.if_kept * times(job, each, sharded) for each, u in sharded.updates.items())
        size, count = kept, count * kept / size
    traffic = [*statistics(found, job), Traffic("all_gather", shards, across, padded * size, count)]
    size, count = exchanged(sharded, job, "reduce_scatter")
    traffic.append(Traffic("reduce_scatter", shards, across, padded * size, count))
    if copies > 1:
        name, flags = f"{name}, {copies} copies", f"{flags} --parallel.copies {copies}"
        traffic.append(Traffic("all_reduce", copies, True, padded * size / shards, count))
    return footprint(name, flags, found, sharded, job, moments, traffic, shards)
