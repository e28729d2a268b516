"""A classifier of clips: what it sees, that it sees motion, and its file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dgan.metrics import ClassifierFeatures, train_classifier
from dgan.metrics.classifier import ClipClassifier


def moving(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """A bright bar that moves to the right (1) or stands still (0), uint8 `[N, 1, 4, 8, 8]`."""
    draw = np.random.default_rng(seed)
    clips, labels = np.zeros((count, 1, 4, 8, 8), np.uint8), draw.integers(0, 2, count)
    for clip, label in zip(clips, labels):
        begin = draw.integers(0, 8)
        for frame in range(4):
            clip[0, frame, :, (begin + label * frame) % 8] = 255
    return torch.from_numpy(clips), torch.from_numpy(labels)


def test_a_network_sees_the_first_frame_and_what_changes() -> None:
    clips = torch.randint(0, 256, (2, 3, 4, 8, 8), dtype=torch.uint8)
    sizes = {"num_classes": 2, "side": 8, "dimension": 5}
    seen = ClipClassifier(channels=3, frames=4, **sizes).prepare(clips).unflatten(1, (4, 3))
    pixels = clips.double() / 127.5 - 1
    torch.testing.assert_close(seen[:, 0].double(), pixels[:, :, 0], rtol=1e-6, atol=1e-6)
    for frame in range(1, 4):
        expected = 4 * (pixels[:, :, frame] - pixels[:, :, frame - 1])
        torch.testing.assert_close(seen[:, frame].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def features() -> ClassifierFeatures:
    return train_classifier(
        moving(400, 0), num_classes=2, held_out=moving(100, 1), epochs=4, dimension=8
    )


def test_motion_alone_is_recognised(features: ClassifierFeatures) -> None:
    assert features.spec.accuracy > 0.95
    assert (features.spec.held_out, features.spec.trained_on, features.spec.frames) == (100, 400, 4)
    clips, labels = moving(100, 1)
    right = features.probabilities(clips).argmax(1) == labels
    assert right.double().mean().item() == features.spec.accuracy
    backwards = clips.flip(2)
    assert (features(backwards) - features(clips))[labels == 1].abs().max() > 1e-3


def test_it_is_saved_with_its_frames(features: ClassifierFeatures, tmp_path: Path) -> None:
    features.save(tmp_path / "x.safetensors")
    again = ClassifierFeatures.load(tmp_path / "x.safetensors")
    clips, _ = moving(5, 2)
    assert torch.equal(again(clips), features(clips))
    assert (again.name, again.spec) == (features.name, features.spec)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1, 8, 8), r"clips have shape \[2, 1, 8, 8\]; expected \[N, 1 or 3, T, H, W\]"),
        ((2, 2, 4, 8, 8), r"shape \[2, 2, 8, 8\]; expected \[N, 1 or 3, H, W\]"),
        ((2, 1, 3, 8, 8), r"are \[1, 3, 8, 8\] but .* trained on \[1, 4, 8, 8\]"),
    ],
)
def test_other_shapes_are_refused(
    features: ClassifierFeatures, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        features(torch.zeros(shape, dtype=torch.uint8))
