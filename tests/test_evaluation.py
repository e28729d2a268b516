"""Scores do not depend on the number of ranks, and vanish where nothing differs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import Tensor

from dgan.data import ShardDataset
from dgan.evaluation import Evaluator
from dgan.evaluation_features import find_features
from dgan.metrics import (
    ClassCoverage,
    FeatureStatistics,
    frechet_distance,
    kernel_distance,
    open_features,
)
from dgan.metrics.comparison import pixels_of
from dgan.metrics.parzen import parzen_estimate
from dgan.networks import build
from dgan.parallel.world import launch
from dgan.scores import METRICS
from dgan.visible import to_uint8

Z_DIM = 6


@pytest.fixture(scope="module")
def classifier(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier that `auto` trains, kept for all tests here."""
    path = tmp_path_factory.mktemp("features") / "classifier.safetensors"
    with launch() as world, ShardDataset(digits) as dataset:
        find_features("auto", dataset, seed=0, cache=path, world=world)
    return path


def scores(
    folder: str,
    cache: Path,
    synthesise: Callable[..., Tensor] | None = None,
    metrics: tuple[str, ...] = ("fid",),
    validated: bool = False,
    **changes: Any,
) -> dict[str, Any]:
    """Without `synthesise` of a generator with its initial weights."""
    torch.set_num_threads(1)
    with launch(precision="float32") as world, ShardDataset(folder) as dataset:
        features = find_features("auto", dataset, seed=0, cache=cache, world=world)
        options = {"samples": 301, "batch_size": 64, "seed": 0, "classes": 10} | changes
        if validated:
            options["validation"] = dataset
        evaluator = Evaluator(dataset, features, world=world, metrics=metrics, **options)
        shape = {"resolution": 8, "channels": 1, "classes": options["classes"]}
        generator = build("generator", "dcgan", seed=0, z_dim=Z_DIM, widths=(8,), **shape)
        return evaluator(synthesise or generator.eval(), Z_DIM)


def test_ranks_do_not_change_a_score(digits: str, classifier: Path) -> None:
    # 301 samples and 1,797 images divide by no number of ranks.
    expected = scores(digits, classifier, None, ("all",), True)
    assert expected["fid"] > 50
    assert (expected["samples"], expected["real_samples"]) == (301, 1797)
    assert expected["real_samples_of_pairs"] == 301
    assert {name for names in METRICS.values() for name in names} < {*expected}
    # Ranks' batches are of other sizes, so float32 features differ in their last digits.
    for size in (2, 3):
        for result in run_ranks(size, scores, digits, classifier, None, ("all",), True):
            assert result.keys() == expected.keys()
            for name, value in expected.items():
                if name == "intra_fid_of_classes":
                    assert result[name].keys() == value.keys()
                    continue
                wanted = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
                assert result[name] == wanted, (size, name)


def test_the_log_likelihood_is_that_of_pixels(digits: str, classifier: Path) -> None:
    made = torch.rand(301, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = 0

    def synthesise(z: Tensor, labels: Tensor | None) -> Tensor:
        nonlocal seen
        seen += len(z)
        return torch.cat([made, made])[seen - len(z) : seen]

    found = scores(digits, classifier, synthesise, ("parzen",), True)
    with ShardDataset(digits) as dataset:
        real = torch.cat([pixels_of(batch["image"]) for batch in dataset.batches(500)])
    expected = parzen_estimate(pixels_of(to_uint8(made)), real, real)
    assert found["bandwidth"] == expected.bandwidth
    assert found["log_likelihood"] == pytest.approx(expected.log_likelihood, rel=1e-9)
    assert found["log_likelihood_error"] == pytest.approx(expected.standard_error, rel=1e-9)


def test_the_real_images_have_no_distance_to_themselves(digits: str, classifier: Path) -> None:
    with ShardDataset(digits) as dataset:
        images = torch.cat([batch["image"] for batch in dataset.batches(256)])
    position = 0

    def real(z: Tensor, labels: Tensor | None) -> Tensor:
        nonlocal position
        rows = torch.arange(position, position + len(z)) % len(images)
        position += len(z)
        return images[rows].float() / 127.5 - 1

    metrics = ("manifold", "classifier_score")
    result = scores(digits, classifier, real, metrics, samples=len(images))
    assert abs(result["fid"]) < 1e-6
    assert (result["coverage"], result["modes"]) == (1.0, 10)
    assert abs(result["reverse_kl"]) < 0.01
    for name in ("precision", "recall", "manifold_coverage"):
        assert result[name] == 1.0
    assert result["diversity"] == pytest.approx(1)
    assert 8 < result["classifier_score"] <= 10
    position = 0
    worse = scores(digits, classifier, lambda z, y: real(z, y) * 0.5, metrics, samples=len(images))
    assert worse["fid"] > 1.0
    for name in ("precision", "manifold_coverage", "density"):
        assert worse[name] < result[name]


def test_a_constant_image_covers_one_class(digits: str, classifier: Path) -> None:
    def grey(z: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is None
        return torch.zeros(len(z), 1, 8, 8)

    result = scores(digits, classifier, grey, ("all",), classes=0)
    assert result["coverage"] <= 0.1
    assert (result["modes"], result["diversity"]) == (1, 0)
    assert result["classifier_score"] == pytest.approx(1)
    assert "intra_fid" not in result  # nobody asked it for classes
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


def test_scores_are_those_of_the_features_alone(digits: str, classifier: Path) -> None:
    """Images of the class that was asked for, against all images of that class."""
    with ShardDataset(digits) as dataset:
        batches = list(dataset.batches(256))
        images = torch.cat([batch["image"] for batch in batches])
        labels = torch.cat([batch["label"] for batch in batches])
    asked: list[Tensor] = []

    def same_class(z: Tensor, wanted: Tensor | None) -> Tensor:
        assert wanted is not None
        asked.append(wanted)
        rows = [int(torch.where(labels == k)[0][int(k) + len(asked)]) for k in wanted]
        return images[rows].float() / 127.5 - 1

    options = {"batch_size": 60, "real_samples": len(images)}
    result = scores(digits, classifier, same_class, ("intra_fid", "kid"), **options)
    features = open_features(str(classifier))
    made = torch.cat(asked)[:301]
    for label, found in result["intra_fid_of_classes"].items():
        chosen = [i for i, k in enumerate(made.tolist()) if k == int(label)]
        rows = [torch.where(labels == int(label))[0][int(label) + i // 60 + 1] for i in chosen]
        real, fake = FeatureStatistics(), FeatureStatistics()
        real.update(features(images[labels == int(label)]))
        fake.update(features(images[torch.stack(rows)]))
        assert found["fid"] == pytest.approx(frechet_distance(real, fake), rel=1e-5)
        assert found["samples"] == len(chosen)
        assert found["real_samples"] == (labels == int(label)).sum()
    rows = [torch.where(labels == k)[0][k + i // 60 + 1] for i, k in enumerate(made.tolist())]
    generated = features(images[torch.stack(rows)])
    assert result["kid"] == pytest.approx(kernel_distance(features(images), generated), rel=1e-4)
    fids = [found["fid"] for found in result["intra_fid_of_classes"].values()]
    assert result["intra_fid"] == pytest.approx(sum(fids) / 10)


def test_what_the_numbers_were_computed_with(digits: str, classifier: Path) -> None:
    result = scores(digits, classifier, None, ("kid",), real_samples=120, shards="some.tar")
    features = open_features(str(classifier))
    facts = {
        "features": features.name,
        "features_digest": features.digest,
        "resize": "none",
        "crop": "none",
        "shards": "some.tar",
        "samples": 301,
        "real_samples": 1797,
        "real_samples_of_pairs": 120,
        "kid_subsets": "100 of 60, seed 0",
    }
    assert {key: result[key] for key in facts} == facts
    other = scores(digits, classifier, None, ("kid",), real_samples=120, seed=1)
    assert other["kid"] != result["kid"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "more than exist": (
        {"metrics": ("kid",), "real_samples": 1798},
        r"--evaluation\.real_samples is 1798, but there are 1797 real images",
    ),
    "too few of them": (
        {"metrics": ("manifold",), "real_samples": 5},
        r"manifold takes 6 samples or more.* and 5 real images are compared with",
    ),
    "too few samples": (
        {"metrics": ("all",), "samples": 9},
        r"classifier_score takes 10 samples or more, but --evaluation\.samples is 9",
    ),
    "a class that is hardly asked for": (
        {"metrics": ("intra_fid",), "samples": 12},
        r"the FID of a class needs 2 samples of it, but there are . of class .* among the generated"
        r".*raise --evaluation\.samples",
    ),
    "no classes asked for": (
        {"metrics": ("intra_fid",), "classes": 0},
        r"metrics intra_fid is not possible: the generator is not asked for classes",
    ),
    "no validation": (
        {"metrics": ("parzen",)},
        r"metrics parzen is not possible: it chooses its bandwidth on other images",
    ),
    "another name": (
        {"metrics": ("fdi",)},
        r"--evaluation\.metrics has 'fdi'; choose from fid, kid, manifold, .*, all",
    ),
    "labels beyond the generator's": ({"classes": 7}, r"labels up to 9, but the generator knows 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_before_anything_is_generated(
    digits: str, classifier: Path, case: str
) -> None:
    def never(z: Tensor, labels: Tensor | None) -> Tensor:
        raise AssertionError("generated")

    changes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        scores(digits, classifier, never, **changes)


def test_features_that_do_not_know_classes(digits: str, tmp_path: Path) -> None:
    class Means(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.float().mean(dim=3).flatten(1)

    path = tmp_path / "means.pt"
    torch.jit.script(Means()).save(path)

    def evaluator(metrics: tuple[str, ...]) -> dict[str, Any]:
        with launch(precision="float32") as world, ShardDataset(digits) as dataset:
            options = {"samples": 60, "batch_size": 20, "seed": 0, "classes": 0, "world": world}
            found = Evaluator(dataset, open_features(str(path)), metrics=metrics, **options)
            return found(lambda z, y: z[:, :1, None, None].expand(-1, 1, 8, 8), 6)

    result = evaluator(("all",))
    assert {"fid", "kid", "precision"} < {*result}
    assert not {"coverage", "classifier_score", "intra_fid"} & {*result}
    with pytest.raises(
        ValueError, match=r"classifier_score is not possible: torchscript:.*does not"
    ):
        evaluator(("classifier_score",))


def test_a_thousand_stacked_classes(digits: str, classifier: Path) -> None:
    """Three digits as the channels of one image; the class is recognised channel by channel."""
    with ShardDataset(digits) as dataset:
        images = torch.cat([batch["image"] for batch in dataset.batches(256)])
    random = torch.Generator().manual_seed(0)
    stack = images[torch.randint(0, len(images), (400, 3), generator=random)][:, :, 0]
    features, single = open_features(f"stacked:{classifier}"), open_features(str(classifier))
    assert (features.num_classes, features(stack).shape) == (1000, (400, 192))
    probabilities = features.recognise(features(stack))
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(400))
    digit = [single.recognise(single(stack[:, [c]])).argmax(dim=1) for c in range(3)]
    expected = 100 * digit[0] + 10 * digit[1] + digit[2]
    assert torch.equal(probabilities.argmax(dim=1), expected)
    modes = ClassCoverage(1000, minimum=1)
    modes.update(probabilities)
    counts = torch.bincount(expected, minlength=1000)
    assert modes.modes == len(expected.unique())
    share = counts[counts > 0].double() / 400
    uniform = (share * (share * 1000).log()).sum().item()
    assert modes.reverse_kl([1] * 1000) == pytest.approx(uniform)
    with pytest.raises(ValueError, match="images have 1 channels"):
        features(images[:2])


def test_images_outside_the_range_are_clipped() -> None:
    values = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0])
    assert to_uint8(values).tolist() == [0, 0, 128, 255, 255]


def test_features_without_labels_are_refused(digits: str, tmp_path: Path) -> None:
    with launch() as world, ShardDataset(digits, labels=False) as dataset:
        cache = tmp_path / "classifier.safetensors"
        with pytest.raises(ValueError, match=r"these have none: name a TorchScript file"):
            find_features("auto", dataset, seed=0, cache=cache, world=world)
