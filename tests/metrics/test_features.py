"""The classifier learns real digits and survives a file; TorchScript and Inception by contract."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from dgan.metrics import ClassifierFeatures, open_features, train_classifier


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    pixels, labels = load_digits(return_X_y=True)  # 0..16, [1797, 64]
    images = torch.tensor(pixels * 255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    return images, torch.tensor(labels)


@pytest.fixture(scope="module")
def classifier(digits: tuple[Tensor, Tensor]) -> ClassifierFeatures:
    return train_classifier(digits, num_classes=10)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def test_classifier_recognises_held_out_digits(
    classifier: ClassifierFeatures, digits: tuple[Tensor, Tensor]
) -> None:
    assert classifier.spec.accuracy >= 0.97
    assert (classifier.spec.held_out, classifier.spec.trained_on) == (179, 1618)
    assert f"test accuracy {100 * classifier.spec.accuracy:.1f} %" in classifier.name
    assert classifier.name.startswith(f"classifier:{classifier.digest} (64-d")
    assert 50_000 < sum(p.numel() for p in classifier.module.parameters()) < 200_000

    images, labels = digits
    features, probabilities = classifier(images), classifier.probabilities(images)
    assert (features.shape, features.dtype) == ((1797, 64), torch.float32)
    assert not features.requires_grad
    assert (probabilities.shape, probabilities.dtype) == ((1797, 10), torch.float32)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(1797))
    assert (probabilities.argmax(dim=1) == labels).double().mean() >= 0.98


def test_stated_accuracy_is_on_images_that_were_not_trained_on() -> None:
    # Labels drawn at random can be memorised, never predicted: a leak would read as 100 %.
    images = noise(100, 1, 8, 8)
    labels = torch.randint(0, 10, (100,), generator=torch.Generator().manual_seed(1))
    features = train_classifier((images, labels), num_classes=10, epochs=60, batch_size=10)
    right = (features.probabilities(images).argmax(dim=1) == labels).double().mean()
    assert right > 0.85
    assert features.spec.accuracy < 0.4


def test_save_and_load_are_bitwise(
    classifier: ClassifierFeatures, digits: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "run" / "classifier.safetensors"
    classifier.save(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    for spec in (str(path), f"classifier:{path}"):
        loaded = open_features(spec)
        assert isinstance(loaded, ClassifierFeatures)
        assert (loaded.name, loaded.digest) == (classifier.name, classifier.digest)
        assert loaded.spec == classifier.spec
        images = digits[0][:300]
        assert torch.equal(loaded(images), classifier(images))
        assert torch.equal(loaded.probabilities(images), classifier.probabilities(images))


def test_training_repeats_and_leaves_the_callers_random_state_alone() -> None:
    data = (noise(60, 3, 20, 12), torch.arange(60) % 3)

    def train(seed: int, source=data) -> ClassifierFeatures:
        return train_classifier(source, num_classes=3, seed=seed, epochs=1, batch_size=16)

    state = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        first = train(0)
        inside = first(data[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first(data[0]), inside)
    assert train(0).digest == first.digest
    assert train(1).digest != first.digest
    # The same images as batches, from an iterable that does not end.
    endless = iter(lambda: (data[0][:20], data[1][:20]), None)
    assert train_classifier(
        endless, num_classes=3, epochs=1, max_samples=50
    ).spec.trained_on == 45  # fmt: skip
    batches = list(zip(data[0].split(25), data[1].split(25)))
    assert train(0, batches).digest == first.digest


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 17), (3, 64, 64), (1, 128, 96)])
def test_any_resolution_and_both_kinds_of_channels(shape: tuple[int, ...]) -> None:
    images = noise(40, *shape)
    features = train_classifier((images, torch.arange(40) % 2), num_classes=2, epochs=1)
    assert features(images).shape == (40, 64)
    assert features(images[:0]).shape == (0, 64)
    features.batch_size = 7  # splitting is invisible
    whole = features(images)
    features.batch_size = 64
    torch.testing.assert_close(features(images), whole)


def test_classifier_errors(classifier: ClassifierFeatures, tmp_path: Path) -> None:
    images, labels = noise(40, 1, 8, 8), torch.arange(40) % 2

    def train(images=images, labels=labels, num_classes=2):
        return train_classifier((images, labels), num_classes=num_classes, epochs=1)

    with pytest.raises(TypeError, match=r"images are torch\.float32; features take uint8"):
        train(images=images.float())
    with pytest.raises(TypeError, match=r"labels are torch\.float32"):
        train(labels=labels.float())
    with pytest.raises(ValueError, match="from 0 to 1, but num_classes is 1"):
        train(num_classes=1)
    with pytest.raises(ValueError, match="every label is 0"):
        train(labels=labels * 0)
    with pytest.raises(ValueError, match="10 labelled images"):
        train(images=images[:10], labels=labels[:10])
    with pytest.raises(ValueError, match=r"40 images but labels of shape \[39\]"):
        train(labels=labels[:39])
    with pytest.raises(ValueError, match="8×8 or more"):
        train(images=images[..., :7])
    with pytest.raises(ValueError, match="empty"):
        train_classifier([], num_classes=2)
    with pytest.raises(ValueError, match=r"trained on \[1, 8, 8\]"):
        classifier(noise(2, 1, 16, 16))
    with pytest.raises(ValueError, match=r"expected \[N, 1 or 3, H, W\]"):
        classifier(noise(2, 2, 8, 8))
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors is not a saved classifier"):
        open_features(str(tmp_path / "other.safetensors"))


class Pool(nn.Module):
    """Mean of each channel's pixels, as they are passed."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean(dim=[2, 3]) * self.scale


class ByNvidiasConvention(nn.Module):
    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        assert x.dtype == torch.uint8
        return x.float().mean(dim=[2, 3]) if return_features else x.float().mean(dim=[2, 3])[:, :1]


class Map(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.float(), x.float()


def scripted(module: nn.Module, path: Path) -> str:
    torch.jit.script(module).save(str(path))
    return str(path)


# torch.jit.script and save warn; open_features itself must not.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_features(tmp_path: Path) -> None:
    path = scripted(Pool(), tmp_path / "pool.pt")
    images = noise(5, 3, 10, 10)
    means = images.float().mean(dim=(2, 3))
    features = open_features(path)
    assert features.name == f"torchscript:{features.digest} (pool.pt, uint8 RGB)"
    torch.testing.assert_close(features(images), means)
    torch.testing.assert_close(open_features(path, pixels="float")(images), means / 255)
    grey = features(images[:, :1])
    torch.testing.assert_close(grey, means[:, :1].expand(-1, 3))
    resized = open_features(path, resize=4)
    assert "resized to 4×4" in resized.name
    torch.testing.assert_close(resized(images), means, rtol=0.1, atol=5)
    assert not torch.equal(resized(images), features(images))

    nvidia = open_features(scripted(ByNvidiasConvention(), tmp_path / "inception.pt"))
    torch.testing.assert_close(nvidia(images), means)  # the features, not the class probabilities

    frozen = torch.jit.freeze(torch.jit.script(Pool().eval()))
    frozen.save(str(tmp_path / "frozen.pt"))
    torch.testing.assert_close(open_features(str(tmp_path / "frozen.pt"))(images), means)

    with pytest.raises(ValueError, match=r"shape \[5, 3, 10, 10\] for 5 images"):
        open_features(scripted(Map(), tmp_path / "map.pt"))(images)
    with pytest.raises(TypeError, match="returned tuple"):
        open_features(scripted(Pair(), tmp_path / "pair.pt"))(images)
    with pytest.raises(ValueError, match="pixels is 'signed'"):
        open_features(path, pixels="signed")  # pyright: ignore[reportArgumentType]


def test_errors_name_the_file_and_the_choices(
    classifier: ClassifierFeatures, tmp_path: Path
) -> None:
    assert open_features("classifier", classifier=classifier) is classifier
    with pytest.raises(ValueError, match="pass classifier=train_classifier"):
        open_features("classifier")
    with pytest.raises(ValueError, match=r'unknown features .clip.; choose "classifier"'):
        open_features("clip")
    for spec in ("absent.pt", "absent.safetensors", "classifier:absent", "inception:absent"):
        with pytest.raises(FileNotFoundError, match="absent"):
            open_features(spec)
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(ValueError, match=r"text\.pt is not a TorchScript file"):
        open_features(str(tmp_path / "text.pt"))


@pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed"
)
def test_inception_without_the_package_says_what_to_do(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"")
    with pytest.raises(ModuleNotFoundError, match="pip install torch-fidelity") as caught:
        open_features(f"inception:{weights}")
    assert str(weights) in str(caught.value)
    assert '"classifier"' in str(caught.value)
