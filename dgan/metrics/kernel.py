"""The kernel distance between feature distributions: with InceptionV3 features, the KID.

real, fake                       # features [N, D] of all samples, equal on all ranks (FeatureRows)
kernel_distance(real, fake)      # every pair of samples
kernel_distances(real, fake).mean(), kernel_distances(real, fake).std()   # as it is published
"""

import torch
import torch.distributed as dist
from torch import Tensor

from dgan.metrics.reduction import all_sum, my_share
from dgan.metrics.rows import blocks, require_rows

SUBSETS, SUBSET_SIZE = 100, 1000
"""Of Bińkowski et al."""


def kernel_distance(real: Tensor, fake: Tensor, group: dist.ProcessGroup | None = None) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy under the cubic kernel.

    Bińkowski et al. 2018, "Demystifying MMD GANs", section 4 (Gretton et al. 2012, eq. 3):

        Σ_{i≠j} k(xᵢ, xⱼ) / (m (m − 1)) + Σ_{i≠j} k(yᵢ, yⱼ) / (n (n − 1)) − 2 Σᵢⱼ k(xᵢ, yⱼ) / (m n)

    with k(x, y) = (x·y / D + 1)³. Unbiased at any number of samples, so it may be below 0. Over all
    pairs, in float64; ranks share the rows, and blocks of 128 MiB bound the memory.

    Args:
        real: features [m, D], the same on every rank.
        fake: features [n, D], likewise.
        group: whose ranks share the work; a collective call where there are several.

    Raises:
        ValueError: fewer than 2 samples, NaN or infinity, or other shapes.
    """
    require_rows(real, "real", 2)
    require_rows(fake, "generated", 2, len(real[0]))
    m, n = len(real), len(fake)
    sums = [_sum(x, y, my_share(len(x), group)) for x, y in _pairs(real, fake)]
    xx, yy, xy = all_sum(torch.stack(sums), group).tolist()
    within = (xx - _diagonal(real)) / (m * (m - 1)) + (yy - _diagonal(fake)) / (n * (n - 1))
    return within - 2 * xy / (m * n)


def kernel_distances(
    real: Tensor,
    fake: Tensor,
    *,
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
    seed: int = 0,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """`kernel_distance` of random subsets, float64 [subsets]; its mean and deviation are published.

    Args:
        real, fake, group: as `kernel_distance`.
        subsets: how many.
        size: samples of each in a subset, drawn without replacement.
        seed: of the draws; the subsets do not depend on the number of ranks.

    Raises:
        ValueError: as `kernel_distance`, or there are fewer samples than `size`.
    """
    require_rows(real, "real", size)
    require_rows(fake, "generated", size, len(real[0]))
    if subsets < 1 or size < 2:
        raise ValueError(f"{subsets} subsets of {size}; at least 1 subset of 2 samples is needed")
    random = torch.Generator().manual_seed(seed)
    mine = my_share(subsets, group)
    values = torch.zeros(subsets, dtype=torch.float64)
    for index in range(subsets):
        chosen = [torch.randperm(len(x), generator=random)[:size] for x in (real, fake)]
        if index in mine:
            x, y = (all_[rows.to(all_.device)] for all_, rows in zip((real, fake), chosen))
            xx, yy, xy = (_sum(a, b, range(size)).item() for a, b in _pairs(x, y))
            within = (xx - _diagonal(x) + yy - _diagonal(y)) / (size * (size - 1))
            values[index] = within - 2 * xy / size**2
    return all_sum(values, group)


def _pairs(x: Tensor, y: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    return (x, x), (y, y), (x, y)


def _sum(x: Tensor, y: Tensor, rows: range) -> Tensor:
    """Σ k(xᵢ, yⱼ) over `rows` of x and all of y, float64 []."""
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for chunk in blocks(rows, len(y)):
        left = x[chunk].double()
        for right in y.split(4096):
            total += (left @ right.double().T / x.shape[1] + 1).pow(3).sum()
    return total


def _diagonal(x: Tensor) -> float:
    """Σ k(xᵢ, xᵢ)."""
    squares = torch.cat([part.double().square().sum(dim=1) for part in x.split(4096)])
    return (squares / x.shape[1] + 1).pow(3).sum().item()
