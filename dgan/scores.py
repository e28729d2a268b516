"""The scores of a generator: what they are called, which way is better, what it takes. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Score:
    """One number of an evaluation."""

    better: Literal["lower", "higher", ""]
    """Empty: neither, it says how sure another one is."""
    means: str


SCORES = {
    "fid": Score("lower", "Fréchet distance of two Gaussians"),
    "l1": Score("lower", "mean |made − target| of pairs, values in [−1, 1]"),
    "cycle": Score("lower", "mean |there and back − image|, values in [−1, 1]"),
    **{
        f"js_{n}": Score("lower", f"Jensen–Shannon divergence of {n}-grams, nats")
        for n in (1, 2, 3, 4)
    },
    "coverage": Score("higher", "classes with a tenth of their share"),
    "modes": Score("higher", "classes with one sample or more"),
    "reverse_kl": Score("lower", "KL(generated ‖ real) of classes, nats"),
    "agreement": Score("higher", "share recognised as the class asked for"),
    "kid": Score("lower", "unbiased MMD², cubic kernel, all samples"),
    "kid_subset_mean": Score("lower", "the same, mean over subsets"),
    "kid_subset_std": Score("", "and standard deviation"),
    "precision": Score("higher", "generated in a real neighbourhood, k = 3"),
    "recall": Score("higher", "real in a generated neighbourhood, k = 3"),
    "density": Score("higher", "real neighbourhoods of a sample, k = 5"),
    "manifold_coverage": Score("higher", "real neighbourhoods not empty, k = 5"),
    "diversity": Score("higher", "mean distance of pairs, over the real"),
    "classifier_score": Score("higher", "exp E KL(p(class | x) ‖ p(class))"),
    "classifier_score_mean": Score("higher", "the same, mean over ten splits"),
    "classifier_score_std": Score("", "and standard deviation"),
    "intra_fid": Score("lower", "FID of a class, mean over classes"),
    "log_likelihood": Score("higher", "of real pixels under Parzen windows, nats"),
    "log_likelihood_error": Score("", "its standard error"),
    "bandwidth": Score("", "of the windows, best on the validation images"),
}
"""Every score that an evaluation may give."""

METRICS = {
    "fid": ("fid", "coverage", "modes", "reverse_kl", "agreement"),
    "kid": ("kid", "kid_subset_mean", "kid_subset_std"),
    "manifold": ("precision", "recall", "density", "manifold_coverage", "diversity"),
    "classifier_score": ("classifier_score", "classifier_score_mean", "classifier_score_std"),
    "intra_fid": ("intra_fid",),
    "parzen": ("log_likelihood", "log_likelihood_error", "bandwidth"),
}
"""What can be asked for, and the scores that it gives; `fid` always comes."""

ALL = "all"
"""Every metric that the features and the generator allow."""

BEST = tuple(name for name, score in SCORES.items() if score.better)
"""The scores that checkpoints can be chosen by."""


def require_metrics(names: Sequence[str], key: str) -> None:
    """Raise `ValueError` that names `key` unless all of `names` can be asked for."""
    for name in names:
        if name not in (*METRICS, ALL):
            raise ValueError(f"{key} has {name!r}; choose from {', '.join((*METRICS, ALL))}")


def require_best(name: str, key: str) -> None:
    """Raise `ValueError` that names `key` unless checkpoints can be chosen by the score `name`."""
    if name not in BEST:
        raise ValueError(f"{key} is {name!r}; choose from {', '.join(BEST)}")


OF_KIND = {"l1": "pairs", "cycle": "unpaired", **{f"js_{n}": "text" for n in (1, 2, 3, 4)}}
"""What one kind of data is scored by, whatever is asked for, and which."""


def way_to(score: str) -> str:
    """What gives `score`, in words that end a message."""
    if score in OF_KIND:
        return f"{score} is of --data.kind {OF_KIND[score]}"
    metric = next(metric for metric, scores in METRICS.items() if score in scores)
    return f"--evaluation.metrics {metric} gives it, where features and generator allow"
