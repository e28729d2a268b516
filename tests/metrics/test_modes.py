"""Class coverage, reverse KL and agreement, from probabilities written down by hand."""

import math

import pytest
import torch

from dgan.metrics import ClassCoverage, class_histogram, reverse_kl


def recognised(classes: list[int], num_classes: int, probability: float = 0.9) -> torch.Tensor:
    rest = (1 - probability) / (num_classes - 1)
    result = torch.full((len(classes), num_classes), rest)
    result[torch.arange(len(classes)), torch.tensor(classes)] = probability
    return result


def test_histogram_counts_every_class() -> None:
    histogram = class_histogram(torch.tensor([0, 2, 2]), 4)
    assert histogram.tolist() == [1, 0, 2, 0]
    assert class_histogram(torch.tensor([], dtype=torch.int64), 2).tolist() == [0, 0]
    with pytest.raises(ValueError, match="from 0 to 4, but num_classes is 4"):
        class_histogram(torch.tensor([0, 4]), 4)
    with pytest.raises(ValueError, match="int64"):
        class_histogram(torch.tensor([0.5]), 4)


def test_reverse_kl_is_generated_to_real_in_nats() -> None:
    assert reverse_kl([5, 5], [100, 100]) == 0
    # One of K equal classes: ln K; two samples of PacGAN's 1,000 modes and so on.
    assert reverse_kl([7, 0, 0, 0], [1, 1, 1, 1]) == pytest.approx(math.log(4))
    # The direction shows where the histograms are not symmetric.
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert reverse_kl([3, 1], [1, 1]) == pytest.approx(expected)
    assert reverse_kl([1, 1], [1, 0]) == math.inf
    with pytest.raises(ValueError, match="2 and 3 classes"):
        reverse_kl([1, 1], [1, 1, 1])
    with pytest.raises(ValueError, match="generated histogram"):
        reverse_kl([0, 0], [1, 1])


def test_coverage_needs_enough_confident_samples() -> None:
    modes = ClassCoverage(4)
    modes.update(recognised([0] * 60 + [1] * 37, 4))
    modes.update(recognised([2] * 2, 4))  # fewer than a tenth of 100 / 4
    modes.update(recognised([3], 4, probability=0.4))  # not confident
    assert modes.count == 100
    assert modes.counts.tolist() == [60, 37, 2, 1]
    assert modes.confident.tolist() == [60, 37, 2, 0]
    assert modes.coverage() == 0.5
    # Where class 2 is rare in the real data too, two samples are its share.
    assert modes.coverage([600, 370, 20, 10]) == 0.75
    # A class the real data lacks is not asked for.
    assert modes.coverage([600, 370, 20, 0]) == 1.0
    assert modes.reverse_kl([60, 37, 2, 1]) == 0


def test_minimum_can_be_the_literatures_one() -> None:
    modes = ClassCoverage(4, minimum=1)
    modes.update(recognised([0] * 99 + [2], 4))
    assert modes.coverage() == 0.5


def test_agreement_with_the_class_asked_for() -> None:
    modes = ClassCoverage(3)
    modes.update(recognised([0, 1, 2, 2], 3), torch.tensor([0, 1, 2, 0]))
    modes.update(recognised([1], 3))  # without a label: counted, not compared
    assert modes.agreement == 0.75
    same = modes.reduce()
    assert same.agreement == 0.75
    assert same.counts.tolist() == [1, 2, 2]
    same.update(recognised([0], 3))
    assert modes.count == 5  # the reduced counts are a copy


def test_errors() -> None:
    modes = ClassCoverage(3)
    with pytest.raises(ValueError, match="no samples yet"):
        modes.coverage()
    with pytest.raises(ValueError, match="no labels"):
        _ = modes.agreement
    with pytest.raises(ValueError, match=r"expected \[N, 3\]"):
        modes.update(torch.ones(2, 4))
    with pytest.raises(ValueError, match="labels"):
        modes.update(torch.ones(2, 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="NaN"):
        modes.update(torch.full((2, 3), float("nan")))
    with pytest.raises(ValueError, match="must be ≥ 1"):
        ClassCoverage(3, minimum=0)
