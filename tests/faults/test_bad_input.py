"""What people get wrong: one message that names it and the way out, and an exit code."""

import os
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import checkpoint_of, dgan, metrics, steps_kept, write_recipe
from PIL import Image
from ranks import run_ranks

from dgan import cli
from dgan.data import ShardDataset, pack_source
from dgan.recipes import find
from dgan.train import train

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run, conditional, of 2 steps."""
    folder = tmp_path_factory.mktemp("runs")
    train(find(str(write_recipe(folder, "run", digits, train__steps=2))))
    return folder / "run"


RECIPES: dict[str, tuple[dict[str, Any], str]] = {
    "missing shards": ({"data__shards": "no/such-*.tar"}, r"no/such-\*\.tar.*dgan data pack"),
    "missing shard of a range": ({"data__shards": "no/{000..003}.tar"}, r"no/000\.tar"),
    "a folder": ({"data__shards": "."}, r"is a folder; name its shards"),
    "resolution of the data": ({"data__resolution": 16}, r"8×8.* 16×16 is wanted.*--resolution 16"),
    "resolution of the network": (
        {"family": "r3gan", "data__resolution": 12},
        r"resolution 12: it takes 4, 8, 16",
    ),
    "resolution of the network's stages": (
        {"family": "dcgan", "data__resolution": 32},
        r"resolution",
    ),
    "too few classes": ({"data__classes": 5}, r"labels up to 9.*--data\.classes is 5.*10"),
    "accumulation": (
        {"train__accumulation": 3},
        r"--train\.batch_size 16 .*3 micro-batches: take a multiple of 3",
    ),
    "no steps": ({"train__steps": 0}, r"--train\.steps is 0"),
    "network option": (
        {"generator__options": {"z_dim": 6, "width": (8, 6)}},
        r"--generator\.network mlp takes no 'width'; did you mean 'widths'",
    ),
    "no such network": (
        {"discriminator__network": "mypackage.nothing:Net"},
        r"--discriminator\.network 'mypackage\.nothing:Net' cannot be imported",
    ),
    "features": (
        {"evaluation__every": 0, "evaluation__features": "no-such-file.pt"},
        r"no-such-file\.pt",
    ),
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_recipe_that_cannot_be_run(
    case: str, digits: str, tmp_path: Path, capsys: Capture
) -> None:
    changes, pattern = RECIPES[case]
    recipe = write_recipe(tmp_path, "run", digits, **changes)
    message = dgan(capsys, "train", recipe).error()
    assert re.search(pattern, message, re.DOTALL), message
    assert not list(tmp_path.glob("run/checkpoints/step-*"))


EDITS: dict[str, tuple[str, str, str]] = {
    "unknown key": ("batch_size = 16", "batch_sise = 16", r"train\.batch_sise.*'batch_size'"),
    "unknown section": ("[penalty", "[penality", r"'penality'; did you mean 'penalty'"),
    "another version": ("format = 1", "format = 7", r"recipe format 7, this dgan reads format 1"),
    "no version": ("format = 1\n", "", r"recipe format None"),
    "wrong type": ("steps = 4", 'steps = "four"', r"train\.steps is 'four'.* int"),
    "wrong choice": ('"relativistic"', '"relative"', r"task\.loss is 'relative'; choose from"),
    "not TOML": ("steps = 4", "steps = = 4", r"is not valid TOML"),
}


@pytest.mark.parametrize("case", EDITS)
def test_a_recipe_file_that_was_edited(
    case: str, digits: str, tmp_path: Path, capsys: Capture
) -> None:
    before, after, pattern = EDITS[case]
    recipe = write_recipe(tmp_path, "run", digits)
    text = recipe.read_text()
    assert before in text
    recipe.write_text(text.replace(before, after))
    message = dgan(capsys, "train", recipe).error()
    assert str(recipe) in message
    assert re.search(pattern, message), message


def test_commands_on_what_is_not_there(run: Path, tmp_path: Path, capsys: Capture) -> None:
    empty = tmp_path / "empty"
    (empty / "checkpoints").mkdir(parents=True)
    shutil.copy(run / "recipe.toml", empty)
    cases: dict[tuple[Any, ...], str] = {
        ("sample", tmp_path / "nothing"): r"no recipe at .*nothing",
        ("sample", empty): r"has no checkpoint yet: `dgan train",
        ("sample", run, "--step", 7): r"no checkpoint of step 7; it has 2",
        ("sample", run, "--label", 10): r"--label is 10; the generator knows 0 … 9",
        ("sample", run, "--label", -1): r"--label is -1",
        ("sample", run, "--count", 0): r"--count is 0",
        ("sample", run, "--truncation", -1): r"--truncation is -1",
        ("sample", run, "--seed", -1): r"seed",
        ("evaluate", run, "--samples", 0): r"--samples is 0; it must be at least 2",
        ("evaluate", run, "--shards", "no/such-*.tar"): r"no/such",
        ("evaluate", run, "--features", "no-such-file.pt"): r"no-such-file\.pt",
        ("export", tmp_path / "nothing", tmp_path / "out"): r"no recipe at",
        ("train", tmp_path / "nothing.toml"): r"no recipe at .*nothing\.toml",
        ("train", empty.parent): r"no recipe at",
    }
    for arguments, pattern in cases.items():
        message = dgan(capsys, *arguments).error()
        assert re.search(pattern, message), (arguments, message)


def test_data_that_cannot_be_packed(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty").mkdir()
    images = tmp_path / "images"
    images.mkdir()
    for name in "abc":
        Image.fromarray(np.full((8, 8), ord(name), np.uint8)).save(images / f"{name}.png")
    broken = images / "b.png"
    broken.write_bytes(broken.read_bytes()[:40])
    cases: dict[tuple[Any, ...], str] = {
        (tmp_path / "nothing",): r"nothing",
        (tmp_path / "empty",): r"empty.*\n.*a folder of images",
        (images,): r"b\.png.*",
        ("digits", "--limit", 0): r"limit",
    }
    for arguments, pattern in cases.items():
        source, *rest = arguments
        message = dgan(capsys, "data", "pack", source, tmp_path / "out", *rest).error()
        assert re.search(pattern, message), (arguments, message)
        assert not list(tmp_path.glob("out/*.tar"))
    outcome = dgan(capsys, "data", "pack", images, tmp_path / "out", "--skip-corrupt")
    assert outcome.code == 0, outcome
    assert re.search(r"2 samples .*\nleft out: .*b\.png", outcome.out)


def test_labels_that_are_missing(tmp_path: Path, capsys: Capture) -> None:
    pack_source("digits", tmp_path / "shards", labels=False, limit=64)
    shards = str(tmp_path / "shards" / "train-*.tar")
    message = dgan(capsys, "train", write_recipe(tmp_path, "a", shards)).error()
    assert re.search(r"--data\.classes is 10, but .* has no labels: .*--data\.classes 0", message)
    plain = write_recipe(tmp_path, "b", shards, data__classes=0, evaluation__every=0)
    message = dgan(capsys, "train", plain).error()
    assert re.search(r"--evaluation\.features auto .*--evaluation\.every -1", message)
    # The way out that the message names.
    outcome = dgan(capsys, "train", plain, "--evaluation.every", "-1")
    assert outcome.code == 0, outcome
    message = dgan(capsys, "sample", tmp_path / "b", "--label", 1).error()
    assert "--label is 1; it has no classes" in message


NETWORKS = """
    import torch
    from torch import nn


    class NoSize(nn.Module):
        def __init__(self, **sizes):
            super().__init__()
            self.layer = nn.Linear(5, 64)


    class Wrong(NoSize):
        z_dim = 5

        def forward(self, z, labels=None):
            return self.layer(z).reshape(-1, 1, 4, 16)


    class Flat(NoSize):
        def forward(self, x, labels=None):
            return x.mean()


    class Narrow(NoSize):
        def forward(self, x, labels=None):
            return self.layer(x.flatten(1))


    class Failing(NoSize):
        def __init__(self, **sizes):
            raise TypeError("I take nothing")
"""


def test_networks_that_do_not_fit(
    digits: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs.py").write_text(textwrap.dedent(NETWORKS))
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path, "run", digits)
    cases = {
        ("generator", "NoSize"): r"theirs:NoSize must have an int attribute `z_dim`",
        ("generator", "Wrong"): r"makes samples \(1, 4, 16\).* data's are \(1, 8, 8\)",
        ("generator", "Failing"): r"--generator\.network theirs:Failing: I take nothing",
        ("generator", "Missing"): r"'theirs:Missing' cannot be imported",
        ("discriminator", "Flat"): r"of shape \(\) for 1 samples.*logits \[N\]",
        ("discriminator", "Narrow"): r"cannot judge samples \(1, 8, 8\)",
    }
    for (role, name), pattern in cases.items():
        message = dgan(capsys, "train", recipe, f"--{role}.network", f"theirs:{name}").error()
        assert re.search(pattern, message), ((role, name), message)
    # A recipe that failed before its first checkpoint may be mended where it is.
    assert dgan(capsys, "train", recipe).code == 0


def exit_code(*arguments: str) -> tuple[Any, str]:
    """Of a command in a process group; what it printed as error."""
    import contextlib
    import io

    with contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            cli.main(arguments)
        except SystemExit as end:
            return end.code, errors.getvalue()
    return 0, errors.getvalue()


def test_ranks_that_do_not_fit(digits: str, run: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "run", digits)
    for code, message in run_ranks(3, exit_code, "train", str(recipe)):
        assert code == 2
        assert "--train.batch_size 16" in message
        assert "3 ranks × 1 micro-batches: take a multiple of 3" in message
    single = ("train", str(recipe), "--parallel.strategy", "single")
    for code, message in run_ranks(2, exit_code, *single):
        assert code == 2
        assert (
            "single runs in one process, but 2 were started: choose ddp, fsdp or deepspeed"
            in message
        )
    # Only the first rank sees the conflict; all of them end.
    for code, message in run_ranks(2, exit_code, "train", str(run), "--train.seed", "9"):
        assert code == 2
        assert "train.seed differs" in message


def damage(shards: str, count: int) -> list[str]:
    """Overwrite the images of `count` samples; their keys."""
    with ShardDataset(shards) as dataset:
        keys = [dataset.table.key(i) for i in range(count)]
        images = [dataset.table.read(i, "image") for i in range(count)]
        path = dataset.shards[0]
    data = path.read_bytes()
    for image in images:
        data = data.replace(image, os.urandom(len(image)))
    path.write_bytes(data)
    return keys


def test_samples_that_do_not_decode_are_counted_and_named(tmp_path: Path, capsys: Capture) -> None:
    pack_source("digits", tmp_path / "shards", limit=64)
    shards = str(tmp_path / "shards" / "train-*.tar")
    keys = damage(shards, 2)
    outcome = dgan(capsys, "train", write_recipe(tmp_path, "run", shards))  # 4 × 16: an epoch
    assert outcome.code == 0, outcome
    assert metrics(tmp_path / "run")[-1]["data/skipped"] == 2
    log = (tmp_path / "run" / "log.txt").read_text()
    for key in keys:
        assert re.search(rf"skipped sample {key} of .*train-000000\.tar on rank 0: ", log)
        assert f"skipped sample {key}" in outcome.out
    # A data set that is damaged as a whole is an error, not a number.
    shown = r"samples do not decode where 16 were shown"
    for count, pattern in ((40, shown), (64, r"no sample of .* decodes")):
        pack_source("digits", tmp_path / "shards", limit=64, overwrite=True)
        damage(shards, count)
        message = dgan(capsys, "train", write_recipe(tmp_path, f"worse{count}", shards)).error()
        assert re.search(pattern, message), message


@pytest.mark.parametrize("key", ["data.shards", "evaluation.shards"])
def test_a_recipe_never_runs_a_command(
    digits: str, tmp_path: Path, capsys: Capture, key: str
) -> None:
    canary = tmp_path / "canary"
    recipe = write_recipe(tmp_path, "run", digits, evaluation__every=0)
    for command in (f"pipe:touch {canary}", f"pipe:touch {canary}; cat {digits}"):
        message = dgan(capsys, "train", recipe, f"--{key}", command).error()
        assert "commands are never run" in message
    assert not canary.exists()


def test_a_loss_that_is_not_finite_stops_the_run(
    digits: str, tmp_path: Path, capsys: Capture
) -> None:
    diverging = write_recipe(tmp_path, "run", digits, checkpoint__every=1, train__steps=9)
    diverging.write_text(diverging.read_text().replace("start = 0.002", "start = 1e4"))
    message = dgan(capsys, "train", diverging).error()
    assert re.search(r"step [23]: the \w+'s update is not finite", message), message
    keys = re.search(r"rank 0: .*; samples (.*)", message)
    assert keys
    with ShardDataset(digits) as dataset:
        known = {dataset.table.key(i) for i in range(len(dataset))}
    assert len(set(keys[1].split(", ")) & known) == 16
    last = steps_kept(tmp_path / "run")[-1]
    assert checkpoint_of(tmp_path / "run", last).is_dir()
    assert f"step {last + 1}:" in message
