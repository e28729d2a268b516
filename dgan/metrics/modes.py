"""Which classes a generator produces: histogram, coverage, reverse KL, agreement with the label.

modes = ClassCoverage(num_classes=10)
modes.update(classifier.probabilities(images), labels)   # labels: the classes asked for, if any
total = modes.reduce()                                    # over ranks
total.coverage(), total.reverse_kl(real_counts), total.agreement
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from dgan.metrics.reduction import all_sum

CONFIDENCE = 0.5  # more than every other class together
SHARE = 0.1  # of the samples a class would get from the real distribution


def class_histogram(classes: Tensor, num_classes: int) -> Tensor:
    """Samples of each class, int64 [K] on the CPU, from labels int64 [N] in 0..num_classes − 1.

    Raises:
        ValueError: `classes` is not integer [N], or a class is out of range.
    """
    if classes.ndim != 1 or classes.is_floating_point() or classes.dtype == torch.bool:
        raise ValueError(f"classes are {classes.dtype} {list(classes.shape)}; expected int64 [N]")
    classes = classes.cpu()
    if len(classes) and (classes.min() < 0 or classes.max() >= num_classes):
        raise ValueError(
            f"classes run from {classes.min()} to {classes.max()}, but num_classes is {num_classes}"
        )
    return torch.bincount(classes, minlength=num_classes)


def reverse_kl(generated: Tensor | Sequence[int], real: Tensor | Sequence[int]) -> float:
    """KL(generated ‖ real) = Σₖ pₖ ln(pₖ / qₖ) in nats, from two histograms [K] of counts.

    "Reverse" since the generated distribution p comes first, as PacGAN reports it for stacked
    MNIST (Lin et al. 2018, "PacGAN: The power of two samples in generative adversarial networks").
    0 when every class has the share it has in the real data; infinite when a class appears
    that the real data lacks.

    Raises:
        ValueError: shapes differ, a count is negative, or a histogram is empty.
    """
    p, q = _shares(generated, "generated"), _shares(real, "real")
    if p.shape != q.shape:
        raise ValueError(f"histograms of {len(p)} and {len(q)} classes")
    seen = p > 0  # the limit of p ln p at 0 is 0
    if (q[seen] == 0).any():
        return math.inf
    return (p[seen] * (p[seen] / q[seen]).log()).sum().item()


def _shares(counts: Tensor | Sequence[int], name: str) -> Tensor:
    values = torch.as_tensor(counts, dtype=torch.float64, device="cpu")
    if values.ndim != 1 or (values < 0).any() or not values.sum() > 0:
        raise ValueError(f"the {name} histogram must be [K] counts ≥ 0 with a positive sum")
    return values / values.sum()


class ClassCoverage:
    """Counts of recognised classes over any number of updates and ranks.

    Args:
        num_classes: K.
        minimum: samples that make a class covered. Left open, a tenth of what the real
            distribution would give it (uniform where it is not passed), and at least 1: a
            classifier that errs once in fifty would otherwise cover every class of a collapsed
            generator by its errors. PacGAN and VEEGAN count any one sample: minimum=1.
        confidence: probability from which a sample counts towards coverage.

    Attributes:
        counts: int64 [K], samples by their most probable class, whatever its probability.
        confident: int64 [K], those recognised with at least `confidence`.
    """

    def __init__(
        self, num_classes: int, *, minimum: int | None = None, confidence: float = CONFIDENCE
    ) -> None:
        if num_classes < 1 or (minimum is not None and minimum < 1):
            raise ValueError(f"num_classes={num_classes}, minimum={minimum}: both must be ≥ 1")
        self.num_classes = num_classes
        self.minimum = minimum
        self.confidence = confidence
        self.counts = torch.zeros(num_classes, dtype=torch.int64)
        self.confident = torch.zeros(num_classes, dtype=torch.int64)
        self._asked = 0  # samples that came with a label
        self._agreed = 0  # of those, recognised as that label

    @property
    def count(self) -> int:
        """Samples so far, N."""
        return int(self.counts.sum())

    def update(self, probabilities: Tensor, labels: Tensor | None = None) -> None:
        """Add samples.

        Args:
            probabilities: the classifier's, floating [N, K], on any device.
            labels: the classes that a conditional generator was asked for, int64 [N].

        Raises:
            ValueError: shapes or dtypes are others, or a probability is not finite.
        """
        shape = list(probabilities.shape)
        if probabilities.ndim != 2 or shape[1] != self.num_classes:
            raise ValueError(f"probabilities are {shape}; expected [N, {self.num_classes}]")
        if not probabilities.isfinite().all():
            raise ValueError("probabilities contain NaN or infinity")
        if labels is not None and labels.shape != probabilities.shape[:1]:
            raise ValueError(f"probabilities are {shape}, labels {list(labels.shape)}")
        top, classes = (values.cpu() for values in probabilities.detach().max(dim=1))
        self.counts += class_histogram(classes, self.num_classes)
        self.confident += class_histogram(classes[top >= self.confidence], self.num_classes)
        if labels is not None:
            self._asked += len(labels)
            self._agreed += int((classes == labels.cpu()).sum())

    def reduce(self, group: dist.ProcessGroup | None = None) -> "ClassCoverage":
        """The counts of all ranks together, on every rank; self is unchanged.

        A collective call where torch.distributed is initialised, a copy elsewhere.
        """
        total = ClassCoverage(self.num_classes, minimum=self.minimum, confidence=self.confidence)
        pairs = torch.tensor([self._asked, self._agreed], dtype=torch.int64)
        summed = all_sum(torch.cat([self.counts, self.confident, pairs]), group)
        total.counts, total.confident, pairs = summed.split([self.num_classes] * 2 + [2])
        total._asked, total._agreed = pairs.tolist()
        return total

    def coverage(self, real: Tensor | Sequence[int] | None = None) -> float:
        """Share of classes with at least `minimum` samples recognised with `confidence`, in 0..1.

        Args:
            real: histogram [K] of the real data. Classes it lacks are not asked for; without it,
                every class is, at equal shares.

        Raises:
            ValueError: no samples yet, or `real` is no histogram of K classes.
        """
        self._require_samples()
        shares = _shares([1] * self.num_classes if real is None else real, "real")
        if len(shares) != self.num_classes:
            raise ValueError(
                f"the real histogram has {len(shares)} classes, not {self.num_classes}"
            )
        if self.minimum is None:
            needed = (SHARE * self.count * shares).ceil().clamp(min=1)
        else:
            needed = torch.full_like(shares, self.minimum)
        covered = (self.confident >= needed)[shares > 0]
        return covered.double().mean().item()

    @property
    def modes(self) -> int:
        """Classes that are the most probable one of a sample or more, as PacGAN counts them."""
        return int((self.counts > 0).sum())

    def reverse_kl(self, real: Tensor | Sequence[int]) -> float:
        """KL(generated ‖ real) of all samples in nats, see `reverse_kl`; `real` counts [K]."""
        self._require_samples()
        return reverse_kl(self.counts, real)

    @property
    def agreement(self) -> float:
        """Share of labelled samples recognised as the class asked for; ValueError without any."""
        if self._asked == 0:
            raise ValueError("no labels were passed to update(); agreement needs the classes asked")
        return self._agreed / self._asked

    def _require_samples(self) -> None:
        if self.count == 0:
            raise ValueError("no samples yet: call update(probabilities) first")
