"""The command line, from packing data to an exported generator."""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import checkpoint_of, dgan, end, facts, metrics, start, steps_kept, write_recipe
from PIL import Image

from dgan import load_generator
from dgan.data import pack_source
from dgan.draws import latents as rows_of_latents
from dgan.recipes import find
from dgan.train import train
from dgan.visible import to_uint8

COMMANDS = (
    "train",
    "deepspeed",
    "recipes",
    "sample",
    "project",
    "report",
    "evaluate",
    "export",
    "doctor",
    "data pack",
    "data index",
    "data verify",
    "data show",
)


@pytest.fixture(scope="module")
def run(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained and evaluated conditional run."""
    folder = tmp_path_factory.mktemp("runs")
    plan = {"evaluation__every": 0, "evaluation__samples": 200}
    recipe = write_recipe(folder, "run", digits, "r3gan", train__steps=3, **plan)
    train(find(str(recipe)))
    return folder / "run"


Capture = pytest.CaptureFixture[str]


def test_help_lists_the_commands(capsys: Capture) -> None:
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        outcome = dgan(capsys, *arguments)
        assert outcome.code == 0
        assert not outcome.err
        assert all(f"  {command}  " in outcome.out for command in COMMANDS)
    outcome = dgan(capsys, "sample", "--help")
    assert (outcome.code, "--truncation" in outcome.out) == (0, True)
    outcome = dgan(capsys, "train", "digits", "--help")
    assert (outcome.code, "--train.batch" in outcome.out) == (0, True)
    outcome = dgan(capsys, "train", "--help")
    assert (outcome.code, "usage: dgan train RECIPE" in outcome.out) == (0, True)


def test_what_is_misspelled_is_named_with_what_was_meant(capsys: Capture, run: Path) -> None:
    cases = {
        ("trian", "digits"): "did you mean 'train'",
        ("data", "pakc"): "did you mean 'data pack'",
        ("train", "digit"): "did you mean 'digits'",
        ("train", "cifar-r3gan"): "did you mean 'cifar10-r3gan'",
        ("train", "digits", "--train.stepps", "3"): "--train.steps",
        ("train", "digits", "--train.steps", "many"): "--train.steps",
        ("train", "digits", "--task.loss", "hing"): "hinge",
        ("train", "digits", "--generator.network", "r3gn"): "did you mean 'r3gan'",
        ("train", "nothing.here:recipe"): "cannot be imported",
        ("sample", run, "--cout", "3"): "--count",
        ("train",): "usage: dgan train RECIPE",
    }
    for arguments, hint in cases.items():
        outcome = dgan(capsys, *arguments)
        assert outcome.code != 0, arguments
        assert hint in outcome.err, (arguments, outcome.err)
        assert "Traceback" not in outcome.err, arguments


def test_recipes_say_what_they_are(capsys: Capture) -> None:
    outcome = dgan(capsys, "recipes")
    assert outcome.code == 0
    for name in ("digits", "mnist", "cifar10-r3gan"):
        assert f"{name}\n    " in outcome.out


def test_light_commands_do_without_torch() -> None:
    code = "import sys, dgan.cli; dgan.cli.main(['recipes']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_packing_digits(capsys: Capture, tmp_path: Path) -> None:
    arguments = ("data", "pack", "digits", tmp_path / "shards")
    outcome = dgan(capsys, *arguments, "--samples-per-shard", 1000, "--limit", 1500)
    assert outcome.code == 0, outcome
    assert outcome.out.startswith("1500 samples in 2 shards under ")
    assert len(list((tmp_path / "shards").glob("train-*.tar"))) == 2
    assert "overwrite" in dgan(capsys, *arguments).error()
    assert dgan(capsys, *arguments, "--overwrite").code == 0


def test_data_sets_are_mixed_as_the_command_line_says(
    capsys: Capture, tmp_path: Path, digits: str
) -> None:
    first, second, third = sorted(map(str, Path(digits).parent.glob("*.tar")))
    recipe = write_recipe(tmp_path, "run", "nothing.tar", train__steps=2)
    mixed = ("--data.shards", f"{first[:-5]}[01].tar", third, "--data.weights", 3, 1)
    outcome = dgan(capsys, "train", recipe, *mixed)
    assert outcome.code == 0, outcome
    saved = find(str(tmp_path / "run")).data
    assert (saved.shards, saved.weights) == ((f"{first[:-5]}[01].tar", third), (3, 1))
    state = facts(checkpoint_of(tmp_path / "run", 2))["stream"]
    assert state["parts"][0] == "a mixture of 0.75 × 1200 samples + 0.25 × 597 samples"
    assert dgan(capsys, "train", tmp_path / "run", "--train.steps", 4).code == 0
    divided = ("--train.steps", 6, "--data.shards", f"{first[:-5]}0.tar", f"{first[:-5]}[12].tar")
    assert (
        "the same `weights` and entries"
        in dgan(capsys, "train", tmp_path / "run", *divided).error()
    )
    other = ("--train.steps", 6, "--data.weights", 1, 1)
    assert "data.weights differs" in dgan(capsys, "train", tmp_path / "run", *other).error()
    assert "needs one weight" in dgan(capsys, "train", "digits", *mixed, 5).error()
    together = dgan(
        capsys, "train", recipe, "--run.dir", tmp_path / "one", "--data.shards", first, second
    )
    assert together.code == 0, together
    assert (
        facts(checkpoint_of(tmp_path / "one", 2))["stream"]["parts"][0]
        == "one data set of 1200 samples"
    )


def test_samples_depend_on_the_seed_alone(capsys: Capture, run: Path, tmp_path: Path) -> None:
    def folder(name: str, *arguments: object) -> dict[str, np.ndarray]:
        outcome = dgan(capsys, "sample", run, "--out", tmp_path / name, *arguments)
        assert outcome.code == 0, outcome
        return {p.name: np.asarray(Image.open(p)) for p in (tmp_path / name).iterdir()}

    eight = folder("eight", "--count", 8)
    assert sorted(eight) == [f"seed0-{i:06d}-class{i}.png" for i in range(8)]
    assert all(image.shape == (8, 8, 3) for image in eight.values())
    three = folder("three", "--count", 3)
    assert len(three) == 3
    assert all((image == eight[name]).all() for name, image in three.items())
    other = folder("other", "--count", 8, "--seed", 1)
    assert sorted(other)[0] == "seed1-000000-class0.png"
    assert any((a != b).any() for a, b in zip(eight.values(), other.values()))
    label = folder("label", "--count", 3, "--label", 7, "--truncation", 0.5)
    assert sorted(label) == [f"seed0-{i:06d}-class7.png" for i in range(3)]
    whole = folder("whole", "--count", 3, "--label", 7)
    assert any((label[name] != whole[name]).any() for name in label)
    earlier = folder("earlier", "--count", 8, "--step", 2)
    assert any((earlier[name] != eight[name]).any() for name in eight)


def test_a_grid_is_one_picture(capsys: Capture, run: Path, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "x.png"
    outcome = dgan(capsys, "sample", run, "--count", 8, "--out", path)
    assert outcome.code == 0, outcome
    assert outcome.out == f"8 samples of step 3 in {path}\n"
    first = path.read_bytes()
    assert dgan(capsys, "sample", run, "--count", 8, "--out", path).code == 0
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == ["x.png"]


def test_evaluation_repeats_what_the_run_measured(capsys: Capture, run: Path) -> None:
    measured = next(line for line in metrics(run) if line["step"] == 3 and "fid" in line)
    outcome = dgan(capsys, "evaluate", run)
    assert outcome.code == 0, outcome
    written = json.loads((run / "evaluation-000000003.json").read_text())
    for key in ("fid", "coverage", "reverse_kl", "agreement"):
        assert written[key] == pytest.approx(measured[key], rel=1e-6), key
        assert f"{key:16} {written[key]:.4g}" in outcome.out
    assert written["features_digest"] == measured["features_digest"]


def test_export_gives_the_images_of_the_run(capsys: Capture, run: Path, tmp_path: Path) -> None:
    assert dgan(capsys, "export", run, tmp_path / "out").code == 0
    generator = load_generator(tmp_path / "out")
    assert dgan(capsys, "sample", run, "--count", 10, "--out", tmp_path / "s").code == 0
    latents = rows_of_latents(10, 6, seed=0, purpose="sample")
    images = to_uint8(generator(latents, torch.arange(10)))
    for path, image in zip(sorted((tmp_path / "s").iterdir()), images):
        assert (np.asarray(Image.open(path))[..., 0] == image[0].numpy()).all()


def test_torchrun_trains_and_evaluates(tmp_path: Path, capsys: Capture) -> None:
    """The launcher's own environment; evaluated, so that ranks wait for the first one's work."""
    pack_source("digits", tmp_path / "shards", limit=200)
    digits = str(tmp_path / "shards" / "train-*.tar")
    plan = {"evaluation__every": 0, "evaluation__samples": 101}
    recipe = write_recipe(tmp_path, "run", digits, "r3gan", train__steps=2, **plan)
    outcome = end(start("train", recipe, ranks=2))
    assert outcome.code == 0, outcome
    run = tmp_path / "run"
    assert outcome.out.count("done at step 2 of 2") == 1
    assert steps_kept(run) == [2]
    assert [line["step"] for line in metrics(run) if "fid" in line] == [0, 2]
    assert dgan(capsys, "sample", run, "--count", 4, "--out", tmp_path / "x.png").code == 0


PACKAGE = {
    "models.py": """
        import torch
        from torch import nn


        class Generator(nn.Module):
            def __init__(self, resolution, channels, classes, width=8):
                super().__init__()
                self.z_dim, self.shape = 5, (channels, resolution, resolution)
                self.layers = nn.Sequential(
                    nn.Linear(5, width), nn.ReLU(), nn.Linear(width, channels * resolution**2)
                )

            def forward(self, z, labels=None):
                return self.layers(z).tanh().reshape(-1, *self.shape)


        class Discriminator(nn.Module):
            def __init__(self, **sizes):
                super().__init__()
                self.layers = nn.Sequential(
                    nn.Flatten(), nn.Linear(64, 8), nn.SiLU(), nn.Linear(8, 1)
                )

            def forward(self, x, labels=None):
                return self.layers(x)  # [N, 1]: as of a patch discriminator
    """,
    "recipes.py": """
        from dataclasses import replace

        from dgan.config import Checkpoint, Data, Evaluation, Player, Recipe, Samples, Train


        def mine():
            return Recipe(
                name="mine",
                data=Data(shards="shards/train-*.tar", resolution=8, channels=1),
                generator=Player(network="mypackage.models:Generator", options={"width": 9}),
                discriminator=Player(network="mypackage.models:Discriminator"),
                train=Train(steps=2, batch_size=8),
                evaluation=Evaluation(every=-1),
            )
    """,
}


def test_a_package_of_ones_own_from_the_current_folder(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mypackage").mkdir()
    for name, text in PACKAGE.items():
        (tmp_path / "mypackage" / name).write_text(textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    assert dgan(capsys, "data", "pack", "digits", "shards", "--limit", 100).code == 0
    trained = dgan(capsys, "train", "mypackage.recipes:mine")
    assert trained.code == 0, trained
    run = Path("runs/mine")  # the default folder
    assert checkpoint_of(run, 2).is_dir()
    assert dgan(capsys, "train", run, "--train.steps", 3).code == 0
    assert dgan(capsys, "sample", run, "--count", 4, "--out", "x.png").code == 0
    exported = dgan(capsys, "export", run, "out")
    assert exported.code == 0, exported

    monkeypatch.syspath_prepend(tmp_path)
    from mypackage.models import Generator  # pyright: ignore[reportMissingImports]

    with pytest.raises(ValueError, match=r"mypackage.models:Generator: pass that class"):
        load_generator("out")
    generator = load_generator("out", network=Generator)
    assert generator(torch.zeros(2, 5)).shape == (2, 1, 8, 8)

    # A family in place of the recipe's own network, and the other way round.
    mlp = ["--generator.network", "mlp", "--run.dir", "runs/mlp"]
    outcome = dgan(capsys, "train", "mypackage.recipes:mine", *mlp)
    assert outcome.code == 0, outcome


def test_the_deepspeed_configuration_is_printed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    own = tmp_path / "own.json"
    own.write_text('{"zero_optimization": {"overlap_comm": true}, "gradient_clipping": 5.0}')
    options = ("--ranks", 4, "--train.accumulation", 2, "--parallel.zero_stage", 2)
    found = json.loads(dgan(capsys, "deepspeed", "digits", *options).out)
    assert found["train_batch_size"] == 64
    assert found["train_micro_batch_size_per_gpu"] == 8
    assert found["gradient_accumulation_steps"] == 2
    assert found["gradient_clipping"] == 0.0
    assert found["zero_optimization"]["stage"] == 2
    merged = dgan(capsys, "deepspeed", "digits", *options, "--parallel.deepspeed_config", own).out
    found["zero_optimization"]["overlap_comm"] = True
    assert json.loads(merged) == {**found, "gradient_clipping": 5.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "must hold a JSON object, not list"),
        ('{"train_batch_size": 8}', "'train_batch_size'.*use --train.batch_size"),
        ('{"zero_optimization": {"stage": 1}}', "use --parallel.zero_stage"),
        ('{"bf16": {"enabled": true}}', "use --train.precision"),
    ],
)
def test_a_bad_deepspeed_file_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, message: str
) -> None:
    own = tmp_path / "own.json"
    own.write_text(text)
    error = dgan(capsys, "deepspeed", "digits", "--parallel.deepspeed_config", own).error()
    assert str(own) in error
    assert re.search(message, error), error
    missing = dgan(capsys, "deepspeed", "digits", "--parallel.deepspeed_config", "no.json").error()
    assert "there is no file no.json" in missing
