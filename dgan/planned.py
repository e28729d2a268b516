"""A recipe on a cluster that is not here: what is handed to the planner."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Literal

import torch

from dgan.build import build_players, deepspeed_plan
from dgan.build_networks import build_discriminator, build_network
from dgan.config import Parallel, Recipe
from dgan.data.unpaired import DOMAINS
from dgan.parallel.world import World
from dgan.planner import (
    Job,
    Plan,
    Rehearsal,
    Rehearsals,
    Setting,
    fakes,
    find_gpu,
    make_plan,
    rehearse,
    units_of,
)
from dgan.rehearsal import sample_shape
from dgan.step import Players
from dgan.validation import validate

Strategy = Literal["single", "fsdp"]
LARGE = 1_000_000_000
"""Parameters from which a rehearsal takes longer than a process takes to start."""
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
    ranks = min(max(job.ranks, 2), REHEARSED_RANKS)  # of one rank nothing would be sharded
    ways: list[tuple[Strategy, int, bool]] = [("single", 1, False), ("fsdp", ranks, False)]
    with fakes():
        networks = build_network(recipe, "generator"), build_discriminator(recipe)
    if all(units_of(network) > 1 for network in networks):  # there is something to recompute
        ways.extend([("single", 1, True), ("fsdp", ranks, True)])
    if sum(p.numel() for network in networks for p in network.parameters()) < LARGE:
        found = [_rehearsal(recipe, job, *way) for way in ways]
    else:
        with ProcessPoolExecutor(len(ways), get_context("spawn")) as pool:
            found = list(pool.map(_rehearsal, *zip(*((recipe, job, *way) for way in ways))))
    rehearsed = [
        Rehearsals(checkpointing=bool(at), whole=found[at], sharded=found[at + 1])
        for at in range(0, len(found), 2)
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
    strategy: Strategy,
    ranks: int,
    checkpointing: bool,
) -> Rehearsal:
    parallel = Parallel(strategy=strategy, activation_checkpointing=checkpointing)
    changed = replace(recipe, parallel=parallel)

    def build(world: World) -> Players:
        return build_players(changed, world)

    setting = Setting(
        ranks=ranks,
        rows=job.rows,
        accumulation=job.accumulation,
        batch=_entries(recipe),
        compute_dtype=torch.bfloat16 if job.bfloat16 else torch.float32,
        # What a penalty adds is shown for blocks that are kept; a lazy one has two kinds of steps.
        compare=not checkpointing or job.penalty_every > 1,
    )
    return rehearse(build, setting)


def _entries(recipe: Recipe) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """What a batch of the recipe's data holds for each sample: shapes and dtypes."""
    names = {"points": ("sample",), "pairs": DOMAINS, "unpaired": DOMAINS}
    found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        name: (sample_shape(recipe), torch.float32)
        for name in names.get(recipe.data.kind, ("image",))
    }
    if recipe.data.embedding:
        found["condition"] = ((recipe.data.embedding,), torch.float32)
    return {**found, "label": ((), torch.int64)} if recipe.data.classes else found
