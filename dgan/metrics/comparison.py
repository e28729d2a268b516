"""Every score of generated images against real ones, from images that pass by once.

real, fake = Tally("real images", features, metrics), Tally("generated images", features, metrics)
real.add(images, begin=0)                # of each rank other images, by their number
comparison = Comparison(real, features, metrics)
fake.add(images, begin=0, labels)
comparison(fake)                         # {"fid": 12.3, "coverage": 1.0, …}
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from dgan.metrics.base import Features
from dgan.metrics.classwise import ClassifierScore, class_distances
from dgan.metrics.frechet import FeatureStatistics, frechet_distance
from dgan.metrics.kernel import SUBSET_SIZE, kernel_distance, kernel_distances
from dgan.metrics.manifold import Manifold, compare_manifolds
from dgan.metrics.modes import ClassCoverage
from dgan.metrics.parzen import parzen_estimate
from dgan.metrics.rows import FeatureRows

OF_PAIRS = frozenset({"kid", "manifold"})
"""Metrics that compare every sample with every other."""
OF_ROWS = OF_PAIRS | {"intra_fid"}
"""Metrics that need feature vectors one by one."""


class Tally:
    """What some metrics need of images that are seen once, of this rank's.

    Args:
        name: what errors call the images.
        features: what they are compared in.
        metrics: of `dgan.scores.METRICS`.
        samples: how many there will be over all ranks; `classifier_score` needs to know.
    """

    def __init__(
        self, name: str, features: Features, metrics: Sequence[str], *, samples: int = 0
    ) -> None:
        kinds, wanted = features.num_classes, {*metrics}
        self.features = features
        self.statistics = FeatureStatistics(name=name, features=features.name)
        self.rows = FeatureRows() if OF_ROWS & wanted else None
        self.classes = ClassCoverage(kinds) if kinds else None
        self.pixels = FeatureRows() if "parzen" in wanted else None
        is_scored = samples and "classifier_score" in wanted
        self.score = ClassifierScore(classes=kinds, samples=samples) if is_scored else None

    def add(self, images: Tensor, begin: int, labels: Tensor | None = None) -> None:
        """Add images, uint8, of numbers `begin`, `begin + 1`, …, and perhaps their classes."""
        if not len(images):
            return
        if self.pixels is not None:
            self.pixels.add(pixels_of(images), begin)
        x = self.features(images)
        self.statistics.update(x)
        if self.rows is not None:
            self.rows.add(x, begin, labels)
        if self.classes is not None:
            # What is not finite is reported by the statistics, when all ranks are there to hear it.
            probabilities = self.features.recognise(x.where(x.isfinite(), 0))
            self.classes.update(probabilities, labels)
            if self.score is not None:
                self.score.update(probabilities, begin)


def pixels_of(images: Tensor) -> Tensor:
    """uint8 `[N, C, H, W]` as vectors float32 `[N, C·H·W]` in [0, 1]."""
    return images.flatten(1).float() / 255


class Comparison:
    """Generated images against real ones, whose part is computed once.

    FID, classes and classifier score are sums: they hold D² numbers, whatever the samples. The
    others hold features, float32, 4·D bytes a sample (410 MB of 50,000 with 2,048): each rank its
    own on the CPU, of the real images all of them while they are read and, for `intra_fid`, from
    then on; for `kid` and `manifold` then those of all ranks' samples and of the real images in
    `pairs`, on every rank's device. `parzen` holds pixels, 4·C·H·W bytes a sample: of the real
    images each rank its own, of the generated ones all of them.

    Args:
        real: of all ranks' real images; a collective call.
        features: what they are compared in.
        metrics: of `dgan.scores.METRICS`.
        classes: of the generator, which `intra_fid` takes one by one.
        class_counts: real images of each class; None: as the features recognise them.
        pairs: real images that `OF_PAIRS` compare with, chosen at random; None: all.
        seed: of what is chosen at random.
        validation: this rank's part of other real images, `pixels_of` them `[n, D]`, on which
            `parzen` chooses its bandwidth.
        at: called before each part of the work.
    """

    def __init__(
        self,
        real: Tally,
        features: Features,
        metrics: Sequence[str],
        *,
        classes: int = 0,
        class_counts: Sequence[int] | None = None,
        pairs: int | None = None,
        seed: int = 0,
        validation: Tensor | None = None,
        at: Callable[[], None] = lambda: None,
    ) -> None:
        self.metrics, self.classes, self.seed, self.at = {*metrics}, classes, seed, at
        self.real = real.statistics.reduce()
        self.class_counts = class_counts
        if class_counts is None and real.classes is not None:
            self.class_counts = real.classes.reduce().counts.tolist()
        self._device = features.device
        if OF_PAIRS & self.metrics and real.rows is not None:
            self.pairs = real.rows.gather(pairs, seed=seed).to(self._device)
        if "manifold" in self.metrics:
            at()
            self._manifold = Manifold(self.pairs, name="real")
        self._validation, self._test = validation, real.pixels
        self._rows = real.rows if "intra_fid" in self.metrics else None

    def __call__(self, fake: Tally) -> dict[str, Any]:
        """The scores of all ranks' generated images; a collective call.

        Raises:
            ValueError: features that are not finite, or too few samples; on every rank.
        """
        scores: dict[str, Any] = {"fid": frechet_distance(self.real, fake.statistics.reduce())}
        if fake.classes is not None and self.class_counts is not None:
            total = fake.classes.reduce()
            scores["coverage"] = total.coverage(self.class_counts)
            scores["modes"] = total.modes
            scores["reverse_kl"] = total.reverse_kl(self.class_counts)
            if self.classes:
                scores["agreement"] = total.agreement
        if fake.score is not None:
            scores |= _classifier_scores(fake.score.reduce())
        if fake.rows is not None:
            scores |= self._of_pairs(fake.rows) | self._of_classes(fake.rows)
        if fake.pixels is not None:
            scores |= self._likelihood(fake.pixels)
        return scores

    def _likelihood(self, pixels: FeatureRows) -> dict[str, float]:
        assert self._validation is not None, "the evaluator refuses `parzen` without"
        assert self._test is not None, "of the same metrics"
        self.at()
        samples = pixels.gather().to(self._device)
        found = parzen_estimate(samples, self._validation, self._test.features)
        return {
            "log_likelihood": found.log_likelihood,
            "log_likelihood_error": found.standard_error,
            "bandwidth": found.bandwidth,
        }

    def _of_pairs(self, rows: FeatureRows) -> dict[str, Any]:
        if not OF_PAIRS & self.metrics:
            return {}
        scores: dict[str, Any] = {"real_samples_of_pairs": len(self.pairs)}
        fake = rows.gather().to(self._device)
        if "kid" in self.metrics:
            self.at()
            scores |= _kernel_scores(self.pairs, fake, self.seed)
        if "manifold" in self.metrics:
            self.at()
            scores |= compare_manifolds(self._manifold, Manifold(fake, name="generated"))
        return scores

    def _of_classes(self, rows: FeatureRows) -> dict[str, Any]:
        if self._rows is None:
            return {}
        self.at()
        real = (self._rows.features, self._rows.labels)
        each = class_distances(real, (rows.features, rows.labels), self.classes)
        mean = sum(found["fid"] for found in each.values()) / len(each)
        by_name = {str(label): found for label, found in each.items()}
        return {"intra_fid": mean, "intra_fid_of_classes": by_name}


def _kernel_scores(real: Tensor, fake: Tensor, seed: int) -> dict[str, Any]:
    fewest = min(len(real), len(fake))
    # Subsets that are nearly everything would be nearly the same, and their deviation nothing.
    size = SUBSET_SIZE if fewest >= SUBSET_SIZE else fewest // 2
    subsets = kernel_distances(real, fake, size=size, seed=seed)
    return {
        "kid": kernel_distance(real, fake),
        "kid_subset_mean": subsets.mean().item(),
        "kid_subset_std": subsets.std(correction=0).item(),
        "kid_subsets": f"{len(subsets)} of {size}, seed {seed}",
    }


def _classifier_scores(score: ClassifierScore) -> dict[str, float]:
    splits = score.splits
    return {
        "classifier_score": score.value,
        "classifier_score_mean": splits.mean().item(),
        "classifier_score_std": splits.std(correction=0).item(),
    }
