"""Scores do not depend on the number of ranks, and vanish where nothing differs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import Tensor

from dgan.data import ShardDataset
from dgan.evaluation import Evaluator, find_features, to_uint8
from dgan.networks import build
from dgan.parallel.world import launch

Z_DIM = 6


@pytest.fixture(scope="module")
def classifier(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier that `auto` trains, kept for all tests here."""
    path = tmp_path_factory.mktemp("features") / "classifier.safetensors"
    with launch() as world, ShardDataset(digits) as dataset:
        find_features("auto", dataset, seed=0, cache=path, world=world)
    return path


def scores(
    shards: str, cache: Path, synthesise: Callable[..., Tensor] | None = None, **changes: Any
) -> dict[str, Any]:
    """Without `synthesise` of a generator with its initial weights."""
    torch.set_num_threads(1)
    with launch(precision="float32") as world, ShardDataset(shards) as dataset:
        features = find_features("auto", dataset, seed=0, cache=cache, world=world)
        options = {"samples": 301, "batch_size": 64, "seed": 0, "classes": 10} | changes
        evaluator = Evaluator(dataset, features, world=world, **options)
        shape = {"resolution": 8, "channels": 1, "classes": options["classes"]}
        generator = build("generator", "dcgan", seed=0, z_dim=Z_DIM, widths=(8,), **shape)
        return evaluator(synthesise or generator.eval(), Z_DIM)


def test_ranks_do_not_change_a_score(digits: str, classifier: Path) -> None:
    # 301 samples and 1,797 images divide by no number of ranks.
    expected = scores(digits, classifier)
    assert expected["fid"] > 50
    assert (expected["samples"], expected["real_samples"]) == (301, 1797)
    for size in (2, 3):
        for result in run_ranks(size, scores, digits, classifier):
            assert result.keys() == expected.keys()
            for name, value in expected.items():
                wanted = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
                assert result[name] == wanted, (size, name)


def test_the_real_images_have_no_distance_to_themselves(digits: str, classifier: Path) -> None:
    with ShardDataset(digits) as dataset:
        images = torch.cat([batch["image"] for batch in dataset.batches(256)])
    position = 0

    def real(z: Tensor, labels: Tensor | None) -> Tensor:
        nonlocal position
        rows = torch.arange(position, position + len(z)) % len(images)
        position += len(z)
        return images[rows].float() / 127.5 - 1

    result = scores(digits, classifier, real, samples=len(images))
    assert abs(result["fid"]) < 1e-6
    assert result["coverage"] == 1.0
    assert abs(result["reverse_kl"]) < 0.01
    worse = scores(digits, classifier, lambda z, y: real(z, y) * 0.5, samples=len(images))
    assert worse["fid"] > 1.0


def test_a_constant_image_covers_one_class(digits: str, classifier: Path) -> None:
    def grey(z: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is None
        return torch.zeros(len(z), 1, 8, 8)

    result = scores(digits, classifier, grey, classes=0)
    assert result["coverage"] <= 0.1
    assert result["fid"] > 50
    assert "agreement" not in result


def test_scores_repeat_and_follow_the_seed(digits: str, classifier: Path) -> None:
    first, again = scores(digits, classifier), scores(digits, classifier)
    assert first == again
    assert scores(digits, classifier, seed=1)["fid"] != first["fid"]


def test_labels_are_drawn_as_the_data_has_them(digits: str, classifier: Path) -> None:
    seen: list[Tensor] = []

    def note(z: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        seen.append(labels)
        return torch.zeros(len(z), 1, 8, 8)

    scores(digits, classifier, note, samples=1024, batch_size=256)
    counts = torch.bincount(torch.cat(seen), minlength=10)
    assert counts.sum() == 1024
    assert counts.min() > 60
    assert len({tuple(batch.tolist()) for batch in seen}) == len(seen)


def test_images_outside_the_range_are_clipped() -> None:
    values = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0])
    assert to_uint8(values).tolist() == [0, 0, 128, 255, 255]


def test_features_without_labels_are_refused(digits: str, tmp_path: Path) -> None:
    with launch() as world, ShardDataset(digits, labels=False) as dataset:
        cache = tmp_path / "classifier.safetensors"
        with pytest.raises(ValueError, match=r"these have none: name a TorchScript file"):
            find_features("auto", dataset, seed=0, cache=cache, world=world)
