"""Scores that know classes: the Inception score's formula, and the Fréchet distance of each class.

score = ClassifierScore(classes=10, samples=5000)
score.update(probabilities, begin=0)      # of samples 0 … n − 1; other ranks' are others
score.reduce().value                      # and .splits, float64 [10]
"""

import torch
import torch.distributed as dist
from torch import Tensor

from dgan.metrics.frechet import FeatureStatistics, frechet_distance
from dgan.metrics.modes import class_histogram
from dgan.metrics.reduction import all_sum, my_share

SPLITS = 10
"""Of Salimans et al."""


class ClassifierScore:
    """exp E KL(p(class | x) ‖ p(class)), from 1 to the number of classes; float64 sums.

    Salimans et al. 2016, "Improved techniques for training GANs", section 4, where the classifier
    is Inception. With another classifier it is another score, and compares with itself alone.

    Args:
        classes: K.
        samples: N, how many will be added over all ranks.
        splits: parts of consecutive samples that the score is computed of, besides all of them.

    Raises:
        ValueError: fewer samples than splits.
    """

    def __init__(self, *, classes: int, samples: int, splits: int = SPLITS) -> None:
        if samples < splits:
            raise ValueError(f"{samples} samples; {splits} splits need at least one each")
        self.bounds = torch.tensor([samples * i // splits for i in range(splits + 1)])
        self._probabilities = torch.zeros(splits, classes, dtype=torch.float64)
        self._negentropy = torch.zeros(splits, dtype=torch.float64)
        self._counts = torch.zeros(splits, dtype=torch.int64)

    def update(self, probabilities: Tensor, begin: int) -> None:
        """Add probabilities `[n, K]` of samples `begin`, `begin + 1`, …

        Raises:
            ValueError: another shape, or samples beyond the number that was said.
        """
        splits, classes = self._probabilities.shape
        if probabilities.ndim != 2 or probabilities.shape[1] != classes:
            raise ValueError(
                f"probabilities are {list(probabilities.shape)}; expected [N, {classes}]"
            )
        n = len(probabilities)
        if begin + n > self.bounds[-1]:
            raise ValueError(f"sample {begin + n - 1} of {self.bounds[-1]}")
        p = probabilities.detach().double().cpu()
        split = torch.searchsorted(self.bounds, torch.arange(begin, begin + n), right=True) - 1
        self._probabilities.index_add_(0, split, p)
        self._negentropy.index_add_(0, split, torch.xlogy(p, p).sum(dim=1))
        self._counts += torch.bincount(split, minlength=splits)

    def reduce(self, group: dist.ProcessGroup | None = None) -> "ClassifierScore":
        """The score of all ranks' samples, on every rank; a collective call."""
        splits, classes = self._probabilities.shape
        total = ClassifierScore(classes=classes, samples=int(self.bounds[-1]), splits=splits)
        total._probabilities = all_sum(self._probabilities, group)
        total._negentropy = all_sum(self._negentropy, group)
        total._counts = all_sum(self._counts, group)
        return total

    @property
    def value(self) -> float:
        """The score of all samples; `ValueError` if a probability was NaN or samples lack."""
        return self._score(self._probabilities.sum(0), self._negentropy.sum(0), self._counts.sum())

    @property
    def splits(self) -> Tensor:
        """The score of each split, float64 [splits]; errors as `value`."""
        parts = zip(self._probabilities, self._negentropy, self._counts)
        return torch.tensor([self._score(*part) for part in parts], dtype=torch.float64)

    def _score(self, probabilities: Tensor, negentropy: Tensor, count: Tensor) -> float:
        if self._counts.sum() != self.bounds[-1]:
            raise ValueError(f"{self._counts.sum()} samples were added; {self.bounds[-1]} were due")
        mean = probabilities / count
        result = (negentropy / count - torch.xlogy(mean, mean).sum()).exp().item()
        if result != result:
            raise ValueError("class probabilities contain NaN")
        return result


def require_two_each(counts: Tensor, wanted: Tensor, name: str, way_out: str) -> None:
    """Raise `ValueError` that names the classes of `wanted` `[K]` (bool) with fewer than 2."""
    few = [f"{int(counts[k])} of class {k}" for k in torch.where(wanted & (counts < 2))[0].tolist()]
    if few:
        shown = ", ".join(few[:10]) + f" and {len(few) - 10} more" * (len(few) > 10)
        raise ValueError(
            f"the FID of a class needs 2 samples of it, but there are {shown} among the {name}; "
            f"{way_out}"
        )


def class_distances(
    real: tuple[Tensor, Tensor],
    fake: tuple[Tensor, Tensor],
    classes: int,
    group: dist.ProcessGroup | None = None,
) -> dict[int, dict[str, float]]:
    """The Fréchet distance of each class that the real samples have (Miyato and Koyama 2018).

    Classes are taken one after another, so that statistics of one are held at a time; ranks share
    the distances, D³ operations each. A collective call, and exact at any number of ranks. A class
    has few samples, and the distance is larger for it: compare where the numbers are equal.

    Args:
        real: features `[n, D]` and labels int64 `[n]` of this rank; −1 is left out.
        fake: likewise.
        classes: K.
        group: of the ranks.

    Returns:
        Of each class its `fid`, `samples` and `real_samples`.

    Raises:
        ValueError: a class has fewer than 2 samples, or features are not finite.
    """
    histograms = [class_histogram(labels[labels >= 0], classes) for _, labels in (real, fake)]
    counts = all_sum(torch.stack(histograms), group)
    present = counts[0] > 0
    for count, name in zip(counts, ("real images", "generated images")):
        require_two_each(count, present, name, "more samples, or without intra_fid")
    chosen = torch.where(present)[0].tolist()
    mine = my_share(len(chosen), group)
    distances = torch.zeros(len(chosen), dtype=torch.float64)
    for index, label in enumerate(chosen):
        pair = []
        for (features, labels), name in ((real, "real"), (fake, "generated")):
            statistics = FeatureStatistics(name=f"{name} images of class {label}")
            if (rows := labels == label).any():
                statistics.update(features[rows])
            pair.append(statistics.reduce(group))
        # Raises on every rank what one rank alone must not.
        _ = [statistics.covariance for statistics in pair]
        if index in mine:
            distances[index] = frechet_distance(*pair)
    return {
        label: {"fid": fid, "samples": int(counts[1][label]), "real_samples": int(counts[0][label])}
        for label, fid in zip(chosen, all_sum(distances, group).tolist())
    }
