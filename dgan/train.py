"""The training loop: read `train` from top to bottom."""

import signal
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch

import dgan
from dgan.build import build_players, fill_reference_batches, pace
from dgan.build_evaluation import Scores, build_evaluator, build_pictures
from dgan.checkpoint import Checkpoints
from dgan.config import Recipe
from dgan.divergence import Guard, patience_for
from dgan.environment import environment
from dgan.lock import hold
from dgan.opening import Stream, open_run, open_stream
from dgan.parallel.world import World, launch
from dgan.pictures import Pictures
from dgan.recipe_file import fixed
from dgan.run import Run, StopSignal
from dgan.skips import Skips
from dgan.step import Batch, Players, prepare
from dgan.summary import summarise
from dgan.validation import validate


def train(recipe: Recipe) -> str | None:
    """Train what `recipe` describes, from the start or from where its directory stopped.

    Returns:
        The signal that ended it before its last step, saved, if one did.

    Raises:
        ValueError, FileNotFoundError: the recipe cannot be run as it is.
        dgan.divergence.Diverged: the training fails; says which checkpoint is usable.
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
            whereabouts=recipe.directory / ".ranks",
        ) as world,
        open_stream(recipe, world) as stream,
        hold(recipe.directory, world) as confirm,
        open_run(recipe, world) as run,
        StopSignal() as stop,
        Checkpoints(
            run.directory / "checkpoints",
            keep=recipe.checkpoint.keep,
            keep_best=recipe.checkpoint.keep_best,
            best_by=recipe.checkpoint.best,
            world=world,
            confirm=confirm,
        ) as checkpoints,
    ):
        players = build_players(recipe, world)
        patience = recipe.divergence.patience or patience_for(plan.steps)
        guard = Guard(**asdict(replace(recipe.divergence, patience=patience)))
        skips = Skips(stream, world, recipe.data.max_skipped, run.say)
        start = restore(checkpoints, players, stream, guard, skips, run)
        world.built()
        run.open(start)
        run.began(start, environment(world))
        evaluator = build_evaluator(recipe, stream, world, run)
        pictures = build_pictures(recipe, stream, players.z_dim, world)
        if start == 0:
            fill_reference_batches(players, recipe, stream, world)
            if recipe.penalty.check:
                check(players, stream, world, run)
            run.grid("reals", *pictures.of_reals())
            show(players, pictures, run, step=0)
            evaluate(evaluator, players, world, run, step=0)

        step, asked, batches = start, 0, watched(stream, world)
        for step in run.steps(start):
            world.at("update", step)
            metrics = guard.step(players, batches, step, step_plan, world)
            if guard.alarm:
                guard.respond(step, players, checkpoints, run.say)
            last = step == plan.steps
            if due(step, plan.log_every) or last or guard.alarm:
                run.status(step, metrics | guard.metrics() | skips.collect())
            if due(step, recipe.samples.every) or last:
                show(players, pictures, run, step)
            scores = {}
            if due(step, recipe.evaluation.every) or last:
                scores = evaluate(evaluator, players, world, run, step)
            world.at("checkpoint")
            # Of the signals that ranks received, the same one on all of them.
            asked, failed = world.largest(stop.received, checkpoints.failed)
            if due(step, recipe.checkpoint.every) or last or asked or failed or guard.alarm:
                skips.collect()
                facts = {"stream": stream.state_dict(), "divergence": guard.state_dict()}
                facts |= {"skipped": skips.state_dict(), "recipe": fixed(recipe)}
                facts |= {"scores": scores, "dgan": dgan.__version__}
                checkpoints.save(step, players.state(), facts, calm=guard.calm)
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


def watched(stream: Stream, world: World) -> Iterator[Batch]:
    """The batches of `stream`; the watchdog knows when one is waited for."""
    while True:
        world.at("reading data")
        batch = next(stream)
        world.at("update")
        yield batch


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps happens now; 0 or less is never."""
    return every > 0 and step % every == 0


def restore(
    checkpoints: Checkpoints, players: Players, stream: Stream, guard: Guard, skips: Skips, run: Run
) -> int:
    """Load the newest good checkpoint, if there is one; the step it was taken at, or 0."""
    found = checkpoints.restore(players.state(), run.say)
    if found is None:
        return 0
    path, facts = found
    players.loaded()
    stream.load_state_dict(facts["stream"])
    guard.load_state_dict(facts.get("divergence", {}))
    skips.load_state_dict(facts.get("skipped", {}))
    run.say(f"going on from {path}")
    return int(facts["step"])


def check(players: Players, stream: Stream, world: World, run: Run) -> None:
    """Compare the penalty's gradient with a finite difference, on samples the stream keeps."""
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
def show(players: Players, pictures: Pictures, run: Run, step: int) -> None:
    """A picture of what the averaged generator makes."""
    pictures.world.at("sample grid")
    with players.average.network() as network, players.discriminator.replica.frozen() as judge:
        sheet = pictures.of_samples(network, judge)
    run.grid(f"step-{step:09d}", *sheet)


def evaluate(
    evaluator: Scores | None, players: Players, world: World, run: Run, step: int
) -> dict[str, Any]:
    """Score the averaged generator, record what came out, and return it."""
    if evaluator is None:
        return {}
    world.at("evaluation")
    with players.average.network() as network:

        def generator(*inputs: torch.Tensor | None) -> Any:
            world.at("evaluation")  # many samples take long, and move all the time
            return network(*inputs)

        scores = evaluator(generator, players.z_dim)
    run.record(step, scores)
    numbers = {key: value for key, value in scores.items() if isinstance(value, float)}
    run.say(f"step {step}  " + "  ".join(f"{key} {value:.4g}" for key, value in numbers.items()))
    return scores
