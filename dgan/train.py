"""The training loop: read `train` from top to bottom."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

import dgan
from dgan.build import build_evaluator, build_players, open_run, open_stream, pace
from dgan.checkpoint import Checkpoints
from dgan.config import Recipe, validate
from dgan.data import ShardStream
from dgan.draws import Draws
from dgan.evaluation import Evaluator, to_uint8
from dgan.lock import hold
from dgan.parallel.world import World, launch
from dgan.run import Run, StopSignal
from dgan.step import Batch, Players, adversarial_step, prepare


def train(recipe: Recipe) -> str | None:
    """Train what `recipe` describes, from the start or from where its directory stopped.

    Returns:
        The signal that ended it before its last step, saved, if one did.

    Raises:
        ValueError, FileNotFoundError: the recipe cannot be run as it is.
        dgan.step.NonFinite: a loss or gradient was; the last checkpoint is usable.
        OSError: a checkpoint could not be written; the one before it is usable.
        ConnectionError: another rank was lost; likewise.
    """
    validate(recipe)
    plan, step_plan = recipe.train, pace(recipe)
    with (
        launch(
            precision=plan.precision,
            deterministic=plan.deterministic,
            start_minutes=recipe.run.start_minutes,
            stall_minutes=recipe.run.stall_minutes,
        ) as world,
        open_stream(recipe, world) as stream,
        hold(recipe.directory, world) as confirm,
        open_run(recipe, world) as run,
        StopSignal() as stop,
        Checkpoints(
            run.directory / "checkpoints",
            keep=recipe.checkpoint.keep,
            keep_best=recipe.checkpoint.keep_best,
            world=world,
            confirm=confirm,
        ) as checkpoints,
    ):
        players = build_players(recipe, world)
        start = restore(checkpoints, players, stream, run)
        run.open(start)
        evaluator = build_evaluator(recipe, stream, world, run)
        if start == 0:
            if recipe.penalty.check:
                check(players, stream, world, run)
            run.grid("reals", first_images(stream, recipe.samples.count), grid_columns(recipe))
            show(players, recipe, world, run, step=0)
            evaluate(evaluator, players, run, step=0)

        step, asked, batches = start, 0, watched(stream, world)
        for step in run.steps(start):
            world.at("update", step)
            metrics = adversarial_step(players, batches, step, step_plan, world)
            last = step == plan.steps
            if due(step, plan.log_every) or last:
                run.status(step, metrics | skipped(stream, run, world))
            if due(step, recipe.samples.every) or last:
                show(players, recipe, world, run, step)
            scores = {}
            if due(step, recipe.evaluation.every) or last:
                scores = evaluate(evaluator, players, run, step)
            world.at("checkpoint")
            # Of the signals that ranks received, the same one on all of them.
            asked, failed = world.largest(stop.received, checkpoints.failed)
            if due(step, recipe.checkpoint.every) or last or asked or failed:
                facts = {"stream": stream.state_dict(), "scores": scores, "dgan": dgan.__version__}
                checkpoints.save(step, players.state(), facts)
            checkpoints.poll()
            if asked or failed:
                break
            if step == start + 1:
                world.settle()
        world.at("last checkpoint")
        checkpoints.wait()
        stopped_by = signal.Signals(asked).name if asked and step < plan.steps else None
        summarise(run, checkpoints, step, stopped_by)
        return stopped_by


def watched(stream: ShardStream, world: World) -> Iterator[Batch]:
    """The batches of `stream`; the watchdog knows when one is waited for."""
    while True:
        world.at("reading data")
        batch = next(stream)
        world.at("update")
        yield batch


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps happens now; 0 or less is never."""
    return every > 0 and step % every == 0


def restore(checkpoints: Checkpoints, players: Players, stream: ShardStream, run: Run) -> int:
    """Load the newest good checkpoint, if there is one; the step it was taken at, or 0."""
    found = checkpoints.restore(players.state(), run.say)
    if found is None:
        return 0
    path, facts = found
    players.loaded()
    stream.load_state_dict(facts["stream"])
    run.say(f"going on from {path}")
    return int(facts["step"])


def check(players: Players, stream: ShardStream, world: World, run: Run) -> None:
    """Compare the penalty's gradient with a finite difference, on images the stream keeps."""
    rows = min(stream.batch_size, 32 * world.size)
    batches = stream.dataset.batches(
        rows, rank=world.rank, world_size=world.size, skip_corrupt=True
    )
    replica = players.discriminator.replica
    # Weights of 16 bits, as DeepSpeed keeps them, do not meet images of 32 otherwise.
    narrow = next(replica.module.parameters()).dtype != world.dtype
    with world.autocast() if narrow else nullcontext():
        error = players.task.check(replica, prepare(next(batches), world))
    if error is not None:
        run.say(f"the penalty's gradient is right: its relative error is about {error:.1g}")


@torch.no_grad()
def show(players: Players, recipe: Recipe, world: World, run: Run, step: int) -> None:
    """A grid of samples from latents that stay the same; for conditional networks a row a class."""
    columns = grid_columns(recipe)
    count = min(recipe.samples.count, columns * (recipe.data.classes or recipe.samples.count))
    draws = Draws(
        seed=recipe.train.seed,
        purpose="grid",
        step=0,
        rows=range(count),
        device=world.device,
        dtype=world.dtype,
    )
    labels = None
    if recipe.data.classes:
        labels = torch.arange(count, device=world.device) // columns
    world.at("sample grid")
    # Every rank makes all of them: a sharded network needs every rank in every call.
    with players.average.network() as network, world.autocast():
        images = network(draws.normal(players.task.z_dim), labels)
    run.grid(f"step-{step:09d}", to_uint8(images), columns)


def grid_columns(recipe: Recipe) -> int:
    """How many samples stand in a row."""
    count, classes = recipe.samples.count, recipe.data.classes
    return max(1, count // classes) if classes else max(1, round(count**0.5))


def first_images(stream: ShardStream, count: int) -> torch.Tensor:
    """The first images of the shards, for comparison with the samples."""
    found = torch.empty(0, dtype=torch.uint8)
    for batch in stream.dataset.batches(count, skip_corrupt=True):
        found = torch.cat([found, batch["image"]])[:count] if len(found) else batch["image"]
        if len(found) == count:
            break
    if not len(found):
        raise ValueError(f"no sample of {stream.dataset.table} decodes: pack the shards again")
    return found


def evaluate(evaluator: Evaluator | None, players: Players, run: Run, step: int) -> dict[str, Any]:
    """Score the averaged generator, record what came out, and return it."""
    if evaluator is None:
        return {}
    world = evaluator.world
    world.at("evaluation")
    with players.average.network() as network:

        def synthesise(z: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
            world.at("evaluation")  # many samples take long, and move all the time
            return network(z, labels)

        scores = evaluator(synthesise, players.task.z_dim)
    run.record(step, scores)
    numbers = {key: value for key, value in scores.items() if isinstance(value, float)}
    run.say(f"step {step}  " + "  ".join(f"{key} {value:.4g}" for key, value in numbers.items()))
    return scores


def skipped(stream: ShardStream, run: Run, world: World) -> dict[str, float]:
    """Samples left out on all ranks because they do not decode; their names go to the log."""
    recent = [(skip.shard, skip.key, skip.reason) for skip in stream.drain_skipped()]
    reports = world.gather((recent, stream.skipped.total()))
    for rank, (names, _) in enumerate(reports):
        for shard, key, reason in names:
            run.say(f"skipped sample {key} of {shard} on rank {rank}: {reason}")
    return {"data/skipped": float(sum(total for _, total in reports))}


def summarise(run: Run, checkpoints: Checkpoints, step: int, stopped_by: str | None) -> None:
    """The table that ends a run, and how to go on."""
    newest = checkpoints.latest()
    rows = {}
    for key, name in (("fid", "FID"), ("coverage", "classes covered")):
        if history := run.history(key):
            (first, before), (last, after) = history[0], history[-1]
            form = "{:.0%}" if key == "coverage" else "{:.2f}"
            rows[name] = (
                f"{form.format(before)} at step {first} → {form.format(after)} at step {last}"
            )
    if features := run.history("features"):
        rows["FID's features"] = str(features[-1][1])
    if speeds := [value for _, value in run.history("images_per_second")]:
        rows["images per second"] = f"{sorted(speeds)[len(speeds) // 2]:.0f}"
    if grids := sorted((run.directory / "samples").glob("step-*.png")):
        rows["samples"] = str(grids[-1])
    if newest is not None:
        rows["checkpoint"] = str(newest)
    # DeepSpeed's launcher, unlike torchrun, sets only the second.
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", 0)))
    command = (
        f"{program('torchrun')} --nproc-per-node {ranks} -m dgan" if ranks else program("dgan")
    )
    rows["go on"] = f"{command} train {run.directory}"
    if step >= run.total:
        rows["go on"] += f" --train.steps {2 * step}"
    rows["curves"] = f"{program('tensorboard')} --logdir {run.directory}"
    title = (
        f"{run.directory}: stopped by {stopped_by}, saved"
        if stopped_by
        else f"{run.directory}: done"
    )
    run.table(f"{title} at step {step} of {run.total}", rows)


def program(name: str) -> str:
    """How a person starts a program of this Python environment from here."""
    beside = Path(sys.executable).parent / name
    on_path = shutil.which(name)
    is_active = on_path is not None and Path(on_path).parent == beside.parent
    if is_active or not beside.exists():
        return name
    return os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)
