"""Parzen windows against scikit-learn's kernel density estimate."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KernelDensity
from torch import Tensor

from dgan.metrics.parzen import BANDWIDTHS, log_likelihoods, parzen_estimate


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_scikit_learn(samples: Tensor, points: Tensor, bandwidth: float) -> np.ndarray:
    # Its tree sums approximately unless told otherwise.
    estimate = KernelDensity(bandwidth=bandwidth, rtol=1e-14).fit(samples.flatten(1).numpy())
    return estimate.score_samples(points.flatten(1).numpy())


@pytest.mark.parametrize("shape", [(3,), (1, 4, 4)])
def test_scikit_learns_estimate(shape: tuple[int, ...]) -> None:
    samples, points = numbers(50, *shape) + 5, numbers(13, *shape, seed=1) + 5
    bandwidths = [0.05, 0.3, 2.0]
    found = log_likelihoods(samples, points, bandwidths, chunk=4)
    assert found.dtype == torch.float64
    for row, bandwidth in zip(found, bandwidths):
        expected = by_scikit_learn(samples, points, bandwidth)
        np.testing.assert_allclose(row.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_one_window_is_a_gaussian() -> None:
    (row,) = log_likelihoods(torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 6.0]]), [2.0])
    assert row.item() == pytest.approx(-25 / 8 - math.log(2 * math.pi * 4))


def test_points_far_from_all_samples_stay_finite() -> None:
    samples, points = numbers(20, 784), numbers(3, 784, seed=1) + 1000
    found = log_likelihoods(samples, points, [0.1])
    expected = by_scikit_learn(samples, points, 0.1)
    assert found.isfinite().all()
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-10)


def test_the_estimate_takes_validations_bandwidth() -> None:
    samples, validation, test = (numbers(300, 2, seed=seed) for seed in range(3))
    result = parzen_estimate(samples, validation, test, BANDWIDTHS)
    scores = [by_scikit_learn(samples, validation, b).mean() for b in BANDWIDTHS]
    best = BANDWIDTHS[int(np.argmax(scores))]
    assert BANDWIDTHS[0] < best < BANDWIDTHS[-1]
    assert result.bandwidth == pytest.approx(best)
    found = by_scikit_learn(samples, test, best)
    assert result.log_likelihood == pytest.approx(found.mean(), rel=1e-9)
    assert result.standard_error == pytest.approx(found.std(ddof=1) / math.sqrt(300), rel=1e-9)
    # Near the truth: the entropy of a standard normal in two dimensions.
    assert result.log_likelihood == pytest.approx(-math.log(2 * math.pi * math.e), abs=0.2)
    assert BANDWIDTHS[0] == pytest.approx(0.1)
    assert BANDWIDTHS[-1] == pytest.approx(1.0)


def test_chunks_do_not_matter() -> None:
    samples, points = numbers(20, 4), numbers(17, 4, seed=1)
    whole = log_likelihoods(samples, points, [0.5])
    torch.testing.assert_close(log_likelihoods(samples, points, [0.5], chunk=3), whole)


def test_what_does_not_fit_is_named() -> None:
    x = numbers(4, 3)
    with pytest.raises(ValueError, match="points have 2 dimensions, samples 3"):
        log_likelihoods(x, numbers(4, 2), [0.1])
    with pytest.raises(ValueError, match="a bandwidth is 0; it must be a positive"):
        log_likelihoods(x, x, [0])
    with pytest.raises(ValueError, match="no bandwidths to choose from"):
        parzen_estimate(x, x, x, [])
    with pytest.raises(ValueError, match=r"points are torch.int64 \[4, 3\]; expected floating"):
        log_likelihoods(x, x.long(), [0.1])
    with pytest.raises(ValueError, match="samples contain NaN"):
        log_likelihoods(x / 0, x, [0.1])
