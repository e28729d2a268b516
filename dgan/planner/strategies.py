"""From what was rehearsed to what each strategy holds and sends, on any number of ranks.

FSDP2's passes are rehearsed as they are, on at most `rehearsal ranks`; what is cut into more pieces
shrinks in proportion, and what is gathered grows with its padding. DDP and DeepSpeed hold the
network whole while it computes: they are the passes of one process and what each adds to these,
as measured (`tests/planner/test_reality.py`).
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from dgan.planner.job import Job
from dgan.planner.ledger import (
    AVERAGE,
    CAST,
    GATHERED,
    GRADIENTS,
    OPTIMIZER,
    REST,
    STEPPING,
    WEIGHTS,
)
from dgan.planner.rehearsal import WITHOUT, Rehearsal, Update

BUCKETS = "buckets"
PLAYERS = ("generator", "discriminator")
MASTER = 4
"""Bytes of a weight, a gradient or a moment in float32."""


class Traffic(NamedTuple):
    """What one kind of exchange moves in a step, from the point of view of one rank."""

    collective: str
    ranks: int
    across: bool
    """Whether these are on several nodes."""
    whole: float
    """Bytes of the whole that is gathered or reduced."""
    count: float

    @property
    def sent(self) -> float:
        """Bytes that each rank sends, in a ring."""
        times = 2 if self.collective == "all_reduce" else 1
        return times * (self.ranks - 1) / self.ranks * self.whole


def merged(traffic: list[Traffic]) -> list[Traffic]:
    """What is exchanged by the same collective over the same ranks, added up."""
    sums: dict[tuple[str, int, bool], tuple[float, float]] = {}
    for collective, ranks, across, whole, count in traffic:
        before = sums.get((collective, ranks, across), (0.0, 0.0))
        sums[collective, ranks, across] = (before[0] + whole, before[1] + count)
    return [Traffic(*kind, *total) for kind, total in sums.items()]


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """A strategy on a job.

    Attributes:
        strategy: its name and what tells it from others of that name.
        flags: that choose it.
        checkpointing: whether blocks are computed again in the backward pass.
        ranks: that it runs on.
        memory: bytes by label at the worst moment.
        penalty: bytes of it that would not be there without a penalty; None: not looked at.
        flops: of a step on one rank.
        traffic: of a step.
        stepped: weights that a rank's optimizers move in a step.
    """

    strategy: str
    flags: str
    checkpointing: bool
    ranks: int
    memory: Counter[str]
    penalty: float | None
    flops: float
    traffic: list[Traffic]
    stepped: float

    @property
    def peak(self) -> float:
        """Bytes of tensors at the worst moment."""
        return sum(self.memory.values())

    @property
    def sent(self) -> float:
        """Bytes that a rank sends in a step."""
        return sum(each.sent for each in self.traffic)


@dataclass(frozen=True, kw_only=True)
class Rehearsals:
    """Of one recipe with or without recomputed blocks: in one process, and sharded by FSDP2."""

    checkpointing: bool
    whole: Rehearsal
    sharded: Rehearsal


def footprints(found: Rehearsals, job: Job) -> Iterator[Footprint]:
    """Of every strategy that can run the job."""
    if job.ranks == 1:
        yield single(found, job)
    yield ddp(found, job)
    yield fsdp(found, job)
    yield fsdp(found, job, keep=True)
    if job.nodes > 1 and job.gpus_per_node > 1:
        yield fsdp(found, job, copies=job.nodes)
    for stage in (1, 2, 3):
        if stage < 3 or job.penalty_method != "double" or not found.whole.penalised:
            yield deepspeed(found, job, stage)


def times(job: Job, update: str, rehearsal: Rehearsal) -> float:
    """How often an update happens in a step, on average."""
    if update == "generator":
        return job.generator_updates
    if WITHOUT not in rehearsal.updates:
        return job.discriminator_updates
    share = 1 / job.penalty_every
    return job.discriminator_updates * (share if update == "discriminator" else 1 - share)


def elements(rehearsal: Rehearsal, player: str, shards: int) -> int:
    """Weights of a player that a rank of so many holds: FSDP2 cuts rows, and fills up the last."""
    return sum(
        math.ceil((shape[0] if shape else 1) / shards) * math.prod(shape[1:])
        for shape in rehearsal.shapes[player]
    )


def both(rehearsal: Rehearsal, shards: int = 1) -> int:
    """Weights of both players that a rank holds."""
    return sum(elements(rehearsal, player, shards) for player in PLAYERS)


def flops(rehearsal: Rehearsal, job: Job) -> float:
    """Of a step on one rank."""
    total = sum(u.flops * times(job, name, rehearsal) for name, u in rehearsal.updates.items())
    return total * job.rows / rehearsal.setting.rows


def single(found: Rehearsals, job: Job) -> Footprint:
    """All in one process."""
    moments = {
        name: _moments(update, job, found.whole) for name, update in found.whole.updates.items()
    }
    return _footprint(
        "single", "--parallel.strategy single", found, found.whole, job, moments, [], 1
    )


def ddp(found: Rehearsals, job: Job) -> Footprint:
    """Copies. The buckets that gradients are averaged in are a second set of them, kept always."""
    whole = found.whole
    buckets = MASTER * both(whole)
    moments = {
        name: [m + Counter({BUCKETS: buckets}) for m in _moments(update, job, whole)]
        for name, update in whole.updates.items()
    }
    traffic = [*_others(found, job)]
    for player, updates in _updates(job):
        count = math.ceil(MASTER * elements(whole, player, 1) / 25e6)  # buckets of 25 MB
        traffic.append(
            _over_all(
                "all_reduce", job, updates * MASTER * elements(whole, player, 1), updates * count
            )
        )
    return _footprint("ddp", "--parallel.strategy ddp", found, whole, job, moments, traffic, 1)


def fsdp(found: Rehearsals, job: Job, *, keep: bool = False, copies: int = 1) -> Footprint:
    """FSDP2; `keep` is reshard_after_forward=False, `copies` is HSDP over nodes."""
    sharded = found.sharded
    shards, before = job.ranks // copies, sharded.setting.ranks
    cut = both(sharded, shards) / both(sharded, before)
    padded = shards * cut / before
    moments = {}
    traffic = [*_others(found, job)]
    gathering = {"all_gather": 0.0, "reduce_scatter": 0.0}
    counts = dict.fromkeys(gathering, 0.0)
    for name, update in sharded.updates.items():
        moments[name] = [
            _scaled(
                moment,
                {
                    WEIGHTS: cut,
                    OPTIMIZER: cut,
                    AVERAGE: cut,
                    GRADIENTS: cut,
                    STEPPING: cut,
                    GATHERED: padded,
                },
                job,
                sharded,
            )
            for moment in (update.passes, update.stepping)
        ]
        if keep:
            everything = job.compute_bytes * shards * both(sharded, shards)
            moments[name][0][GATHERED] = max(moments[name][0][GATHERED], everything)
        for kind, size in update.exchanged.items():
            # Kept from the forward pass on, nothing is gathered in the backward pass.
            if kind.collective in gathering and not (
                keep and kind.in_backward and kind.collective == "all_gather"
            ):
                gathering[kind.collective] += padded * size * times(job, name, sharded)
                counts[kind.collective] += update.exchanges[kind] * times(job, name, sharded)
    across = job.nodes > 1 and copies == 1
    traffic += [Traffic(c, shards, across, gathering[c], counts[c]) for c in gathering]
    if copies > 1:
        parts = gathering["reduce_scatter"] / shards
        traffic.append(Traffic("all_reduce", copies, True, parts, counts["reduce_scatter"]))
    name = (
        "fsdp"
        + (", kept after forward" if keep else "")
        + (f", {copies} copies" if copies > 1 else "")
    )
    flags = (
        "--parallel.strategy fsdp"
        + (" --parallel.reshard_after_forward False" if keep else "")
        + (f" --parallel.copies {copies}" if copies > 1 else "")
    )
    return _footprint(name, flags, found, sharded, job, moments, traffic, shards)


def deepspeed(found: Rehearsals, job: Job, stage: Literal[1, 2, 3]) -> Footprint:
    """ZeRO 1, 2 or 3, an engine for each network."""
    rehearsal = found.sharded if stage == 3 else found.whole
    n, size = job.ranks, job.compute_bytes
    whole = {player: elements(rehearsal, player, 1) for player in PLAYERS}
    total = sum(whole.values())
    moments = {}
    for name, update in rehearsal.updates.items():
        trained = whole["generator" if name == "generator" else "discriminator"]
        held = _held_by_deepspeed(stage, total, whole["generator"], job)
        passes, step = _moments(update, job, rehearsal)
        # Weights are in the compute dtype already: autocast makes no copies.
        working = (
            Counter({REST: passes[REST]})
            if job.bfloat16
            else Counter({REST: passes[REST], CAST: passes[CAST]})
        )
        grown = passes[GRADIENTS] * size / MASTER if stage == 1 and not job.bfloat16 else 0.0
        if stage == 3:
            # Measured: of what a pass gathers, little is freed before the next one.
            working[GATHERED] = size * total
        stepping = Counter({STEPPING: 2 * MASTER * trained / n, GRADIENTS: MASTER * trained / n})
        moments[name] = [
            held + working + Counter({GRADIENTS: grown}),
            held + stepping + Counter({REST: step[REST]}),
        ]
    return _footprint(
        f"deepspeed, ZeRO-{stage}", f"--parallel.strategy deepspeed --parallel.zero_stage {stage}",
        found, rehearsal, job, moments, [*_others(found, job), *_of_deepspeed(found, job, stage, whole)], n,
    )  # fmt: skip


def _held_by_deepspeed(stage: int, total: int, averaged: int, job: Job) -> Counter[str]:
    """What both engines hold all the time, and the bucket that one of them fills."""
    n, size = job.ranks, job.compute_bytes
    narrow_first = stage == 1 and job.bfloat16  # its own optimizer: all gradients in float32
    engines = 2 if stage == 3 else 1
    return Counter(
        {
            # And the float32 weights that the optimizer moves, which are others even in float32.
            WEIGHTS: size * total / (n if stage == 3 else 1) + MASTER * total / n,
            OPTIMIZER: 2 * MASTER * total / n,
            AVERAGE: MASTER * averaged / n,
            GRADIENTS: MASTER * total * (1 if narrow_first else 1 / n if stage == 3 else 0),
            BUCKETS: 0 if narrow_first else engines * size * job.bucket,
        }
    )


def _of_deepspeed(
    found: Rehearsals, job: Job, stage: int, whole: dict[str, int]
) -> Iterator[Traffic]:
    for player, updates in _updates(job):
        size, buckets = whole[player], math.ceil(whole[player] / job.bucket)
        backwards = updates * (job.accumulation if stage > 1 else 1)
        reduction = "reduce_scatter" if stage == 3 else "all_reduce"
        yield _over_all(reduction, job, MASTER * size * backwards, buckets * backwards)
        if stage < 3:
            yield _over_all("all_gather", job, job.compute_bytes * size * updates, updates)
    if stage == 3:
        # FSDP2's, but the second pass of a penalty finds the weights still there.
        gathered, count = 0.0, 0.0
        for name, update in found.sharded.updates.items():
            for kind, size in update.exchanged.items():
                if kind.collective == "all_gather":
                    gathered += size * times(job, name, found.sharded)
                    count += update.exchanges[kind] * times(job, name, found.sharded)
        if found.sharded.penalised:
            again = times(job, "discriminator", found.sharded) * job.accumulation
            gathered -= job.compute_bytes * whole["discriminator"] * again
        yield _over_all("all_gather", job, gathered, count)


def _updates(job: Job) -> list[tuple[str, int]]:
    return [("discriminator", job.discriminator_updates), ("generator", job.generator_updates)]


def _over_all(collective: str, job: Job, whole: float, count: float) -> Traffic:
    return Traffic(collective, job.ranks, job.nodes > 1, whole, count)


def _others(found: Rehearsals, job: Job) -> Iterator[Traffic]:
    """Statistics and metrics, the same under every strategy."""
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for name, update in found.sharded.updates.items():
        for kind, size in update.exchanged.items():
            if kind.collective not in ("all_gather", "reduce_scatter"):
                sizes[kind.collective] += size * times(job, name, found.sharded)
                counts[kind.collective] += update.exchanges[kind] * times(job, name, found.sharded)
    for collective, size in sizes.items():
        yield _over_all(collective, job, size, counts[collective])


def _moments(update: Update, job: Job, rehearsal: Rehearsal) -> list[Counter[str]]:
    return [_scaled(moment, {}, job, rehearsal) for moment in (update.passes, update.stepping)]


def _scaled(
    moment: Counter[str], factors: dict[str, float], job: Job, rehearsal: Rehearsal
) -> Counter[str]:
    """A moment with other shards, and with the job's rows."""
    factors = {REST: job.rows / rehearsal.setting.rows, **factors}
    return Counter({label: size * factors.get(label, 1) for label, size in moment.items()})


def _footprint(
    strategy: str, flags: str, found: Rehearsals, rehearsal: Rehearsal, job: Job,
    moments: dict[str, list[Counter[str]]], traffic: list[Traffic], shards: int,
) -> Footprint:  # fmt: skip
    every = [moment for each in moments.values() for moment in each]
    worst = max(every, key=lambda moment: sum(moment.values()))
    penalty = None
    if WITHOUT in moments or not rehearsal.penalised:
        others = [m for name, each in moments.items() if name != "discriminator" for m in each]
        others = others or every
        penalty = max(0.0, sum(worst.values()) - max(sum(moment.values()) for moment in others))
    return Footprint(
        strategy=strategy,
        flags=flags + (" --parallel.activation_checkpointing" if found.checkpointing else ""),
        checkpointing=found.checkpointing,
        ranks=job.ranks,
        memory=Counter({label: size for label, size in worst.items() if size}),
        penalty=penalty,
        flops=flops(rehearsal, job),
        traffic=traffic,
        stepped=sum(updates * elements(rehearsal, player, shards) for player, updates in _updates(job)),
    )  # fmt: skip
