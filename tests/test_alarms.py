"""Trainings that fail slowly: statistics that stay beyond their bounds."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import (
    assert_same_checkpoint,
    checkpoint_of,
    dgan,
    metrics,
    steps_kept,
)
from failing import assert_same_tensors, message_of, tiny_run

from dgan.config import Divergence, Recipe
from dgan.divergence import patience_for
from dgan.recipe_file import to_toml
from dgan.schedule import constant
from dgan.train import train


def in_a_row(run: Path, key: str, patience: int, beyond: Callable[[float], bool]) -> int:
    """The step that ends the first `patience` steps in a row in which a statistic is beyond."""
    row = 0
    for line in metrics(run):
        if key in line:
            row = row + 1 if beyond(line[key]) else 0
            if row == patience:
                return line["step"]
    raise AssertionError("no alarm in sight")


def unwatched(recipe: Recipe, run: Path) -> Path:
    """The same run without any bound; its directory."""
    free = Divergence(accuracy=0, diversity=0, logits=0, penalty=0)
    train(replace(recipe, divergence=free, run=replace(recipe.run, dir=str(run))))
    return run


def saturating(shards: str, run: Path, **changes: Any) -> Recipe:
    """The generator stands still, and the discriminator soon tells all pairs apart."""
    return tiny_run(
        shards,
        run,
        **{
            "train__steps": 60,
            "generator__learning_rate": constant(0.0),
            "discriminator__learning_rate": constant(1e-2),
            "penalty__gamma": constant(0.0),
            "divergence": Divergence(patience=6),
            **changes,
        },
    )


def test_a_short_run_may_ring_by_itself(digits: str, tmp_path: Path) -> None:
    """Nobody sets a patience that fits its length."""
    assert [patience_for(steps) for steps in (4, 900, 1600, 400_000)] == [100, 180, 320, 1000]
    message = message_of(saturating(digits, tmp_path, train__steps=160, divergence=Divergence()))
    assert "for 100 steps in a row (--divergence.patience)" in message


def test_a_saturated_discriminator_stops_the_run(
    digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = saturating(digits, tmp_path / "run")
    free = unwatched(recipe, tmp_path / "free")
    step = in_a_row(free, "discriminator/accuracy", 6, lambda value: value >= 0.999)
    assert step > 7
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(recipe))
    message = dgan(capsys, "train", path).error()
    assert message.startswith(f"step {step}: the discriminator is saturated")
    assert (
        "discriminator/accuracy is 1, and was at least 0.999 (--divergence.accuracy) for 6 steps "
        "in a row (--divergence.patience)"
    ) in message
    good = checkpoint_of(tmp_path / "run", step - 6)
    assert f"{good} is from before that, and usable. Try a larger --penalty.gamma" in message
    assert message.endswith("or go on with --divergence.policy rollback")
    assert steps_kept(tmp_path / "run")[-1] == step - 1
    assert metrics(tmp_path / "run") == metrics(free)[: step - 1]


def test_a_rollback_goes_back_to_before_the_trouble_began(digits: str, tmp_path: Path) -> None:
    policy = Divergence(policy="rollback", patience=6, at_most=1)
    recipe = saturating(digits, tmp_path / "run", divergence=policy)
    free = unwatched(recipe, tmp_path / "free")
    step = in_a_row(free, "discriminator/accuracy", 6, lambda value: value >= 0.999)
    second = message_of(recipe)  # the generator still stands still
    run = tmp_path / "run"
    assert_same_tensors(checkpoint_of(run, step), checkpoint_of(run, step - 6))
    line = metrics(run)[step - 1]
    assert (line["divergence/alarm"], line["divergence/rollbacks"]) == ("saturated", 1)
    # The step's own statistics are those that rang.
    assert line["discriminator/accuracy"] == metrics(free)[step - 1]["discriminator/accuracy"]
    again = in_a_row(run, "discriminator/accuracy", step, lambda value: True)
    assert again == step
    assert int(re.match(r"step (\d+): the discriminator is saturated", second)[1]) >= step + 6  # type: ignore[index]
    assert "The rollbacks so far, 1 of at most 1 (--divergence.at_most), did not help" in second
    # Of few checkpoints, the one to go back to is kept, and a run in parts is the run in one.
    few = replace(recipe, checkpoint=replace(recipe.checkpoint, keep=1, keep_best=0))
    few = replace(few, run=replace(few.run, dir=str(tmp_path / "few")))
    train(replace(few, train=replace(few.train, steps=step - 2)))
    assert steps_kept(tmp_path / "few") == [step - 6, step - 2]
    assert message_of(few) == second.replace(str(run), str(tmp_path / "few"))
    assert metrics(tmp_path / "few") == metrics(run)
    last = steps_kept(run)[-1]
    assert_same_checkpoint(checkpoint_of(tmp_path / "few", last), checkpoint_of(run, last))


def test_a_generator_that_does_not_hear_its_latents_is_noticed(digits: str, tmp_path: Path) -> None:
    message = message_of(
        tiny_run(
            digits,
            tmp_path / "run",
            generator__network="failing:Deaf",
            data__classes=0,
            train__steps=6,
            divergence=Divergence(patience=4),
        )
    )
    assert re.match(
        r"step 4: the generator has collapsed: .*: discriminator/diversity is \S+, and was at most "
        r"0.01 \(--divergence.diversity\) for 4 steps in a row",
        message,
    )
    assert "No checkpoint is older" in message


@pytest.mark.parametrize(
    ("bounds", "step", "words"),
    [
        ({"logits": 1e-9}, 3, "discriminator/real_logits or discriminator/fake_logits is "),
        # A lazy penalty is seen in steps 1, 3 and 5.
        ({"penalty": 1e-9}, 5, "discriminator/r1 or discriminator/r2 is "),
    ],
)
def test_what_explodes_is_noticed(
    bounds: dict[str, float], step: int, words: str, digits: str, tmp_path: Path
) -> None:
    plan = {"divergence": Divergence(patience=3, **bounds), "penalty__every": 2}  # type: ignore[arg-type]
    message = message_of(tiny_run(digits, tmp_path / "run", train__steps=6, **plan))
    assert message.startswith(f"step {step}: the discriminator's ")
    assert words in message
    assert "at least 1e-09" in message


def test_a_run_that_fares_well_rings_no_alarm(digits: str, tmp_path: Path) -> None:
    """Even with a patience that is far too short."""
    patience = {"divergence__patience": 20, "checkpoint__every": 50}
    assert not message_of(tiny_run(digits, tmp_path, family="r3gan", train__steps=80, **patience))
    lines = metrics(tmp_path)
    assert len(lines) == 80
    assert all(line["divergence/rollbacks"] == 0 for line in lines)
    assert not any("divergence/alarm" in line for line in lines)
    assert lines[-1]["discriminator/diversity"] > 0.05
    assert 0.5 <= np.mean([line["discriminator/accuracy"] for line in lines]) < 0.999
