"""What the README shows is run as it stands there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import dgan
from dgan import cli
from dgan.metrics import ClassifierFeatures
from dgan.metrics.classifier import ClassifierSpec, build_classifier
from dgan.run import metrics_of
from dgan.trained import load_run

README = (Path(__file__).parents[1] / "README.md").read_text()
SHORT = ["--train.steps", "2", "--evaluation.every", "-1"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_own_networks_and_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (module,) = (block for block in blocks("python") if "class MyGenerator" in block)
    (commands,) = (block for block in blocks("sh") if "mine:my_recipe" in block)
    (tmp_path / "mine.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    cli.main(["data", "pack", "digits", "data/digits"])
    for line in commands.strip().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "dgan"
        cli.main([*arguments, *SHORT])
    for run in ("mine", "wide"):
        assert (tmp_path / "runs" / run / "checkpoints" / "step-000000002").is_dir()


def test_own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (module,) = (block for block in blocks("python") if "class PostTraining" in block)
    (commands,) = (block for block in blocks("sh") if "posttraining:post_training" in block)
    (tmp_path / "posttraining.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    cli.main(["data", "pack", "digits", "data/digits"])
    for line in commands.strip().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "dgan"
        cli.main([*arguments, *(SHORT if arguments[0] == "train" else [])])
        # In place of what `dgan train digits` trains where it evaluates.
        spec = ClassifierSpec(
            num_classes=10, channels=1, height=8, width=8, dimension=8, accuracy=1.0, held_out=1,
            trained_on=1, seed=0,
        )  # fmt: skip
        features = ClassifierFeatures(build_classifier(10, 1, 8, 8, 8, 0), spec)
        features.save(Path("runs/digits/classifier.safetensors"))
    last = metrics_of(tmp_path / "runs" / "post-training")[-1]
    assert last["step"] == 2
    assert last["generator/kept"] > 0
    before = dgan.load_generator("exported").state_dict()
    after = load_run(tmp_path / "runs" / "post-training").network.state_dict()
    assert after.keys() == before.keys()
    assert any((after[name] != tensor).any() for name, tensor in before.items())


def test_a_sharded_discriminator_of_ones_own(tmp_path: Path) -> None:
    (block,) = (block for block in blocks("python") if "fully_shard" in block)
    script = tmp_path / "sharded.py"
    script.write_text(block)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (error,) = re.findall(r"relative error of the gradient: (\S+)", done.stdout)
    assert float(error) < 0.01


def test_the_penalty_in_a_loop_of_ones_own() -> None:
    (block,) = (block for block in blocks("python") if "torch.nn.SiLU()" in block)
    scope: dict = {}
    exec(block, scope)
    weights = scope["discriminator"][1].weight
    assert weights.grad is not None
    assert weights.grad.abs().sum() > 0


def test_every_file_it_names_is_there() -> None:
    named = re.findall(
        r"\]\((?!http)([^)#]+)\)|`((?:tests|benchmarks|dgan)/[\w/.-]+\.\w+)`", README
    )
    assert named
    for link, path in named:
        assert (Path(__file__).parents[1] / (link or path)).exists(), link or path
