"""Frozen networks as modules, functions and files, against the maps that they should give."""

import json
from pathlib import Path

import pytest
import torch
from pretrained import (
    SHAPE,
    STAGES,
    Listed,
    Maps,
    Pretrained,
    numbers,
    pretrained,
    reference_maps,
    save_torchscript,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dgan import gradient_penalty
from dgan.metrics.classifier import ClassifierFeatures, ClassifierSpec, build_classifier
from dgan.networks.extractors import Extractor, open_extractor

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def test_features_follow_the_images_to_their_dtype() -> None:
    extractor = Extractor(pretrained(), STAGES, SHAPE)
    x = numbers(2, *SHAPE)
    with torch.inference_mode():
        extractor(x)
    x.requires_grad_()
    for found, wanted in zip(extractor(x), reference_maps(x), strict=True):
        torch.testing.assert_close(found, wanted, **EXACT)
    assert extractor(x)[0].requires_grad
    for found, wanted in zip(extractor(x.bfloat16()), reference_maps(x), strict=True):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), wanted, rtol=0.05, atol=0.1)
    # What was rounded for one dtype is not what another gets.
    for found, wanted in zip(extractor(x.float()), reference_maps(x), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    assert extractor.shapes == [(5, 16, 16), (6, 8, 8), (7, 4, 4)]


@pytest.mark.parametrize(
    ("kind", "stages", "maps"),
    [
        (Maps, ("fine", "coarse"), (0, 2)),
        (Maps, (), (0, 1, 2)),
        (Maps, ("fine", "last"), (0, 2)),
        (Listed, (), (0, 1)),
        (Listed, ("1",), (1,)),
        (Pretrained, ("middle", "last.0"), (1, 2)),
    ],
)
def test_named_stages(kind: type[nn.Module], stages: tuple[str, ...], maps: tuple) -> None:
    x, network = numbers(2, *SHAPE), pretrained(kind)
    found = Extractor(network, stages, SHAPE)(x)
    wanted = reference_maps(x)
    for one, index in zip(found, maps, strict=True):
        torch.testing.assert_close(one, wanted[index], **EXACT)
    assert not any(module._forward_hooks for module in network.modules())


@pytest.fixture
def scripted(tmp_path: Path) -> str:
    return save_torchscript(tmp_path)


def test_torchscript_is_the_module_that_it_was(scripted: str) -> None:
    x = numbers(2, *SHAPE)
    extractor = open_extractor(scripted, ("fine", "middle", "coarse"), SHAPE)
    for one, two in zip(extractor(x), reference_maps(x), strict=True):
        torch.testing.assert_close(one, two, **EXACT)


def saved_classifier(path: Path, channels: int, size: int) -> ClassifierFeatures:
    spec = ClassifierSpec(
        num_classes=4, channels=channels, height=size, width=size, dimension=8,
        accuracy=0.5, held_out=1, trained_on=9, seed=0,
    )  # fmt: skip
    features = ClassifierFeatures(build_classifier(4, channels, size, size, 8, 3), spec)
    for seed, parameter in enumerate(features.module.parameters()):
        parameter.data += 0.1 * numbers(*parameter.shape, seed=seed).float()
    features.save(path)
    return features


@pytest.mark.parametrize(
    ("size", "sides"), [(8, (8, 4)), (28, (32, 16, 8, 4)), (96, (32, 16, 8, 4))]
)
def test_a_classifier_that_dgan_saved(tmp_path: Path, size: int, sides: tuple[int, ...]) -> None:
    path = tmp_path / "classifier.safetensors"
    features = saved_classifier(path, 1, size)
    images = torch.randint(256, (2, 1, size, size), generator=torch.Generator().manual_seed(0))
    extractor = open_extractor(str(path), (), (1, size, size))
    maps = extractor(images / 127.5 - 1)
    assert tuple(m.shape[-1] for m in maps) == sides
    module, wanted = features.module, []
    x = module.prepare(images.to(torch.uint8))
    for layer in module.body[:-1]:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            wanted.append(x)
    for one, two in zip(maps, wanted[-4:], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    # Twice differentiable, and forwards.
    found = [
        gradient_penalty(
            lambda x: sum(m.square().sum((1, 2, 3)) for m in extractor(x)),
            numbers(2, 1, size, size),
            method=method,
        ).loss
        for method in ("double", "forward")
    ]
    torch.testing.assert_close(*found, **EXACT)
    assert found[0] > 0


MODULE = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1))

def number():
    return 3
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "extractors_of_a_user.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("models")
def test_functions_by_import_path_are_the_same_on_every_rank() -> None:
    x, found, states = numbers(2, *SHAPE).float(), [], []
    for seed in (1, 2):  # a rank's own random numbers neither matter nor change
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append(open_extractor("extractors_of_a_user:build", ("0", "1"), SHAPE)(x))
        states.append(torch.equal(state, torch.get_rng_state()))
    assert all(states)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


class WithScore(Pretrained):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"score": super().forward(x)}


class Silent(Pretrained):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError


@pytest.mark.parametrize(
    ("network", "stages", "shape", "message"),
    [
        (Silent, STAGES, SHAPE, r"Silent cannot take images \(3, 32, 32\).*: AssertionError"),
        (Pretrained, STAGES, (1, 32, 32), r"Pretrained cannot take images \(1, 32, 32\).*channels"),
        (Pretrained, ("steam",), SHAPE, "has no stage 'steam'.*did you mean 'stem'.*middle.0"),
        (Maps, ("fein",), SHAPE, "no stage 'fein'.*did you mean 'fine'"),
        (Pretrained, (), SHAPE, "returns no list or dict of maps: name submodules .*stem, stem.0"),
        (Pretrained, ("score",), SHAPE, r"stage 'score' .* is no map \[N, C, H, W\]: \(1, 1\)"),
        (WithScore, (), SHAPE, r"stage 'score' .* is no map"),
    ],
)
def test_extractors_that_do_not_fit(
    network: type[nn.Module], stages: tuple[str, ...], shape: tuple, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Extractor(pretrained(network), stages, shape)


def test_torchscript_that_does_not_fit(scripted: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot take images \(1, 32, 32\)"):
        open_extractor(scripted, (), (1, 32, 32))
    with pytest.raises(ValueError, match=r"no stage 'stem'.*there are fine, middle, coarse"):
        open_extractor(scripted, ("stem",), SHAPE)
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"damaged\.pt is not a TorchScript file"):
        open_extractor(str(damaged), (), SHAPE)


def test_a_classifier_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    saved_classifier(path, 1, 16)
    with pytest.raises(
        ValueError, match=r"trained on images \(1, 16, 16\).*these are \(3, 16, 16\)"
    ):
        open_extractor(str(path), (), (3, 16, 16))
    save_file(load_file(path), path, metadata={"spec": json.dumps({})})
    with pytest.raises(ValueError, match=r"is not a classifier saved by dgan .*no format"):
        open_extractor(str(path), (), (1, 16, 16))
    path.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        open_extractor(str(path), (), (1, 16, 16))
    with pytest.raises(FileNotFoundError, match=r"there is no extractor .*missing\.safetensors"):
        open_extractor(str(tmp_path / "missing.safetensors"), (), (1, 16, 16))


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("extractors_of_a_user:buidl", "'extractors_of_a_user:buidl' cannot be found.*import path"),
        ("no_such_module:build", "cannot be found: No module named"),
        ("extractor", "cannot be found.*import path"),
        ("extractors_of_a_user:number", "gives a int, no torch module"),
    ],
)
def test_functions_that_are_not_there(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_extractor(source, (), SHAPE)
