"""What a strategy holds, sends and computes on one rank, and the arithmetic that they share."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from dgan.planner.job import Job
from dgan.planner.ledger import REST
from dgan.planner.rehearsal import WITHOUT, Rehearsal

PLAYERS = ("generator", "discriminator")
MASTER = 4
"""Bytes of a weight, a gradient or a moment in float32."""

Memory = Counter[str]
"""Bytes by label."""


class Moments(NamedTuple):
    """Of an update, those one of which is the worst."""

    passes: list[Memory]
    stepping: list[Memory]

    @property
    def all(self) -> list[Memory]:
        """Of its passes and of the optimizer's step."""
        return self.passes + self.stepping


class Traffic(NamedTuple):
    """What one kind of exchange moves in a step, from the point of view of one rank."""

    collective: str
    ranks: int
    across: bool
    """Whether these are on several nodes."""
    whole: float
    """Bytes of the whole that is gathered or reduced."""
    times: float

    @property
    def sent(self) -> float:
        """Bytes that each rank sends, in a ring."""
        rounds = 2 if self.collective == "all_reduce" else 1
        return rounds * (self.ranks - 1) / self.ranks * self.whole


def merged(traffic: list[Traffic]) -> list[Traffic]:
    """What is exchanged by the same collective over the same ranks, added up."""
    sums: dict[tuple[str, int, bool], tuple[float, float]] = {}
    for collective, ranks, across, whole, times in traffic:
        before = sums.get((collective, ranks, across), (0.0, 0.0))
        sums[collective, ranks, across] = (before[0] + whole, before[1] + times)
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
    memory: Memory
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


def footprint(
    strategy: str,
    flags: str,
    found: Rehearsals,
    rehearsal: Rehearsal,
    job: Job,
    moments: dict[str, Moments],
    traffic: list[Traffic],
    shards: int,
) -> Footprint:
    """Of the worst of `moments`; `rehearsal` is the one of `found` that they are from."""
    worst = max((moment for each in moments.values() for moment in each.all), key=total)
    penalty = None if rehearsal.penalised else 0.0
    if WITHOUT in moments:
        others = [m for name, each in moments.items() if name != "discriminator" for m in each.all]
        penalty = max(0.0, total(worst) - max(map(total, others)))
    return Footprint(
        strategy=strategy,
        flags=flags + (" --parallel.activation_checkpointing" if found.checkpointing else ""),
        checkpointing=found.checkpointing,
        ranks=job.ranks,
        memory=Counter({label: size for label, size in worst.items() if size}),
        penalty=penalty,
        flops=flops(rehearsal, job),
        traffic=traffic,
        stepped=sum(count * elements(rehearsal, player, shards) for player, count in updates(job)),
    )


def total(memory: Memory) -> float:
    """Bytes of all labels."""
    return sum(memory.values())


def updates(job: Job) -> list[tuple[str, int]]:
    """Of either player in a step."""
    return [("discriminator", job.discriminator_updates), ("generator", job.generator_updates)]


def times(job: Job, update: str, rehearsal: Rehearsal) -> float:
    """How often an update of `rehearsal` happens in a step, on average."""
    if update == "generator":
        return job.generator_updates
    if WITHOUT not in rehearsal.updates:
        return job.discriminator_updates
    share = 1 / job.penalty_every
    return job.discriminator_updates * (share if update == "discriminator" else 1 - share)


def elements(rehearsal: Rehearsal, player: str, shards: int = 1) -> int:
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
    found = sum(u.flops * times(job, name, rehearsal) for name, u in rehearsal.updates.items())
    return found * job.rows / rehearsal.setting.rows


def exchanged(rehearsal: Rehearsal, job: Job, collective: str) -> tuple[float, float]:
    """Bytes that a collective is about in a step as rehearsed, and how often it happens."""
    size = count = 0.0
    for name, update in rehearsal.updates.items():
        size += update.exchanged[collective] * times(job, name, rehearsal)
        count += update.exchanges[collective] * times(job, name, rehearsal)
    return size, count


def over_all(collective: str, job: Job, whole: float, count: float) -> Traffic:
    """An exchange between all ranks."""
    return Traffic(collective, job.ranks, job.nodes > 1, whole, count)


def statistics(found: Rehearsals, job: Job) -> Iterator[Traffic]:
    """Statistics and metrics, which are added up over ranks under every strategy."""
    for collective in ("all_reduce", "broadcast"):
        yield over_all(collective, job, *exchanged(found.sharded, job, collective))


def moments_of(
    rehearsal: Rehearsal, job: Job, factors: dict[str, float] | None = None
) -> dict[str, Moments]:
    """As rehearsed, for the job's rows; `factors` multiply labels."""
    by = {REST: job.rows / rehearsal.setting.rows, **(factors or {})}

    def scaled(moments: list[Counter[str]]) -> list[Memory]:
        return [Counter({k: size * by.get(k, 1) for k, size in each.items()}) for each in moments]

    return {
        name: Moments(scaled(update.passes), scaled(update.stepping))
        for name, update in rehearsal.updates.items()
    }
