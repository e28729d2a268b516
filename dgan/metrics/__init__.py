"""How good generated samples are: features, distances between their distributions, classes."""

from dgan.metrics.classwise import ClassifierScore, class_distances
from dgan.metrics.comparison import Comparison, Tally
from dgan.metrics.features import (
    ClassifierFeatures,
    Features,
    StackedFeatures,
    open_features,
    train_classifier,
)
from dgan.metrics.frechet import FeatureStatistics, frechet_distance
from dgan.metrics.kernel import kernel_distance, kernel_distances
from dgan.metrics.manifold import Manifold, compare_manifolds
from dgan.metrics.modes import ClassCoverage, class_histogram, reverse_kl
from dgan.metrics.rows import FeatureRows

__all__ = [
    "ClassCoverage",
    "ClassifierFeatures",
    "ClassifierScore",
    "Comparison",
    "FeatureRows",
    "FeatureStatistics",
    "Features",
    "Manifold",
    "StackedFeatures",
    "Tally",
    "class_distances",
    "class_histogram",
    "compare_manifolds",
    "frechet_distance",
    "kernel_distance",
    "kernel_distances",
    "open_features",
    "reverse_kl",
    "train_classifier",
]
