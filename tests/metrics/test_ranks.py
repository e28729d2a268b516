"""Every metric on samples that are spread unevenly over ranks, one of which may have none."""

import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import Tensor

from dgan.metrics import (
    ClassCoverage,
    ClassifierScore,
    FeatureRows,
    FeatureStatistics,
    Manifold,
    class_distances,
    compare_manifolds,
    frechet_distance,
    kernel_distance,
    kernel_distances,
)
from dgan.metrics.parzen import parzen_estimate
from dgan.parallel.world import launch

CLASSES = 4
SHARES = {1: [(0, 101)], 2: [(0, 70), (70, 101)], 3: [(0, 13), (13, 13), (13, 101)]}
"""Of 101 samples, by rank: at three ranks the second has none."""


def samples(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (101,), generator=random)
    features = torch.randn(101, 6, generator=random) + 0.2 * labels[:, None] + 0.1 * seed
    return features, labels, (2 * torch.randn(101, CLASSES, generator=random)).softmax(dim=1)


def every_score(begin: int, end: int) -> dict[str, Any]:
    """With this rank's samples from `begin` to `end`, added in parts that are out of order."""
    rows, statistics = [], []
    for seed, name in ((0, "real"), (1, "generated")):
        features, labels, _ = samples(seed)
        rows.append(FeatureRows())
        statistics.append(FeatureStatistics(name=name))
        for first in reversed(range(begin, end, 7)):
            chosen = slice(first, min(first + 7, end))
            rows[-1].add(features[chosen], first, labels[chosen])
            statistics[-1].update(features[chosen])
    _, labels, probabilities = samples(1)
    mine = slice(begin, end)
    coverage = ClassCoverage(CLASSES)
    coverage.update(probabilities[mine], labels[mine])
    score = ClassifierScore(classes=CLASSES, samples=101)
    score.update(probabilities[mine], begin)
    total, score = coverage.reduce(), score.reduce()
    real, fake = (kind.gather() for kind in rows)
    kernels = kernel_distances(real, fake, subsets=5, size=30, seed=3)
    local = [(kind.features, kind.labels) for kind in rows]
    some = rows[0].gather(10, seed=5)
    points = [samples(seed)[0] for seed in (2, 3)]
    parzen = parzen_estimate(fake, *(other[begin:end] for other in points), (0.3, 0.6, 1.2))
    unfinished = ""
    broken = FeatureRows()
    if begin < end:
        invalid = samples(0)[0][mine].clone()
        invalid[0] = math.nan if begin == 0 else invalid[0]  # on one rank, an error on all of them
        broken.add(invalid, begin)
    try:
        Manifold(broken.gather(), name="generated")
    except ValueError as error:
        unfinished = str(error)
    return {
        "fid": frechet_distance(*(kind.reduce() for kind in statistics)),
        "counts": total.counts.tolist(),
        "modes": total.modes,
        "kid": kernel_distance(real, fake),
        "parzen": list(asdict(parzen).values()),
        "kid_mean": kernels.mean().item(),
        "kid_std": kernels.std(correction=0).item(),
        "score": score.value,
        "score_std": score.splits.std(correction=0).item(),
        "intra": [found["fid"] for found in class_distances(*local, CLASSES).values()],
        "error": unfinished,
        "features": real.tolist(),
        "chosen": some.tolist(),
        **compare_manifolds(Manifold(real), Manifold(fake)),
    }


def on_rank() -> dict[str, Any]:
    with launch(precision="float32") as world:
        return every_score(*SHARES[world.size][world.rank])


def test_ranks_do_not_change_a_score() -> None:
    expected = every_score(0, 101)
    features = samples(0)[0]
    assert expected["features"] == features.tolist()
    assert len(expected["chosen"]) == 10
    assert all(row in expected["features"] for row in expected["chosen"])
    assert "1 of 101 generated samples have NaN" in expected["error"]
    for size in (2, 3):
        for result in run_ranks(size, on_rank):
            for key, value in expected.items():
                wanted = value
                # Sums of another order; what is counted, chosen or copied is the very same.
                if key not in ("features", "chosen", "error", "counts"):
                    wanted = pytest.approx(value, rel=1e-11)
                if key in ("precision", "recall", "density", "manifold_coverage", "modes"):
                    wanted = value
                assert result[key] == wanted, (size, key)


def test_rows_without_any_sample() -> None:
    rows = FeatureRows()
    assert rows.gather().shape == (0, 0)
    assert (rows.features.shape, rows.labels.shape) == ((0, 0), (0,))
