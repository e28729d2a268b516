"""How good generated samples are: feature extractors, Fréchet distance, class coverage."""

from dgan.metrics.features import ClassifierFeatures, Features, open_features, train_classifier
from dgan.metrics.frechet import FeatureStatistics, frechet_distance
from dgan.metrics.modes import ClassCoverage, class_histogram, reverse_kl

__all__ = [
    "ClassCoverage",
    "ClassifierFeatures",
    "FeatureStatistics",
    "Features",
    "class_histogram",
    "frechet_distance",
    "open_features",
    "reverse_kl",
    "train_classifier",
]
