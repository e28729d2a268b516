"""An exported generator: two plain files that rebuild it, and run nothing."""

import json
import sys
from pathlib import Path

import pytest
import torch
from commands import checkpoint_of, stored
from safetensors.torch import load_file
from tiny import tiny

import dgan
from dgan.cli import main
from dgan.export import synthesise
from dgan.train import train
from dgan.trained import load_run


@pytest.fixture(scope="module")
def run(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Batch norm, so that there are buffers; average and weights differ."""
    run = tmp_path_factory.mktemp("runs") / "run"
    train(tiny(digits, str(run), "dcgan", train__steps=3))
    return run


@pytest.fixture
def exported(run: Path, tmp_path: Path) -> Path:
    main(["export", str(run), str(tmp_path / "out")])
    return tmp_path / "out"


def test_normalised_weights_are_normalised_again(digits: str, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    train(tiny(digits, str(run), "mlp", train__steps=2, generator__spectral=True))
    main(["export", str(run), str(out)])
    latents, labels = torch.randn(5, 6), torch.arange(5)
    ours = synthesise(dgan.load_generator(out), latents, labels)
    assert torch.equal(ours, synthesise(load_run(run).network, latents, labels))


def test_it_makes_the_images_of_the_run_bit_for_bit(run: Path, exported: Path) -> None:
    trained = load_run(run)
    generator = dgan.load_generator(exported)
    assert not generator.training
    assert not any(parameter.requires_grad for parameter in generator.parameters())
    latents, labels = torch.randn(20, 6), torch.arange(20) % 10
    ours = synthesise(generator, latents, labels, batch_size=7)
    assert torch.equal(ours, synthesise(trained.network, latents, labels, batch_size=7))
    # These are the averaged weights, neither the last ones nor the first.
    tensors = stored(checkpoint_of(run, 3))
    weight = generator.state_dict()["to_image.weight"]
    assert torch.equal(weight, tensors["average.to_image.weight"])
    assert not torch.equal(weight, tensors["generator.network.to_image.weight"])


def test_it_is_safetensors_and_json_alone(exported: Path) -> None:
    assert {p.name for p in exported.iterdir()} == {"generator.safetensors", "generator.json"}
    assert [path.name for path in exported.parent.iterdir()] == ["out"]
    description = json.loads((exported / "generator.json").read_text())
    assert description["network"] == "dcgan"
    assert description["step"] == 3
    assert load_file(exported / "generator.safetensors")


def test_a_class_in_the_file_is_not_imported(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile.py").write_text("raise SystemExit('it was executed')\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = exported / "generator.json"
    description = json.loads(path.read_text()) | {"network": "hostile:Generator"}
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match="hostile:Generator: pass that class as `network`"):
        dgan.load_generator(exported)
    assert "hostile" not in sys.modules


def test_what_cannot_be_loaded_says_why(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="dgan export RUN OUT"):
        dgan.load_generator(tmp_path / "nothing")
    path = exported / "generator.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match="has format 2, this dgan reads 1"):
        dgan.load_generator(exported)


def test_another_step_and_no_overwriting(
    run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["export", str(run), str(tmp_path / "second"), "--step", "2"])
    a, b = (load_file(tmp_path / name / "generator.safetensors") for name in ("out", "second"))
    assert any(not torch.equal(a[name], b[name]) for name in a)
    before = (exported / "generator.safetensors").read_bytes()
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(run), str(exported), "--step", "2"])
    assert "not empty" in capsys.readouterr().err
    assert (exported / "generator.safetensors").read_bytes() == before
