"""A recipe on a cluster that is not here: what is handed to the planner."""

from dataclasses import replace
from typing import Literal

import torch

from dgan.build import build_players, deepspeed_plan
from dgan.build_networks import build_network
from dgan.config import Parallel, Recipe
from dgan.data.toy import find_toy
from dgan.parallel.world import World
from dgan.planner import Job, Plan, Rehearsal, Rehearsals, Setting, find_gpu, make_plan, rehearse
from dgan.step import Players
from dgan.validation import validate

REHEARSED_RANKS = 8
"""FSDP2 is rehearsed on so many at most: what grows with their number is proportional to it."""


def plan(recipe: Recipe, *, nodes: int, gpus_per_node: int, gpu: str) -> Plan:
    """Compare every strategy for the recipe's networks, batch and penalty.

    Of the recipe's `parallel` section only `deepspeed_config` is looked at: all strategies are
    compared, with their usual options. `train.precision` `auto` is bfloat16, as on these GPUs.

    Raises:
        ValueError: there is no such GPU, the batch cannot be divided, or the recipe cannot be
            planned (`dgan.planner.rehearse`).
    """
    device = find_gpu(gpu)
    validate(recipe)
    if recipe.train.precision == "float64":
        raise ValueError("--train.precision float64 is for checks: plan float32 or bfloat16")
    job = _job(recipe, nodes, gpus_per_node)
    kinds = [False, True] if _has_blocks(recipe) else [False]
    rehearsed = [
        Rehearsals(
            checkpointing=checkpointing,
            whole=_rehearsal(recipe, job, "single", 1, checkpointing),
            sharded=_rehearsal(recipe, job, "fsdp", min(job.ranks, REHEARSED_RANKS), checkpointing),
        )
        for checkpointing in kinds
    ]
    return make_plan(rehearsed, job, gpu, device)


def _job(recipe: Recipe, nodes: int, gpus_per_node: int) -> Job:
    train = recipe.train
    job = Job(
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        batch_size=train.batch_size,
        accumulation=train.accumulation,
        discriminator_updates=train.discriminator_updates,
        generator_updates=train.generator_updates,
        penalty_every=recipe.penalty.every,
        bfloat16=train.precision != "float32",
        penalty_method=recipe.penalty.method,
    )
    zero = deepspeed_plan(recipe, world_size=job.ranks, bfloat16=job.bfloat16)["zero_optimization"]
    return replace(job, bucket=int(zero.get("reduce_bucket_size", job.bucket)))


def _rehearsal(
    recipe: Recipe,
    job: Job,
    strategy: Literal["single", "fsdp"],
    ranks: int,
    checkpointing: bool,
) -> Rehearsal:
    parallel = Parallel(strategy=strategy, activation_checkpointing=checkpointing)
    changed = replace(recipe, parallel=parallel)

    def build(world: World) -> Players:
        return build_players(changed, world)

    data = recipe.data
    sample = (data.channels, data.resolution, data.resolution)
    if data.kind == "points":
        sample = (find_toy(str(data.shards)).dimension,)
    setting = Setting(
        ranks=ranks,
        rows=job.rows,
        accumulation=job.accumulation,
        sample=sample,
        compute_dtype=torch.bfloat16 if job.bfloat16 else torch.float32,
    )
    return rehearse(build, setting)


def _has_blocks(recipe: Recipe) -> bool:
    """Whether both networks name what could be recomputed."""
    with torch.device("meta"):
        networks = [build_network(recipe, role) for role in ("generator", "discriminator")]
    return all(len(list(getattr(network, "blocks", ()))) for network in networks)
