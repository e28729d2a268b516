"""Precision, recall, density, coverage and diversity against scikit-learn, scipy and by hand."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from dgan.metrics import Manifold, compare_manifolds, rows


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores(real: Tensor, fake: Tensor) -> dict[str, float]:
    return compare_manifolds(Manifold(real), Manifold(fake))


def by_neighbours(real: Tensor, fake: Tensor) -> dict[str, float]:
    """The papers' definitions, a sample at a time."""
    x, y = real.numpy(), fake.numpy()
    reach = {}
    for name, points in (("real", x), ("fake", y)):
        distances, _ = NearestNeighbors(n_neighbors=6, algorithm="kd_tree").fit(points).kneighbors()
        reach[name] = distances  # column k − 1: to the k-th, itself not counted
    inside = [[np.linalg.norm(a - b) for b in y] for a in x]
    near = np.array(inside)
    return {
        "precision": float(np.mean((near <= reach["real"][:, 2][:, None]).any(axis=0))),
        "recall": float(np.mean((near <= reach["fake"][:, 2][None]).any(axis=1))),
        "density": float((near < reach["real"][:, 4][:, None]).sum() / (5 * len(y))),
        "manifold_coverage": float(np.mean(near.min(axis=1) < reach["real"][:, 4])),
        "diversity": float(pdist(y).mean() / pdist(x).mean()),
    }


@pytest.mark.parametrize(("n", "m"), [(80, 80), (61, 97), (97, 40)])
def test_agrees_with_scikit_learns_neighbours(n: int, m: int) -> None:
    real, fake = normal(n, 4, seed=n), normal(m, 4, seed=m + 1) * 0.8 + 0.4
    ours = scores(real, fake)
    assert ours == pytest.approx(by_neighbours(real, fake), rel=1e-12)
    assert 0.1 < ours["recall"] < ours["precision"] < 1


def test_agrees_with_torch_fidelity() -> None:
    fidelity = pytest.importorskip(
        "torch_fidelity.metric_prc", reason="torch-fidelity is not installed"
    )
    real, fake = normal(90, 5, seed=1), normal(70, 5, seed=2) * 0.8 + 0.4
    found = fidelity.prc_features_to_metric(fake, real, prc_neighborhood=3, verbose=False)
    ours = scores(real, fake)
    assert ours["precision"] == pytest.approx(found["precision"], abs=1e-6)
    assert ours["recall"] == pytest.approx(found["recall"], abs=1e-6)


def test_points_on_a_line() -> None:
    real = torch.arange(10.0, dtype=torch.float64)[:, None]
    # The third neighbour of 0 is 3, so balls reach up to 3 beyond the ends: −3 is in, −3.1 not.
    fake = torch.tensor([-3.0, -3.1, 4.2, 4.3, 4.4, 4.5, 50.0], dtype=torch.float64)[:, None]
    ours = scores(real, fake)
    assert ours["precision"] == pytest.approx(5 / 7)
    assert ours == pytest.approx(by_neighbours(real, fake), rel=1e-12)


def test_the_same_distribution_is_dense_and_covered() -> None:
    real, fake = normal(800, 3, seed=3), normal(800, 3, seed=4)
    ours = scores(real, fake)
    # Expected density 1; coverage 1 − the chance that none of N comes before the fifth of N − 1
    # real ones: 1 − ∏ (N − 1 − j)/(2N − 1 − j), j < 5, as Naeem et al. derive.
    missed = np.prod([(800 - 1 - j) / (2 * 800 - 1 - j) for j in range(5)])
    assert ours["density"] == pytest.approx(1, abs=0.1)
    assert ours["manifold_coverage"] == pytest.approx(1 - missed, abs=0.03)
    assert ours["diversity"] == pytest.approx(1, abs=0.05)


def test_collapse_and_copies() -> None:
    real = normal(50, 3, seed=5)
    one = real[:1].expand(40, 3)
    collapsed = scores(real, one)
    assert collapsed["precision"] == 1
    assert collapsed["diversity"] == 0
    assert collapsed["recall"] == pytest.approx(1 / 50)  # a ball of radius 0 holds its centre
    copied = scores(real, real.clone())
    assert copied["precision"] == copied["recall"] == copied["manifold_coverage"] == 1
    assert copied["density"] == 1  # itself and four neighbours, over five
    far = scores(real, real + 100)
    assert [far[key] for key in ("precision", "recall", "density")] == [0, 0, 0]


def test_ties_far_from_the_origin_stay_ties() -> None:
    # Expanded into products, these distances would be off by 1e-8 · 1e6.
    real = torch.arange(10.0, dtype=torch.float64)[:, None] + 1e6
    assert scores(real, real - 3)["precision"] == 1
    assert scores(real, real - 3.001)["precision"] < 1


def test_blocks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(60, 9, seed=6), normal(50, 9, seed=7)
    whole = Manifold(real)
    before = compare_manifolds(whole, Manifold(fake))
    monkeypatch.setattr(rows, "BLOCK_BYTES", 8 * 60 * 7)  # seven rows at once
    parts = Manifold(real)
    for k in (3, 5):
        assert torch.equal(whole.radii[k], parts.radii[k])
    after = compare_manifolds(parts, Manifold(fake))
    assert after == pytest.approx(before, rel=1e-14)
    assert [after[key] for key in ("precision", "density")] == [
        before[key] for key in ("precision", "density")
    ]


def test_the_radii_are_scipys() -> None:
    x = normal(30, 4, seed=8)
    found = np.sort(cdist(x.numpy(), x.numpy()), axis=1)
    for k, radii in Manifold(x).radii.items():
        np.testing.assert_allclose(radii, found[:, k], rtol=1e-14)


def test_errors() -> None:
    x = normal(9, 3, seed=9)
    with pytest.raises(ValueError, match="5 real samples; at least 6 are needed"):
        Manifold(x[:5], name="real")
    with pytest.raises(ValueError, match="1 of 9 given samples have NaN"):
        Manifold(x.index_fill(0, torch.tensor(2), float("inf")))
    with pytest.raises(ValueError, match="2 dimensions, the others 3"):
        scores(x, x[:, :2])
    with pytest.raises(ValueError, match="all real samples have the same features"):
        scores(torch.ones(9, 3), x)
