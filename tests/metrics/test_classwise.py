"""The classifier score against torchmetrics and the published loop; the FID of each class."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.inception import InceptionScore

from dgan.metrics import ClassifierScore, class_distances

CLASSES = 7


def logits(n: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(n, CLASSES, generator=random, dtype=torch.float64)


def score_of(probabilities: Tensor, *, chunk: int = 17, splits: int = 10) -> ClassifierScore:
    classes = probabilities.shape[1]
    score = ClassifierScore(classes=classes, samples=len(probabilities), splits=splits)
    for begin in range(0, len(probabilities), chunk):
        score.update(probabilities[begin : begin + chunk], begin)
    return score


class Identity(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images


def test_agrees_with_torchmetrics() -> None:
    values = logits(103, seed=0)
    theirs = InceptionScore(feature=Identity(), splits=1)
    theirs.update(values)
    with pytest.warns(UserWarning, match="degrees of freedom"):  # of one split
        expected, _ = theirs.compute()
    score = score_of(values.softmax(dim=1))
    assert score.value == pytest.approx(expected.item(), rel=1e-10)
    assert score_of(values.softmax(dim=1), splits=1).splits.item() == pytest.approx(score.value)


def test_splits_are_the_published_ones() -> None:
    p = logits(103, seed=1).softmax(dim=1).numpy()
    expected = []
    for i in range(10):
        part = p[i * 103 // 10 : (i + 1) * 103 // 10]
        kl = (part * (np.log(part) - np.log(part.mean(axis=0)))).sum(axis=1)
        expected.append(math.exp(kl.mean()))
    assert score_of(torch.from_numpy(p)).splits.tolist() == pytest.approx(expected, rel=1e-12)


def test_agrees_with_torch_fidelity() -> None:
    fidelity = pytest.importorskip(
        "torch_fidelity.metric_isc", reason="torch-fidelity is not installed"
    )
    values = logits(103, seed=2)
    found = fidelity.isc_features_to_metric(values, splits=10, shuffle=False)
    splits = score_of(values.softmax(dim=1)).splits
    assert splits.mean().item() == pytest.approx(found["inception_score_mean"], rel=1e-10)
    assert splits.std(correction=0).item() == pytest.approx(found["inception_score_std"], rel=1e-8)


def test_extremes() -> None:
    certain = torch.eye(CLASSES)[torch.arange(70) % CLASSES]
    assert score_of(certain).value == pytest.approx(CLASSES)
    assert score_of(torch.eye(CLASSES)[torch.zeros(70, dtype=torch.int64)]).value == 1
    assert score_of(torch.full((70, CLASSES), 1 / CLASSES)).value == pytest.approx(1)


def test_errors() -> None:
    with pytest.raises(ValueError, match="9 samples; 10 splits need at least one each"):
        ClassifierScore(classes=3, samples=9)
    score = ClassifierScore(classes=3, samples=12)
    with pytest.raises(ValueError, match=r"expected \[N, 3\]"):
        score.update(torch.ones(2, 4), 0)
    with pytest.raises(ValueError, match="sample 12 of 12"):
        score.update(torch.ones(2, 3) / 3, 11)
    score.update(torch.ones(11, 3) / 3, 0)
    with pytest.raises(ValueError, match="11 samples were added; 12 were due"):
        _ = score.value
    score.update(torch.full((1, 3), float("nan")), 11)
    with pytest.raises(ValueError, match="NaN"):
        _ = score.value


def in_classes(n: int, seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (n,), generator=random)
    return torch.randn(n, 4, generator=random) + labels[:, None], labels


def test_the_fid_of_each_class_is_torchmetrics_fid() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Vectors(Identity):
        num_features = 4

    real, fake = in_classes(90, seed=3), in_classes(75, seed=4)
    found = class_distances(real, fake, classes=5)
    assert list(found) == [0, 1, 2]  # the others are not in the data
    for label, values in found.items():
        theirs = FrechetInceptionDistance(feature=Vectors()).set_dtype(torch.float64)
        theirs.update(real[0][real[1] == label].double(), real=True)
        theirs.update(fake[0][fake[1] == label].double(), real=False)
        assert values["fid"] == pytest.approx(theirs.compute().item(), rel=1e-9)
        assert values["samples"] == (fake[1] == label).sum()
        assert values["real_samples"] == (real[1] == label).sum()


def test_what_has_no_label_is_left_out() -> None:
    real, fake = in_classes(90, seed=3), in_classes(75, seed=4)
    damaged = (
        torch.cat([real[0], 99 * torch.ones(2, 4)]),
        torch.cat([real[1], -torch.ones(2).long()]),
    )
    assert class_distances(damaged, fake, classes=5) == class_distances(real, fake, classes=5)


def test_classes_with_fewer_than_two_samples_are_named() -> None:
    features, labels = in_classes(60, seed=5)
    few = labels.clone()
    few[few == 1] = 0
    few[0] = 1
    few[few == 2] = 0
    expected = r"1 of class 1, 0 of class 2 among the generated images"
    with pytest.raises(ValueError, match=expected):
        class_distances((features, labels), (features, few), classes=3)
    with pytest.raises(ValueError, match=r"1 of class 1 among the real images"):
        class_distances((features, few), (features, labels), classes=3)
    broken = features.clone()
    broken[int((labels == 0).nonzero()[0])] = float("nan")
    with pytest.raises(ValueError, match="real images of class 0' has 1 of"):
        class_distances((broken, labels), (features, labels), classes=3)
