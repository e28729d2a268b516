"""Trainings that fail: numbers that are not finite, and what a rollback gives back."""

import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import (
    ROOT,
    assert_same_checkpoint,
    checkpoint_of,
    facts,
    metrics,
    start,
    steps_kept,
    stored,
    wait_until,
)
from failing import BATCH, assert_same_tensors, message_of, poisoned
from ranks import run_ranks
from tiny import tiny

from dgan.build import build_players, pace
from dgan.checkpoint import load
from dgan.config import Divergence, Recipe
from dgan.divergence import SIGNS, Guard
from dgan.draws import seed_of
from dgan.opening import open_stream
from dgan.parallel.replicas import local
from dgan.parallel.world import launch
from dgan.recipe_file import differences, to_toml
from dgan.step import NonFinite, adversarial_step
from dgan.train import train
from dgan.validation import validate


def first_failure(recipe: Recipe) -> tuple[int, str, bool]:
    """The step that fails on this rank, the message, and whether nothing has changed."""
    with launch(precision="float64") as world, open_stream(recipe, world) as stream:
        players = build_players(recipe, world)
        for step in range(1, 9):
            before = {name: local(tensor).clone() for name, tensor in players.state().items()}
            try:
                adversarial_step(players, stream, step, pace(recipe), world)
            except NonFinite as error:
                after = players.state()
                return (
                    step,
                    str(error),
                    all(torch.equal(local(after[name]), tensor) for name, tensor in before.items()),
                )
    return 0, "", False


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_ranks_refuse_the_same_step(strategy: str, digits: str, tmp_path: Path) -> None:
    recipe = poisoned(digits, tmp_path, 3, parallel__strategy=strategy, train__accumulation=2)
    first, second = run_ranks(2, first_failure, recipe)
    assert first == second
    step, message, unchanged = first
    assert (step, unchanged) == (3, True)
    assert "rank 1: loss" in message
    assert "rank 0: loss" not in message  # though the gradient, a sum, is not finite there too


@pytest.fixture(scope="module")
def rolled_back(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """In one process, 8 steps, of which the fifth is not finite."""
    run = tmp_path_factory.mktemp("runs") / "single"
    recipe = poisoned(
        digits, run, 5, train__steps=8, divergence__learning_rate=0.5, parallel__strategy="single"
    )
    train(recipe)
    return recipe


def test_a_rollback_gives_back_every_bit_and_goes_on(rolled_back: Recipe) -> None:
    run = rolled_back.directory
    assert steps_kept(run) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert_same_tensors(checkpoint_of(run, 5), checkpoint_of(run, 4))
    # Past the batch: the data goes on, and so does the count of steps.
    for step in (4, 5, 6, 8):
        assert facts(checkpoint_of(run, step))["stream"]["position"] == step * BATCH
    ours = {"rollbacks": 1, "calm": 5}
    assert facts(checkpoint_of(run, 5))["divergence"].items() >= ours.items()
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["divergence/rollbacks"] for line in lines] == [0, 0, 0, 0, 1, 1, 1, 1]
    rung = {line["step"]: line["divergence/alarm"] for line in lines if "divergence/alarm" in line}
    assert rung == {5: "nonfinite"}
    log = (run / "log.txt").read_text()
    assert "step 5: the discriminator's update is not finite" in log
    assert f"step 5: rolled back to {checkpoint_of(run, 4)} (rollback 1 of at most 3)" in log


def test_after_a_rollback_come_other_draws_and_rates(rolled_back: Recipe) -> None:
    """Step 6, made again from what was saved: with the new seed and rate, and without."""
    path = checkpoint_of(rolled_back.directory, 5)
    usual = pace(rolled_back)
    seed = seed_of(usual.seed, "rollback", 1)
    expected = stored(checkpoint_of(rolled_back.directory, 6))
    for seed_now, rate, equal in ((seed, 0.5, True), (seed, 1.0, False), (usual.seed, 0.5, False)):
        with launch(deterministic=True) as world, open_stream(rolled_back, world) as stream:
            players = build_players(rolled_back, world)
            stream.load_state_dict(load(path, players.state(), distributed=True)["stream"])
            plan = replace(usual, seed=seed_now, learning_rate=rate)
            adversarial_step(players, stream, 6, plan, world)
            state = {name: local(t).clone() for name, t in players.state().items()}
        assert equal == all(torch.equal(state[name], tensor) for name, tensor in expected.items())


STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp": {"strategy": "fsdp"},
    "zero 1": {"strategy": "deepspeed", "zero_stage": 1},
    "zero 2": {"strategy": "deepspeed", "zero_stage": 2},
    "zero 3": {"strategy": "deepspeed", "zero_stage": 3},
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_rolls_back_alike(name: str, rolled_back: Recipe, tmp_path: Path) -> None:
    options = STRATEGIES[name]
    if options["strategy"] == "deepspeed":
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    run = tmp_path / "run"
    recipe = replace(
        rolled_back,
        run=replace(rolled_back.run, dir=str(run)),
        parallel=replace(rolled_back.parallel, **options),
        # ZeRO-3 has no weights left for a second backward pass; `forward` is as exact.
        penalty=replace(rolled_back.penalty, method="forward" if name == "zero 3" else "double"),
    )
    run_ranks(2, train, recipe)
    assert_same_tensors(checkpoint_of(run, 5), checkpoint_of(run, 4))
    alone = rolled_back.directory
    for line, expected in zip(metrics(run), metrics(alone)):
        # Float32, and Adam divides by gradients that may be near zero: rounding grows over steps.
        assert line.pop("divergence/alarm", "") == expected.pop("divergence/alarm", "")
        assert line.pop("discriminator/accuracy", 0) == pytest.approx(
            expected.pop("discriminator/accuracy", 0), abs=1.5 / BATCH
        )
        assert line == pytest.approx(expected, rel=0.02, abs=0.01)
    reference = stored(checkpoint_of(alone, 8))
    for key, tensor in stored(checkpoint_of(run, 8)).items():
        error = (tensor.double() - reference[key].double()).norm()
        assert error <= 0.05 * reference[key].double().norm() + 1e-3, key


def test_rollbacks_come_to_an_end(digits: str, tmp_path: Path) -> None:
    recipe = poisoned(digits, tmp_path / "run", 2, 3, 5, 6, train__steps=8, divergence__at_most=3)
    first, second = run_ranks(2, message_of, recipe)
    assert first == second
    assert first.startswith("step 6: the discriminator's update is not finite\nrank 0: gradient; ")
    assert "The rollbacks so far, 3 of at most 3 (--divergence.at_most), did not help" in first
    assert "--divergence.policy" not in first
    run = tmp_path / "run"
    assert f"{checkpoint_of(run, 5)} is from before that, and usable" in first
    assert steps_kept(run)[-1] == 5
    assert facts(checkpoint_of(run, 5))["divergence"]["rollbacks"] == 3
    # Again, it fails again: the count is part of the run.
    assert message_of(replace(recipe, parallel=replace(recipe.parallel, strategy="single")))


def test_before_the_first_checkpoint_there_is_nothing_to_go_back_to(
    digits: str, tmp_path: Path
) -> None:
    message = message_of(poisoned(digits, tmp_path / "run", 1))
    assert message.startswith("step 1: the discriminator's update is not finite\nrank 0: ")
    assert "No checkpoint is older" in message
    assert message in (tmp_path / "run" / "log.txt").read_text()
    assert not (tmp_path / "run" / "checkpoints" / "step-000000001").exists()


def test_a_run_that_is_killed_after_a_rollback_goes_on_bit_for_bit(
    digits: str, tmp_path: Path
) -> None:
    recipe = poisoned(digits, tmp_path / "run", 5, train__steps=4000, checkpoint__every=3)
    run, whole = tmp_path / "run", tmp_path / "whole"
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(recipe))
    process = start("train", path, cwd=ROOT / "tests")
    log = run / "log.txt"
    wait_until(lambda: log.exists() and "rolled back to" in log.read_text(), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    last = max(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))
    shorter = replace(recipe.train, steps=last + 4)
    train(replace(recipe, train=shorter))
    train(replace(recipe, train=shorter, run=replace(recipe.run, dir=str(whole))))
    assert metrics(run) == metrics(whole)
    assert_same_checkpoint(checkpoint_of(run, last + 4), checkpoint_of(whole, last + 4))


@pytest.mark.parametrize("last", [4, 5, 6])
def test_a_run_goes_on_from_around_a_rollback(
    last: int, rolled_back: Recipe, tmp_path: Path
) -> None:
    """As if it had been killed before the rollback was saved, just after, and a step later."""
    run = tmp_path / "run"
    shutil.copytree(rolled_back.directory, run)
    for step in range(last + 1, 9):
        shutil.rmtree(checkpoint_of(run, step))
    train(replace(rolled_back, run=replace(rolled_back.run, dir=str(run))))
    assert metrics(run) == metrics(rolled_back.directory)
    for step in (5, 6, 8):
        assert_same_checkpoint(checkpoint_of(run, step), checkpoint_of(rolled_back.directory, step))


@pytest.mark.parametrize(
    ("key", "value", "limits"),
    [
        ("policy", "pray", "choose stop or rollback"),
        ("patience", -1, "at least 0"),
        ("at_most", 0, "at least 1"),
        ("accuracy", 0.5, "above 0.5 and at most 1, or 0"),
        ("accuracy", 1.5, "above 0.5 and at most 1, or 0"),
        ("diversity", -0.1, "above 0 and at most 1, or 0"),
        ("logits", float("nan"), "above 0, or 0"),
        ("penalty", -1.0, "above 0, or 0"),
        ("learning_rate", 0.0, "above 0 and at most 1"),
        ("learning_rate", 2.0, "above 0 and at most 1"),
    ],
)
def test_bad_values_are_named(key: str, value: Any, limits: str) -> None:
    with pytest.raises(ValueError, match=rf"--divergence.{key} is '?{value}'?; .*{limits}"):
        validate(tiny("", "", **{f"divergence__{key}": value}))


def test_every_bound_has_a_switch() -> None:
    off = Divergence(accuracy=0, diversity=0, logits=0, penalty=0)
    validate(tiny("", "", divergence=off))
    assert not Guard(**asdict(off)).bounds
    assert Guard(**asdict(Divergence())).bounds.keys() == SIGNS.keys()


def test_what_is_done_about_it_may_change_on_the_way() -> None:
    other = Divergence(policy="rollback", patience=9, learning_rate=0.5)
    assert not differences(tiny("", ""), tiny("", "", divergence=other))
