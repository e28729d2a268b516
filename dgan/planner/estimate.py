"""From footprints to a plan: what fits, how long a step takes, how that scales, what to beware."""

from dataclasses import dataclass, field
from typing import Any

from dgan.planner.footprint import MASTER, PLAYERS, Footprint, Rehearsals, both, elements, merged
from dgan.planner.hardware import (
    ADAM_BYTES,
    BESIDES_TENSORS,
    FRAGMENTATION,
    GIB,
    GPU,
    LATENCY_S,
    OF_PEAK_FLOPS,
    OF_PEAK_LINK,
)
from dgan.planner.job import Job
from dgan.planner.strategies import footprints

ASSUMPTIONS = (
    f"FLOPs at {OF_PEAK_FLOPS:.0%} of the GPU's peak, links at {OF_PEAK_LINK:.0%} of theirs and "
    f"{LATENCY_S * 1e6:.0f} µs an exchange: times are estimates, from full overlap to none",
    f"memory is that of tensors, with the reference code of kernels, + {FRAGMENTATION:.0%} for "
    f"fragmentation + {BESIDES_TENSORS / GIB:.0f} GiB for CUDA, NCCL, cuDNN and cuBLAS",
    "not modelled: launching kernels, which small networks wait for; loading data, evaluation, "
    "checkpoints; compiling, offloading, reshard_within; FSDP2's prefetching, which may hold "
    "another unit; path lengths, if any, are counted in every step",
)

SAME = 0.03
"""Relative difference of two estimated times that says nothing."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One strategy: its footprint and what follows from it.

    Attributes:
        needs: bytes of GPU memory, with what is assumed besides tensors.
        seconds: of a step, if exchanges hide behind computation as far as they can, and if not.
    """

    footprint: Footprint
    needs: float
    fits: bool
    compute: float
    exchange: float
    optimizer: float

    @property
    def seconds(self) -> tuple[float, float]:
        """Of a step: with full overlap of computation and exchange, and with none."""
        hidden = max(self.compute, self.exchange)
        return hidden + self.optimizer, self.compute + self.exchange + self.optimizer


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `dgan plan` says."""

    job: Job
    gpu: str
    parameters: dict[str, int]
    forward_flops: dict[str, float]
    rows: list[Row]
    best: int | None
    """Which of `rows` is the cheapest that fits."""
    scaling: list[tuple[int, Row]]
    """The same strategy on other numbers of nodes, with the same global batch."""
    warnings: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "nodes": self.job.nodes, "gpus_per_node": self.job.gpus_per_node, "gpu": self.gpu,
            "batch_size": self.job.batch_size, "rows_per_rank": self.job.rows,
            "parameters": self.parameters, "forward_flops": self.forward_flops,
            "strategies": [
                {**row_as_json(row), "cheapest_that_fits": i == self.best}
                for i, row in enumerate(self.rows)
            ],
            "scaling": [{"nodes": nodes, **row_as_json(row)} for nodes, row in self.scaling],
            "warnings": self.warnings, "assumptions": list(ASSUMPTIONS),
        }  # fmt: skip


def row_as_json(row: Row) -> dict[str, Any]:
    """Plain values, in bytes, seconds and FLOPs of one rank."""
    each = row.footprint
    return {
        "strategy": each.strategy, "flags": each.flags, "checkpointing": each.checkpointing,
        "ranks": each.ranks, "fits": row.fits, "needs": row.needs, "tensors": each.peak,
        "memory": dict(each.memory), "penalty": each.penalty, "flops": each.flops,
        "sent": each.sent,
        "traffic": [t._asdict() | {"sent": t.sent} for t in merged(each.traffic) if t.sent],
        "seconds": row.seconds,
    }  # fmt: skip


def estimate(footprint: Footprint, job: Job, gpu: GPU) -> Row:
    """How long a step takes and whether it fits."""
    peak = gpu.bfloat16 if job.bfloat16 else gpu.float32
    exchange = sum(
        each.times * LATENCY_S
        + each.sent / (OF_PEAK_LINK * (gpu.network if each.across else gpu.node))
        for each in footprint.traffic
        if each.ranks > 1
    )
    needs = footprint.peak * (1 + FRAGMENTATION) + BESIDES_TENSORS
    return Row(
        footprint=footprint,
        needs=needs,
        fits=needs <= gpu.memory,
        compute=footprint.flops / (OF_PEAK_FLOPS * peak),
        exchange=exchange,
        optimizer=footprint.stepped * ADAM_BYTES / gpu.bandwidth,
    )


def make_plan(rehearsed: list[Rehearsals], job: Job, gpu_name: str, gpu: GPU) -> Plan:
    """Compare all strategies.

    Args:
        rehearsed: the recipe without and with recomputed blocks, as far as these are possible.
        job: what is planned.
        gpu_name: of `gpu`.
    """
    rows = _rows(rehearsed, job, gpu)
    best = _cheapest(rows)
    if job.ranks > 1 and (alone := job.of(1, 1)) is not None:
        # Behind the others: it leaves all GPUs but one idle.
        rows += [row for row in _rows(rehearsed, alone, gpu) if row.footprint.strategy == "single"]
    scaling = []
    for nodes in sorted({job.nodes, *(2**i for i in range(job.nodes.bit_length() + 2))}):
        other = job.of(nodes)
        found = [] if other is None else _rows(rehearsed, other, gpu)
        if (at := _cheapest(found)) is not None:
            scaling.append((nodes, found[at]))
    whole = rehearsed[0].whole
    return Plan(
        job=job,
        gpu=gpu_name,
        parameters=whole.parameters,
        forward_flops=whole.forward_flops,
        rows=rows,
        best=best,
        scaling=scaling,
        warnings=_warnings(rehearsed, job, gpu_name, rows, best),
    )


def _rows(rehearsed: list[Rehearsals], job: Job, gpu: GPU) -> list[Row]:
    return [estimate(each, job, gpu) for found in rehearsed for each in footprints(found, job)]


def _cheapest(rows: list[Row]) -> int | None:
    """Which is the fastest of those that fit: on the same GPUs, time is the cost.

    Of those that are as fast, as far as estimates go, the first: `rows` begins with the simplest.
    """
    times = {i: sum(row.seconds) / 2 for i, row in enumerate(rows) if row.fits}
    least = min(times.values(), default=0.0)
    return next((i for i, seconds in times.items() if seconds <= (1 + SAME) * least), None)


def _warnings(
    rehearsed: list[Rehearsals], job: Job, gpu: str, rows: list[Row], best: int | None
) -> list[str]:
    """The longest first."""
    found = []
    sharded = rehearsed[0].sharded
    if best is None:
        least = min(rows, key=lambda row: row.needs)
        found.append(
            f"nothing fits: {least.footprint.flags} needs least, {least.needs / GIB:.1f} GiB. "
            "Take more GPUs or a larger --gpu, or a smaller micro-batch: more --train.accumulation"
        )
    if len(rehearsed) == 1:
        found.append("a network names no `.blocks`: it is gathered as one unit, and not recomputed")
    padding = job.ranks * both(sharded, job.ranks) / both(sharded) - 1
    if padding > 0.05:
        found.append(
            f"FSDP2 cuts rows of weights: over {job.ranks} ranks they are filled up by "
            f"{padding:.0%}, which is gathered too; with --parallel.copies it is less"
        )
    if job.accumulation > 1:
        most = MASTER * max(elements(sharded, player) for player in PLAYERS)
        found.append(
            f"under fsdp, --train.accumulation {job.accumulation} keeps the whole gradient of a "
            f"network, {most / GIB:.2f} GiB, on every rank until the last micro-batch"
        )
    if job.bucket >= both(sharded):
        found.append(
            f"DeepSpeed's bucket of {job.bucket:,} elements is larger than both networks: set "
            "zero_optimization.reduce_bucket_size in --parallel.deepspeed_config"
        )
    if job.penalty_method == "double" and sharded.penalised:
        found.append(
            "--penalty.method double keeps weights gathered under fsdp, and is impossible under "
            "ZeRO-3: auto takes the exact `forward` there"
        )
    if job.rows == 1 and job.ranks > 1:
        found.append(f"each {gpu} gets one sample at a time: small products waste it")
    return sorted(found, key=len, reverse=True)
