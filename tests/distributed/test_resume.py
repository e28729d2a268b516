"""A run on several ranks that stops and goes on, on as many ranks or on others."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import assert_same_checkpoint, checkpoint_of, facts, metrics, steps_kept, stored
from ranks import run_ranks
from tiny import tiny
from torch import Tensor
from torch.distributed.tensor import DTensor

from dgan.build import build_players
from dgan.checkpoint import Checkpoints, load
from dgan.config import Recipe
from dgan.parallel.world import launch
from dgan.train import train


def recipe(shards: str, run: Path, **changes: Any) -> Recipe:
    # 12 rows a batch: on 1, 2 and 3 ranks.
    return tiny(
        shards, str(run), "dcgan", train__batch_size=12, train__deterministic=True, **changes
    )


def one_after_another(*jobs: Any) -> list[Any]:
    """Functions with their arguments, each in a process group of its own."""
    port = int(os.environ["MASTER_PORT"])
    answers = []
    for number, (function, *arguments) in enumerate(jobs):
        os.environ["MASTER_PORT"] = str(port + number)
        answers.append(function(*arguments))
    return answers


def restored(recipe: Recipe, path: Path) -> dict[str, Tensor]:
    """Every tensor, whole, of players that were filled from a checkpoint."""
    with launch(precision=recipe.train.precision) as world:
        players = build_players(recipe, world)
        with torch.no_grad():
            for tensor in players.state().values():
                tensor.fill_(-7)
        load(path, players.state(), distributed=True)
        tensors = players.state().items()
        return {k: (v.full_tensor() if isinstance(v, DTensor) else v).clone() for k, v in tensors}


@pytest.fixture(scope="module")
def runs(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On 2 FSDP ranks: `whole`, 4 steps at once, and `parts`, 3 steps and then one more."""
    folder = tmp_path_factory.mktemp("runs")
    jobs = [
        (train, recipe(digits, folder / "whole", checkpoint__every=1, checkpoint__keep=9)),
        (train, recipe(digits, folder / "parts", train__steps=3)),
        (train, recipe(digits, folder / "parts", train__steps=4)),
    ]
    run_ranks(2, one_after_another, *jobs)
    return folder


def test_the_same_ranks_go_on_bit_for_bit(runs: Path) -> None:
    assert steps_kept(runs / "whole") == [1, 2, 3, 4]
    assert_same_checkpoint(checkpoint_of(runs / "parts", 4), checkpoint_of(runs / "whole", 4))
    assert metrics(runs / "parts") == metrics(runs / "whole")
    assert facts(checkpoint_of(runs / "whole", 4))["stream"]["position"] == 4 * 12


def test_only_the_first_rank_writes(runs: Path) -> None:
    assert (runs / "whole" / "log.txt").read_text().count("step 4/4") == 1
    assert len(list((runs / "whole" / "tensorboard").iterdir())) == 1
    shards = {path.name for path in checkpoint_of(runs / "whole", 4).glob("*.distcp")}
    assert {name.split("_")[2] for name in shards} == {"0", "1"}  # but each its own shard


def test_other_ranks_and_strategies_read_the_same_values(
    runs: Path, digits: str, tmp_path: Path
) -> None:
    path = checkpoint_of(runs / "whole", 2)
    expected = stored(path)
    assert len({tensor.double().abs().sum().item() for tensor in expected.values()}) > 20
    plans = {s: recipe(digits, tmp_path, parallel__strategy=s) for s in ("single", "ddp", "fsdp")}
    answers = {f"{name} on 1": restored(plan, path) for name, plan in plans.items()}
    two = run_ranks(2, one_after_another, (restored, plans["ddp"], path))
    three = run_ranks(3, one_after_another, (restored, plans["fsdp"], path))
    answers |= {f"ddp on 2, rank {i}": answer for i, (answer,) in enumerate(two)}
    answers |= {f"fsdp on 3, rank {i}": answer for i, (answer,) in enumerate(three)}
    for case, tensors in answers.items():
        assert tensors.keys() == expected.keys(), case
        for name, tensor in expected.items():
            assert torch.equal(tensors[name], tensor), (case, name)


def test_a_run_goes_on_at_another_world_size(runs: Path, digits: str, tmp_path: Path) -> None:
    """From step 2 of 2 ranks: on 3 ranks to step 3, in one process to step 4."""
    run = tmp_path / "run"
    shutil.copytree(runs / "whole", run)
    for step in (3, 4):
        shutil.rmtree(checkpoint_of(run, step))
    plan = recipe(digits, run, checkpoint__keep=9)
    run_ranks(3, one_after_another, (train, replace(plan, train=replace(plan.train, steps=3))))
    train(recipe(digits, run, checkpoint__keep=9, parallel__strategy="single"))
    assert steps_kept(run) == [1, 2, 3, 4]
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4]
    for line, expected in zip(metrics(run), metrics(runs / "whole")):
        assert line == pytest.approx(expected, rel=1e-3, abs=1e-4)
    ours, theirs = checkpoint_of(run, 4), checkpoint_of(runs / "whole", 4)
    assert facts(ours) == facts(theirs)
    reference = stored(theirs)
    for name, tensor in stored(ours).items():
        # Sums over other numbers of ranks round differently.
        assert torch.allclose(tensor, reference[name], rtol=1e-3, atol=1e-4), name


def fail_on_the_first_rank(directory: Path) -> str:
    """Every rank learns of a checkpoint that only the first could not publish."""
    with launch() as world:
        checkpoints = Checkpoints(directory, keep=1, world=world)
        if world.is_first:
            # Where the checkpoint's own name is taken by a file, it cannot be published.
            (directory / "step-000000001").write_text("in the way")
        checkpoints.save(1, {"weight": torch.ones(3)}, {})
        try:
            checkpoints.wait()
        except OSError as error:
            return str(error)
        return ""


def test_all_ranks_end_alike_when_one_cannot_write(tmp_path: Path) -> None:
    messages = run_ranks(2, fail_on_the_first_rank, tmp_path)
    assert messages[0] == messages[1]
    assert "step 1 could not be written" in messages[0]
