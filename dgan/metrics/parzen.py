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
from torch import Tensor

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
    chunk: int = 256,
) -> ParzenEstimate:
    """The estimate of `test` with that of the bandwidths which suits `validation` best.

    Args:
        samples: generated, floating `[S, ...]`; images count as vectors of pixels, in the papers
            in [0, 1].
        validation: real points `[V, ...]` that choose the bandwidth.
        test: real points `[T, ...]`, others than those.
        bandwidths: σ, in the units of the data.
        chunk: points that are compared with all samples at once; S · chunk float64 of memory.

    Raises:
        ValueError: shapes do not fit, a bandwidth is not positive, or a value is not finite.
    """
    if not bandwidths:
        raise ValueError("no bandwidths to choose from")
    scores = log_likelihoods(samples, validation, bandwidths, chunk=chunk).mean(1)
    best = bandwidths[int(scores.argmax())]
    (found,) = log_likelihoods(samples, test, [best], chunk=chunk)
    error = found.std().item() / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return ParzenEstimate(
        log_likelihood=found.mean().item(), standard_error=error, bandwidth=float(best)
    )


def log_likelihoods(
    samples: Tensor, points: Tensor, bandwidths: Sequence[float], *, chunk: int = 256
) -> Tensor:
    """log (1/S) Σᵢ N(x; yᵢ, σ²I) of points x, for each σ: float64 `[bandwidths, points]`.

    Arguments and errors are those of `parzen_estimate`. Each distance is computed once.
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
