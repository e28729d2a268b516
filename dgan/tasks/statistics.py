"""Cheap statistics of a batch that tell how the game stands, among what every task logs."""

import torch
import torch.nn.functional as F
from torch import Tensor

POOLED = 64
"""Values that a sample is pooled into; fewer if it has fewer."""


def accuracy(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The share of pairs (real i, fake i) whose real logit is the higher, float64; ties count half.

    Of logits of patches, the share of all pairs of patches. Without a threshold, it means the same
    for every loss.
    """
    margin = (real_logits - fake_logits).detach()
    return 0.5 + 0.5 * margin.sign().double().mean()


@torch.no_grad()
def moments(samples: Tensor) -> Tensor:
    """Means over the batch of some values of each sample and of their squares, float64 `[2, k]`.

    The values are the means of k = min(64, size) runs of the flattened sample, whatever its shape.
    """
    flat = samples.flatten(1)
    values = F.adaptive_avg_pool1d(flat[:, None], min(POOLED, flat.shape[1]))[:, 0].double()
    return torch.stack([values.mean(0), values.square().mean(0)])


def scalars(means: dict[str, Tensor]) -> dict[str, float]:
    """What is logged of terms that are means over the global batch.

    Scalars are, as they are. `moments` `[2 (real, generated), 2, k]` become `diversity`: the
    variance of generated samples relative to that of real ones, each summed over the k values. It
    is 0 where all generated samples are the same, and is left out where all real ones are. It does
    not tell a few modes from many, and counts the difference between classes as diversity.
    """
    logged = {key: value.item() for key, value in means.items() if key != "moments"}
    if "moments" in means:
        first, second = means["moments"].unbind(1)
        real, generated = (second - first.square()).clamp(min=0).sum(1).tolist()
        if real > 0:
            logged["diversity"] = generated / real
    return logged
