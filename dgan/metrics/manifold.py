"""Precision, recall, density, coverage and diversity, from distances between feature vectors.

real, fake = Manifold(x), Manifold(y)   # features [N, D] of all samples, as FeatureRows gathers
compare_manifolds(real, fake)   # {"precision": 0.71, "recall": 0.48, "density": 0.9, …}
"""

import torch
import torch.distributed as dist
from torch import Tensor

from dgan.metrics.reduction import all_sum, my_share
from dgan.metrics.rows import blocks, require_rows

NEIGHBOUR = 3
"""k of precision and recall, as Kynkäänniemi et al. report them."""
NEIGHBOUR_OF_DENSITY = 5
"""k of density and coverage, as Naeem et al. choose it."""
LEAST = NEIGHBOUR_OF_DENSITY + 1
"""Samples that it takes: as many neighbours, and the sample itself."""


class Manifold:
    """Samples as the balls around them that reach to their k-th nearest neighbour.

    All pairs are compared, exactly: differences are taken in float64 and never expanded into
    products, so that a distance does not depend on what else is computed beside it, and ties stay
    ties. Blocks of 128 MiB bound the memory. Ranks share the rows.

    Args:
        features: [N, D], the same on every rank.
        name: what errors call them.
        group: whose ranks share the work; a collective call where there are several.

    Attributes:
        radii: of each k, float64 [N]: the distance to the k-th nearest other sample.
        spread: the mean distance of two different samples.

    Raises:
        ValueError: fewer than `LEAST` samples, NaN or infinity.
    """

    def __init__(
        self, features: Tensor, *, name: str = "given", group: dist.ProcessGroup | None = None
    ) -> None:
        require_rows(features, name, LEAST)
        self.features = features
        n = len(features)
        ks = (NEIGHBOUR, NEIGHBOUR_OF_DENSITY)
        radii = torch.zeros(len(ks), n, dtype=torch.float64, device=features.device)
        total = radii.new_zeros(())
        for rows in blocks(my_share(n, group), n):
            distances = _distances(features[rows], features)
            total += distances.sum()
            # The sample itself is the first, at distance 0; a copy of it is a neighbour.
            nearest = distances.topk(LEAST, dim=1, largest=False).values
            radii[:, rows] = nearest[:, list(ks)].T
        radii = all_sum(radii, group)  # every entry is one rank's, and 0 on the others
        self.radii = dict(zip(ks, radii))
        self.spread = all_sum(total, group).item() / (n * (n - 1))


def compare_manifolds(
    real: Manifold, fake: Manifold, group: dist.ProcessGroup | None = None
) -> dict[str, float]:
    """How much of either distribution lies within the other.

    - `precision`: share of generated samples in the ball of a real one, k = 3; `recall`: share of
      real samples in the ball of a generated one. Kynkäänniemi et al. 2019, "Improved precision
      and recall metric for assessing generative models", eq. 1 and 2; balls are closed.
    - `density`: real balls that a generated sample lies in, k = 5, mean over samples, over k; 1 is
      expected where both are the same distribution, and it may be more. `manifold_coverage`: share
      of real balls that hold a generated sample. Naeem et al. 2020, "Reliable fidelity and
      diversity metrics for generative models", eq. 4 and 5; balls are open, as in their code.
    - `diversity`: mean distance of two generated samples over that of two real ones: 1 where they
      are as far from each other as the data, 0 where all are the same.

    All depend on the numbers of samples, and compare only where these are equal.

    Raises:
        ValueError: the dimensions differ, or all real samples are the same.
    """
    require_rows(fake.features, "generated", LEAST, real.features.shape[1])
    if real.spread == 0:
        raise ValueError("all real samples have the same features; diversity has no unit")
    n, m, k = len(real.features), len(fake.features), NEIGHBOUR_OF_DENSITY
    device = real.features.device
    precise = torch.zeros(m, dtype=torch.int64, device=device)  # real balls that it lies in
    recalled, inside, covered = torch.zeros(3, dtype=torch.int64, device=device)
    for rows in blocks(my_share(n, group), m):
        distances = _distances(real.features[rows], fake.features)
        precise += (distances <= real.radii[NEIGHBOUR][rows, None]).sum(dim=0)
        recalled += (distances <= fake.radii[NEIGHBOUR]).any(dim=1).sum()
        within = distances < real.radii[k][rows, None]
        inside, covered = inside + within.sum(), covered + within.any(dim=1).sum()
    precise = (all_sum(precise, group) > 0).sum().item()
    recalled, inside, covered = all_sum(torch.stack([recalled, inside, covered]), group).tolist()
    return {
        "precision": precise / m,
        "recall": recalled / n,
        "density": inside / (k * m),
        "manifold_coverage": covered / n,
        "diversity": fake.spread / real.spread,
    }


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """‖xᵢ − yⱼ‖, float64 [n, m]."""
    exact = "donot_use_mm_for_euclid_dist"
    parts = [torch.cdist(x.double(), part.double(), compute_mode=exact) for part in y.split(4096)]
    return torch.cat(parts, dim=1)
