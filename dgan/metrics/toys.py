"""PacGAN's protocol for points around modes that are known: which are found, how well, how evenly.

Lin et al. 2018 ("PacGAN: The power of two samples in generative adversarial networks", section 4)
measure 2,500 generated points, as Srivastava et al. 2017 (VEEGAN) do:

- a point has *high quality* within three standard deviations of the nearest mode's centre;
- a mode is *lost* if no generated point lies within three standard deviations of it;
- *reverse KL*: every generated point counts for its nearest mode, and the histogram is compared
  with that of the real data, KL(generated ‖ real), in nats.

Where the paper leaves a choice: "within three standard deviations" is the Euclidean distance over σ
(as in the authors' code), a bound that 1.1 % of the real points of a plane exceed. The reverse KL
counts points of any quality, as the text says (the code drops those of low quality, and logs a
Jensen–Shannon divergence from equal shares). Of a finite sample it is not 0 for a perfect generator
either: about (modes − 1)/(2 · points), 0.0014 on the ring and 0.0048 on the grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgan.metrics.modes import reverse_kl

NEAR = 3.0
"""Standard deviations within which a point has high quality."""

POINTS = 2500
"""As many as the protocol draws."""

_AT_ONCE = 1024  # points whose distances to all centres are in memory


@dataclass(frozen=True, kw_only=True)
class PointScores:
    """What the protocol says of some points.

    Attributes:
        modes: how many of the modes have at least one point of high quality.
        high_quality: share of such points, in 0..1.
        reverse_kl: KL(generated ‖ real) over the modes, in nats.
        distance: mean distance to the nearest centre.
        counts: points of high quality at each mode, int64 `[K]`.
    """

    modes: int
    high_quality: float
    reverse_kl: float
    distance: float
    counts: Tensor


def score_points(
    points: Tensor,
    centres: Tensor,
    sigma: float,
    *,
    real: Tensor | Sequence[int] | None = None,
    near: float = NEAR,
) -> PointScores:
    """Score generated `points` `[N, d]` against the centres of K modes.

    Args:
        points: floating point, on any device; compared in float64.
        centres: `[K, d]`, or `[K, R, d]`: of modes that are stretches of a curve, R points along
            each.
        sigma: standard deviation of the data around a centre.
        real: histogram `[K]` of real points by their nearest mode; None: equal shares.
        near: standard deviations that make high quality.

    Raises:
        ValueError: there are no points, one is not finite, or the dimensions differ.
    """
    centres = centres.detach().cpu().double()
    points = points.detach().cpu().double()
    if points.ndim != 2 or not len(points) or points.shape[1] != centres.shape[-1]:
        raise ValueError(
            f"points have shape {list(points.shape)}; expected [N, {centres.shape[-1]}], N ≥ 1"
        )
    if not bool(points.isfinite().all()):
        raise ValueError("a generated point is NaN or infinite: nothing can be said of the modes")
    modes, distances = nearest_modes(points, centres)
    good = distances <= near * sigma
    counts = torch.bincount(modes[good], minlength=len(centres))
    expected = [1] * len(centres) if real is None else real
    return PointScores(
        modes=int((counts > 0).sum()),
        high_quality=good.double().mean().item(),
        reverse_kl=reverse_kl(torch.bincount(modes, minlength=len(centres)), expected),
        distance=distances.mean().item(),
        counts=counts,
    )


def nearest_modes(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Of each point `[N, d]` its nearest mode, int64 `[N]`, and the distance to it `[N]`."""
    representatives = centres.reshape(-1, centres.shape[-1])
    each = len(representatives) // len(centres)
    found = [_distances(part, representatives).min(1) for part in points.split(_AT_ONCE)]
    indices = torch.cat([nearest.indices for nearest in found])
    return indices // each, torch.cat([nearest.values for nearest in found])


def _distances(points: Tensor, centres: Tensor) -> Tensor:
    # The faster way, by a matrix product, cancels digits of small distances.
    return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist")
