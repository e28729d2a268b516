"""The kernel distance against closed forms, torchmetrics, scikit-learn and torch-fidelity."""

import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from dgan.metrics import kernel_distance, kernel_distances, rows


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Identity(nn.Module):
    """What torchmetrics takes for a network: images that are features already."""

    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return images


def by_torchmetrics(real: Tensor, fake: Tensor, *, subsets: int, size: int) -> tuple[float, float]:
    theirs = KernelInceptionDistance(feature=Identity(), subsets=subsets, subset_size=size)
    theirs.set_dtype(torch.float64)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    mean, deviation = theirs.compute()
    return mean.item(), deviation.item()


def test_closed_form_of_normal_distributions() -> None:
    # (x y + 1)³ has the features x³, √3 x², √3 x, 1: the distance is that of three moments.
    mean, spread, n, repeats = 0.5, 1.5, 40, 400
    first = (0.0, 1.0, 0.0)  # E x, E x², E x³ of N(0, 1)
    second = (mean, mean**2 + spread**2, mean**3 + 3 * mean * spread**2)
    weights = (3, 3, 1)
    expected = sum(w * (a - b) ** 2 for w, a, b in zip(weights, first, second))
    same, other = [], []
    for seed in range(repeats):
        x, y = normal(n, 1, seed=2 * seed), normal(n + 7, 1, seed=2 * seed + 1)
        same.append(kernel_distance(x, y))
        other.append(kernel_distance(x, y * spread + mean))
    for found, wanted in ((same, 0.0), (other, expected)):
        values = torch.tensor(found, dtype=torch.float64)
        # Unbiased: right on average at any number of samples, within four standard errors.
        assert abs(values.mean() - wanted) < 4 * values.std() / repeats**0.5
    assert min(same) < 0


def test_agrees_with_scikit_learn_at_unequal_numbers() -> None:
    real, fake = normal(53, 12, seed=1), normal(71, 12, seed=2) * 1.3 + 0.2
    x, y = real.numpy(), fake.numpy()
    options = {"degree": 3, "gamma": 1 / 12, "coef0": 1}
    xx, yy, xy = (polynomial_kernel(a, b, **options) for a, b in ((x, x), (y, y), (x, y)))
    expected = (xx.sum() - xx.trace()) / (53 * 52) + (yy.sum() - yy.trace()) / (71 * 70)
    expected -= 2 * xy.mean()
    assert kernel_distance(real, fake) == pytest.approx(expected, rel=1e-10)


def test_agrees_with_torchmetrics() -> None:
    real, fake = normal(60, 12, seed=3), normal(60, 12, seed=4) + 0.3
    expected, _ = by_torchmetrics(real, fake, subsets=1, size=60)
    assert kernel_distance(real, fake) == pytest.approx(expected, rel=1e-10)


def test_subsets_scatter_as_torchmetrics_do() -> None:
    real, fake = normal(300, 12, seed=5), normal(250, 12, seed=6) + 0.3
    ours = kernel_distances(real, fake, subsets=400, size=30, seed=0)
    torch.manual_seed(0)
    mean, deviation = by_torchmetrics(real, fake, subsets=400, size=30)
    assert ours.mean().item() == pytest.approx(mean, abs=4 * deviation / 400**0.5 * 2**0.5)
    assert ours.std(correction=0).item() == pytest.approx(deviation, rel=0.2)
    assert ours.mean().item() == pytest.approx(
        kernel_distance(real, fake), abs=4 * deviation / 400**0.5
    )


def test_agrees_with_torch_fidelity() -> None:
    fidelity = pytest.importorskip(
        "torch_fidelity.metric_kid", reason="torch-fidelity is not installed"
    )
    real, fake = normal(64, 12, seed=7), normal(64, 12, seed=8) + 0.3
    found = fidelity.kid_features_to_metric(
        fake, real, kid_subsets=2, kid_subset_size=64, verbose=False
    )
    expected = found["kernel_inception_distance_mean"]
    assert kernel_distance(real, fake) == pytest.approx(expected, rel=1e-10)


def test_subsets_follow_the_seed() -> None:
    real, fake = normal(40, 3, seed=9), normal(50, 3, seed=10) + 1
    some = kernel_distances(real, fake, subsets=5, size=20, seed=1)
    assert torch.equal(some, kernel_distances(real, fake, subsets=5, size=20, seed=1))
    assert not torch.equal(some, kernel_distances(real, fake, subsets=5, size=20, seed=2))
    assert torch.equal(some[:3], kernel_distances(real, fake, subsets=3, size=20, seed=1))
    assert len(some.unique()) == 5
    whole = kernel_distances(real[:20], fake[:20], subsets=2, size=20)
    expected = kernel_distance(real[:20], fake[:20])
    assert whole.tolist() == pytest.approx([expected] * 2, rel=1e-10)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(40, 3, seed=9), normal(50, 3, seed=10) + 1
    before = kernel_distance(real, fake)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 8 * 50 * 7)  # seven rows at once
    assert kernel_distance(real, fake) == pytest.approx(before, rel=1e-12)


def test_errors() -> None:
    x = normal(9, 3, seed=11)
    with pytest.raises(ValueError, match="1 generated samples; at least 2 are needed"):
        kernel_distance(x, x[:1])
    with pytest.raises(ValueError, match="9 real samples; at least 1000"):
        kernel_distances(x, x)
    with pytest.raises(ValueError, match="generated features have 2 dimensions, the others 3"):
        kernel_distance(x, x[:, :2])
    with pytest.raises(ValueError, match="1 of 9 generated samples have NaN"):
        kernel_distance(x, x.index_fill(0, torch.tensor(4), float("nan")))
    with pytest.raises(ValueError, match="0 subsets"):
        kernel_distances(x, x, subsets=0, size=4)
