"""The log-likelihood of data under a Parzen window estimate, as the first GAN papers report it.

Goodfellow et al. 2014, section 5, after Breuleux et al. 2011: a Gaussian of one
bandwidth σ around each generated sample; σ is chosen on validation data. Theis et al. 2016
("A note on the evaluation of generative models") show how little it says in high
dimensions: it is for comparison with those papers, not for choosing models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from dgan.metrics.reduction import all_sum

BANDWIDTHS = tuple(10 ** (-1 + index / 9) for index in range(10))
"""0.1 … 1, evenly spaced in their logarithm: for pixels in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class ParzenEstimate:
    """Mean log-likelihood of test points in nats, its standard error, and the bandwidth."""

    log_likelihood: float
    standard_error: float
    bandwidth: float


def parzen_estimate(
    samples: Tensor,
    validation: Tensor,
    test: Tensor,
    bandwidths: Sequence[float] = BANDWIDTHS,
    *,
    group: dist.ProcessGroup | None = None,
) -> ParzenEstimate:
    """The estimate of `test` with that of the bandwidths which suits `validation` best.

    Over ranks, a collective call: sums over all points make it the estimate of one process.

    Args:
        samples: generated, floating `[S, ...]`, the same on every rank; images count as vectors of
            pixels, in the papers in [0, 1].
        validation: this rank's real points `[V, ...]` that choose the bandwidth; perhaps none.
        test: likewise `[T, ...]`, others than those, for the estimate.
        bandwidths: σ, in the units of the data.
        group: of the ranks.

    Raises:
        ValueError: shapes do not fit, a bandwidth is not positive, a value is not finite, or there
            are less than two test points.
    """
    if not bandwidths:
        raise ValueError("no bandwidths to choose from")
    scores, count = _total(_known(samples, validation, bandwidths), group)
    best = bandwidths[int((scores / count).argmax())]
    own = _known(samples, test, [best])
    (total,), count = _total(own, group)
    if count < 2:
        raise ValueError(f"{count:.0f} test points; at least 2 are needed")
    (squares,), _ = _total((own - total / count).square(), group)
    return ParzenEstimate(
        log_likelihood=(total / count).item(),
        standard_error=(squares / (count - 1) / count).sqrt().item(),
        bandwidth=float(best),
    )


def _known(samples: Tensor, points: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """`log_likelihoods`, also of no points."""
    if not len(points):
        return torch.zeros(len(bandwidths), 0, dtype=torch.float64, device=samples.device)
    return log_likelihoods(samples, points, bandwidths)


def _total(values: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, float]:
    """Sums over points and ranks of `values` `[bandwidths, points]`, and how many points."""
    count = torch.full_like(values[:, :1].sum(1), values.shape[1])
    sums, counts = all_sum(torch.stack([values.sum(1), count]), group)
    return sums, counts[0].item()


def log_likelihoods(
    samples: Tensor, points: Tensor, bandwidths: Sequence[float], *, chunk: int = 256
) -> Tensor:
    """log (1/S) Σᵢ N(x; yᵢ, σ²I) of points x, for each σ: float64 `[bandwidths, points]`.

    Arguments and errors are those of `parzen_estimate`; `chunk` points are compared with all
    samples at once, S · chunk float64 of memory. Each distance is computed once.
    """
    y, x = _vectors(samples, "samples"), _vectors(points, "points")
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"points have {x.shape[1]} dimensions, samples {y.shape[1]}: they must be alike"
        )
    for bandwidth in bandwidths:
        if not (math.isfinite(bandwidth) and bandwidth > 0):
            raise ValueError(f"a bandwidth is {bandwidth}; it must be a positive number")
    sigma = torch.tensor(list(bandwidths), dtype=torch.float64, device=y.device)[:, None]
    dimension = y.shape[1]
    constant = -math.log(len(y)) - dimension * (sigma.log() + 0.5 * math.log(2 * math.pi))
    # About the samples' mean, where the squares below are small and cancel least.
    centre = y.mean(0)
    y, x = y - centre, x.to(y.device) - centre
    parts = [_log_sums(y, part, sigma) for part in x.split(chunk)]
    return torch.cat(parts, dim=1) + constant


def _log_sums(y: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """log Σᵢ exp(−‖x − yᵢ‖²/2σ²): `[bandwidths, points]`."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    squares = squares.clamp(min=0)
    return torch.stack([(-squares / (2 * s**2)).logsumexp(1) for s in sigma.squeeze(1)])


def _vectors(values: Tensor, name: str) -> Tensor:
    """`values` as float64 `[N, D]`."""
    if values.ndim < 2 or len(values) == 0 or not values.is_floating_point():
        raise ValueError(
            f"{name} are {values.dtype} {list(values.shape)}; expected floating [N, ...], N above 0"
        )
    if not values.isfinite().all():
        raise ValueError(f"{name} contain NaN or infinity")
    return values.detach().to(torch.float64).flatten(1)
