"""The Fréchet distance against closed forms, scipy and torchmetrics; statistics over real ranks."""

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from dgan.metrics import FeatureStatistics, frechet_distance


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def statistics(x: Tensor, *, chunk: int | None = None, name: str = "") -> FeatureStatistics:
    result = FeatureStatistics(name=name)
    for part in x.split(chunk or len(x)):
        result.update(part)
    return result


def with_moments(mean: Tensor, covariance: Tensor, *, seed: int) -> Tensor:
    """Samples whose own mean and N − 1 covariance are exactly these."""
    n, d = 4 * len(mean), len(mean)
    x = normal(n, d, seed=seed)
    x = x - x.mean(dim=0)
    whitened = torch.linalg.solve_triangular(
        torch.linalg.cholesky(x.T @ x / (n - 1)), x.T, upper=False
    ).T
    values, vectors = torch.linalg.eigh(covariance)
    return mean + whitened @ (vectors * values.clamp(min=0).sqrt()).T


def by_scipy(x: np.ndarray, y: np.ndarray) -> float:
    """The textbook formula, through the root of the unsymmetric product Σ₁Σ₂."""
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b)
    assert np.abs(np.imag(root)).max() < 1e-6
    trace = np.trace(np.real(root))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * trace)


def test_closed_form_of_commuting_covariances() -> None:
    d = 12
    basis = torch.linalg.qr(normal(d, d, seed=0)).Q
    variances_a = torch.logspace(-3, 2, d, dtype=torch.float64)
    variances_b = variances_a.flip(0) * 3
    mean_a, mean_b = normal(d, seed=1), normal(d, seed=2)
    a = statistics(with_moments(mean_a, basis @ torch.diag(variances_a) @ basis.T, seed=3))
    b = statistics(with_moments(mean_b, basis @ torch.diag(variances_b) @ basis.T, seed=4))
    # Commuting covariances: tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) = Σ (σ₁ − σ₂)².
    expected = (mean_a - mean_b).square().sum() + (
        variances_a.sqrt() - variances_b.sqrt()
    ).square().sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-10)


def test_agrees_with_scipys_matrix_root() -> None:
    x = normal(300, 20, seed=5) @ normal(20, 20, seed=6)
    y = normal(250, 20, seed=7) @ normal(20, 20, seed=8) + 0.5
    ours = frechet_distance(statistics(x), statistics(y))
    assert ours == pytest.approx(by_scipy(x.numpy(), y.numpy()), rel=1e-9)


class Flatten(torch.nn.Module):
    num_features = 48

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).double() / 255


def test_agrees_with_torchmetrics() -> None:
    random = torch.Generator().manual_seed(9)
    real = torch.randint(0, 256, (200, 3, 4, 4), generator=random, dtype=torch.uint8)
    fake = (real.float() * 0.7 + 20).to(torch.uint8).roll(7, dims=0)
    theirs = FrechetInceptionDistance(feature=Flatten())
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    ours = frechet_distance(statistics(Flatten()(real)), statistics(Flatten()(fake)))
    assert ours == pytest.approx(theirs.compute().item(), rel=1e-9)


def test_fewer_samples_than_dimensions() -> None:
    # 12 samples in 40 dimensions: rank 11, where scipy's root of Σ₁Σ₂ is unreliable.
    # Exact from the samples themselves: tr(Σ₁Σ₂)^½ = ‖X₁ X₂ᵀ‖_* / (N − 1), X the centred samples.
    x, y = normal(12, 40, seed=10), normal(12, 40, seed=11) * 2 + 1
    cx, cy = x - x.mean(0), y - y.mean(0)
    nuclear = np.linalg.svd((cx @ cy.T).numpy(), compute_uv=False).sum() / 11
    expected = (x.mean(0) - y.mean(0)).square().sum() + (cx.square().sum() + cy.square().sum()) / 11
    ours = frechet_distance(statistics(x), statistics(y))
    assert ours == pytest.approx(expected.item() - 2 * nuclear, rel=1e-10)


@pytest.mark.parametrize("n", [12, 400])
def test_identical_sets_are_at_distance_zero(n: int) -> None:
    x = normal(n, 40, seed=12) * 10 + 3
    same = frechet_distance(statistics(x), statistics(x, chunk=5))
    total = statistics(x).covariance.trace().item()
    assert 0 <= same < 1e-12 * total
    # A shift of every sample changes the mean term alone.
    assert frechet_distance(statistics(x), statistics(x + 2)) == pytest.approx(160, rel=1e-10)


def test_constant_features_have_only_a_mean() -> None:
    a, b = statistics(torch.ones(5, 3)), statistics(torch.full((4, 3), 3.0))
    assert frechet_distance(a, b) == pytest.approx(12)


def test_chunking_changes_nothing() -> None:
    x = normal(101, 7, seed=13) + 5
    whole = statistics(x)
    torch.testing.assert_close(
        whole.covariance, torch.from_numpy(np.cov(x.numpy(), rowvar=False)), rtol=1e-12, atol=1e-14
    )
    for chunk in (1, 10, 64):
        parts = statistics(x, chunk=chunk)
        assert parts.count == 101
        torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-13, atol=0)
        torch.testing.assert_close(parts.covariance, whole.covariance, rtol=1e-12, atol=1e-14)


def test_almost_constant_features_keep_their_covariance() -> None:
    # mean/std = 1e6: plain float64 sums keep 4 digits here, centred ones 10.
    x = normal(500, 5, seed=14)
    far = statistics(x + 1e6, chunk=50)
    torch.testing.assert_close(far.covariance, statistics(x).covariance, rtol=1e-8, atol=1e-9)


def test_saved_statistics_are_the_same(tmp_path: Path) -> None:
    saved = FeatureStatistics(name="real", features="classifier:abc")
    saved.update(normal(30, 6, seed=15))
    saved.save(tmp_path / "deeper" / "real.safetensors")
    loaded = FeatureStatistics.load(tmp_path / "deeper" / "real.safetensors")
    assert (loaded.count, loaded.name, loaded.features) == (30, "real", "classifier:abc")
    assert torch.equal(loaded.mean, saved.mean)
    assert torch.equal(loaded.covariance, saved.covariance)
    loaded.update(normal(5, 6, seed=16))
    assert loaded.count == 35


def test_errors_name_the_statistics(tmp_path: Path) -> None:
    good = statistics(normal(9, 3, seed=17), name="real")
    single = statistics(normal(1, 3, seed=18), name="generated")
    with pytest.raises(ValueError, match="'generated' has 1 samples; at least 2"):
        frechet_distance(good, single)
    with pytest.raises(ValueError, match="'empty' has 0 samples"):
        frechet_distance(FeatureStatistics(name="empty"), good)
    for value in (float("nan"), float("inf")):
        x = normal(9, 3, seed=19)
        x[4, 1] = value
        broken = statistics(x, chunk=2, name="generated")
        with pytest.raises(ValueError, match="'generated' has 1 of 9 samples with NaN"):
            frechet_distance(good, broken)
        with pytest.raises(ValueError, match="'generated' has 1 of 9"):
            broken.reduce().save(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="'real' has 3 dimensions, the statistics 'other' has 4"):
        frechet_distance(good, statistics(normal(9, 4, seed=20), name="other"))
    with pytest.raises(ValueError, match="4 dimensions"):
        good.update(normal(2, 4, seed=21))
    with pytest.raises(ValueError, match=r"expected floating \[N, D\]"):
        good.update(torch.ones(3, 3, dtype=torch.int64))
    ours, theirs = FeatureStatistics(features="one"), FeatureStatistics(features="two")
    with pytest.raises(ValueError, match="different features"):
        frechet_distance(ours, theirs)
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        FeatureStatistics.load(tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_text("not a tensor in sight")
    with pytest.raises(ValueError, match=r"text\.safetensors is not a safetensors file"):
        FeatureStatistics.load(tmp_path / "text.safetensors")


def _rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    try:
        from dgan.metrics import ClassCoverage

        x = normal(101, 7, seed=22) + 100
        mine = FeatureStatistics(name="real")
        mine.update((x[:70], x[70:])[rank])  # unequal shares: 70 and 31
        reduced = mine.reduce()
        one_empty = statistics(x[:50]) if rank == 1 else FeatureStatistics()
        invalid = x[:10].clone()
        invalid[0, 0] = float("nan") if rank == 1 else 0.0  # on one rank, an error on both
        message = ""
        try:
            frechet_distance(statistics(invalid, name="generated").reduce(), reduced)
        except ValueError as error:
            message = str(error)
        modes = ClassCoverage(3)
        modes.update(torch.eye(3)[[rank, rank, 2]], torch.tensor([rank, 2, 2]))
        total = modes.reduce()
        torch.save(
            {
                "count": reduced.count,
                "mean": reduced.mean,
                "covariance": reduced.covariance,
                "unchanged": mine.count,
                "one_empty": one_empty.reduce().covariance,
                "message": message,
                "classes": total.counts,
                "agreement": total.agreement,
            },
            os.path.join(folder, f"{rank}.pt"),
        )
    finally:
        dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    mp.start_processes(_rank, args=(2, str(tmp_path)), nprocs=2, start_method="spawn")
    x = normal(101, 7, seed=22) + 100
    whole, half = statistics(x), statistics(x[:50])
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for rank, result in enumerate(results):
        assert result["count"] == 101
        assert result["unchanged"] == (70, 31)[rank]
        torch.testing.assert_close(result["mean"], whole.mean, rtol=1e-12, atol=0)
        # Relative to the largest entry: entries near 0 have no digits of their own to compare.
        for key, expected in (("covariance", whole.covariance), ("one_empty", half.covariance)):
            worst = (result[key] - expected).abs().max() / expected.abs().max()
            assert worst < 1e-12
        assert "'generated' has 1 of 20 samples with NaN" in result["message"]
        assert result["classes"].tolist() == [2, 2, 2]
        assert result["agreement"] == pytest.approx(4 / 6)
    assert torch.equal(results[0]["covariance"], results[1]["covariance"])
