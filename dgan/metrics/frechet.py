"""The Fréchet distance between feature distributions, from statistics exact at any world size.

real, fake = FeatureStatistics(name="real"), FeatureStatistics(name="generated")
real.update(features(real_images))       # any number of times, on any number of ranks
fake.update(features(fake_images))
frechet_distance(real.reduce(), fake.reduce())
"""

import os
from pathlib import Path
from typing import Self

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dgan.metrics.base import require_file
from dgan.metrics.reduction import all_rows, all_sum

FORMAT = "dgan.feature_statistics/1"


class FeatureStatistics:
    """Count, mean and scatter of feature vectors, in float64.

    The scatter Σ (x − mean)(x − mean)ᵀ is kept centred and merged chunk by chunk (Chan, Golub and
    LeVeque 1983, "Algorithms for computing the sample variance"). Plain sums Σ xxᵀ cost
    the same but cancel: they lose 2·log₁₀(mean/std) of float64's 16 digits, and features that are
    almost constant, as an early generator's are, have that ratio in the thousands and more.

    A chunk with NaN or infinity does not raise here, where one rank would leave the others
    waiting; it is counted and `frechet_distance` raises after the reduction, on every rank alike.

    Args:
        name: what error messages call these samples, e.g. "real" or "generated".
        features: name of the features (`Features.name`); statistics of two different names are
            not compared. Empty compares with anything.

    Attributes:
        count: number of vectors, N.
    """

    def __init__(self, *, name: str = "", features: str = "") -> None:
        self.name = name
        self.features = features
        self.count = 0
        self._mean: Tensor | None = None  # float64 [D]
        self._scatter: Tensor | None = None  # float64 [D, D]
        self._invalid: Tensor | None = None  # int64 []: vectors with NaN or infinity

    @property
    def dimension(self) -> int:
        """D, or 0 before the first update."""
        return 0 if self._mean is None else len(self._mean)

    def update(self, features: Tensor) -> None:
        """Add feature vectors, floating [N, D], on any device (that of the first stays).

        Raises:
            ValueError: `features` is not [N, D] of a floating dtype, or D changed.
        """
        if features.ndim != 2 or not features.is_floating_point():
            raise ValueError(
                f"features are {features.dtype} {list(features.shape)}; expected floating [N, D]"
            )
        if self._mean is not None and features.shape[1] != self.dimension:
            raise ValueError(
                f"features have {features.shape[1]} dimensions; {self._label()} has "
                f"{self.dimension} so far"
            )
        if len(features) == 0:
            return
        x = features.detach().to(dtype=torch.float64)
        x = x if self._mean is None else x.to(self._mean.device)
        mean = x.mean(dim=0)
        centred = x - mean
        invalid = (~x.isfinite().all(dim=1)).sum()
        self._merge(len(x), mean, centred.T @ centred, invalid)

    def _merge(self, count: int, mean: Tensor, scatter: Tensor, invalid: Tensor) -> None:
        if self._mean is None or self._scatter is None or self._invalid is None:
            self.count, self._mean = count, mean
            self._scatter, self._invalid = scatter, invalid
            return
        total = self.count + count
        delta = mean - self._mean
        self._scatter += scatter + torch.outer(delta, delta) * (self.count * count / total)
        self._mean = self._mean + delta * (count / total)
        self._invalid = self._invalid + invalid
        self.count = total

    def reduce(self, group: dist.ProcessGroup | None = None) -> "FeatureStatistics":
        """The statistics of all ranks' vectors together, on every rank; self is unchanged.

        A collective call where torch.distributed is initialised, a copy elsewhere. Ranks may hold
        different numbers of vectors, or none. Scatters are moved to the common mean before they
        are summed: Σᵣ [Sᵣ + nᵣ (mᵣ − m)(mᵣ − m)ᵀ] is the scatter about m, exactly.

        Raises:
            ValueError: ranks hold features of different dimensions (raised on every rank).
        """
        rows = all_rows([self.count, self.dimension], group)
        dimensions = {dimension for _, dimension in rows if dimension}
        if len(dimensions) > 1:
            raise ValueError(f"ranks hold features of different dimensions: {sorted(dimensions)}")
        total = FeatureStatistics(name=self.name, features=self.features)
        if not dimensions:
            return total
        mean, scatter, invalid = self._parts(dimensions.pop())
        total.count = sum(count for count, _ in rows)
        total._mean = all_sum(mean * (self.count / total.count), group)
        delta = mean - total._mean
        total._scatter = all_sum(scatter + torch.outer(delta, delta) * self.count, group)
        total._invalid = all_sum(invalid, group)
        return total

    def _parts(self, dimension: int) -> tuple[Tensor, Tensor, Tensor]:
        if self._mean is None or self._scatter is None or self._invalid is None:
            zeros = torch.zeros(dimension, dimension, dtype=torch.float64)
            return zeros[0].clone(), zeros, torch.zeros((), dtype=torch.int64)
        return self._mean, self._scatter, self._invalid

    @property
    def mean(self) -> Tensor:
        """The mean, float64 [D]; ValueError when empty or not finite."""
        self._require(1)
        return self._parts(self.dimension)[0]

    @property
    def covariance(self) -> Tensor:
        """The unbiased (N − 1) covariance, float64 [D, D]; ValueError if N < 2 or not finite."""
        self._require(2)
        return self._parts(self.dimension)[1] / (self.count - 1)

    def _require(self, minimum: int) -> None:
        if self.count < minimum:
            raise ValueError(
                f"{self._label()} has {self.count} samples; at least {minimum} are needed"
            )
        invalid = 0 if self._invalid is None else int(self._invalid)
        if invalid:
            raise ValueError(
                f"{self._label()} has {invalid} of {self.count} samples with NaN or infinite "
                "features"
            )

    def _label(self) -> str:
        return f"the statistics {self.name!r}" if self.name else "the statistics"

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file, whole or not at all, e.g. to reuse the real data's.

        Raises:
            ValueError: fewer than 2 samples, or features that are not finite.
        """
        self._require(2)
        path = Path(path)
        mean, scatter, _ = self._parts(self.dimension)
        tensors = {"mean": mean.cpu().contiguous(), "scatter": scatter.cpu().contiguous()}
        metadata = {"format": FORMAT, "name": self.name, "features": self.features}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        save_file(tensors, partial, metadata={**metadata, "count": str(self.count)})
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote, to the CPU.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds something else.
        """
        path = Path(path)
        require_file(path, "saved feature statistics")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"{path} does not hold feature statistics ({FORMAT})")
                self = cls(name=metadata["name"], features=metadata["features"])
                self.count = int(metadata["count"])
                self._mean, self._scatter = file.get_tensor("mean"), file.get_tensor("scatter")
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
        self._invalid = torch.zeros((), dtype=torch.int64)
        return self


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """The squared Fréchet distance ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) of two Gaussians.

    Heusel et al. 2017, "GANs trained by a two time-scale update rule converge to a local Nash
    equilibrium", eq. 6; with InceptionV3 features it is the FID. Pass reduced statistics.

    Raises:
        ValueError: fewer than 2 samples, NaN or infinite features, different features or
            dimensions; the message names the statistics.
    """
    if a.features and b.features and a.features != b.features:
        raise ValueError(
            f"different features: {a._label()} {a.features}, {b._label()} {b.features}"
        )
    mean_a, covariance_a = a.mean, a.covariance
    mean_b, covariance_b = b.mean.to(mean_a.device), b.covariance.to(mean_a.device)
    if mean_a.shape != mean_b.shape:
        raise ValueError(
            f"{a._label()} has {a.dimension} dimensions, {b._label()} has {b.dimension}"
        )
    root = _trace_of_root(covariance_a, covariance_b)
    spread = covariance_a.trace() + covariance_b.trace() - 2 * root
    distance = (mean_a - mean_b).square().sum() + spread
    return max(distance.item(), 0.0)  # never negative but for rounding in the last digits


def _trace_of_root(a: Tensor, b: Tensor) -> Tensor:
    """tr (ab)^½ for symmetric positive semi-definite a, b.

    The eigenvalues of ab are those of the symmetric a^½ b a^½, so they are real and ≥ 0 and there
    is no imaginary part to drop. Their roots, which the trace sums, are the singular values of
    a^½ b^½. Taken directly, rounding stays at 1e-16 of the largest, where the root of a computed
    eigenvalue 0 would be off by 1e-8, D − N times over when samples are few.
    """
    return torch.linalg.svdvals(_factor(a).T @ _factor(b)).sum()


def _factor(covariance: Tensor) -> Tensor:
    """F [D, r] with F Fᵀ = covariance and r its numerical rank."""
    values, vectors = torch.linalg.eigh(covariance)
    if values[0] < -1e-8 * values[-1].abs():  # rounding leaves -1e-13; this is another matrix
        raise ValueError(
            f"a covariance has eigenvalues from {values[0]:.3g} to {values[-1]:.3g}; none may be "
            "negative: the statistics are damaged"
        )
    tolerance = values[-1] * len(values) * torch.finfo(values.dtype).eps
    keep = values > tolerance
    return vectors[:, keep] * values[keep].sqrt()
