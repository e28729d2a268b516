"""Regularisers of either player: pure functions of logits, images and weights.

Where one has a memory (a running mean), it is passed in as a tensor and the next one is a function
of what the step returned over the global batch: a checkpoint holds the tensor, every rank the same.
Gradient penalties are in `penalties`, spectral normalisation in `dgan.networks.spectral`.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from dgan.objectives.penalties import Method, PenaltyOutput, gradient_penalty

SMALLEST_LENGTH = 1e-6
"""Stands for a running mean of 0, with which `path_length` begins: it divides by the mean."""


def path_length(
    generator: Callable[..., Tensor],
    latents: Tensor,
    *conditions: Tensor | None,
    noise: Tensor,
    average: Tensor,
    method: Method = "auto",
    backend: str | None = None,
) -> PenaltyOutput:
    """Mean (‖Jᵀy‖ − a)², J being the generator's Jacobian in its latents: path length.

    Karras et al. 2020 ("Analyzing and Improving … StyleGAN"), section 3.2, equation 4. As
    ‖Jᵀy‖ is the norm of the gradient of ⟨G(w), y⟩ in w, this is a² times the one-centred
    gradient penalty of w ↦ ⟨G(w), y⟩/a, and exact wherever `gradient_penalty` is: also for a
    generator that is sharded or recomputed.

    Args:
        generator: from latents and conditions to images `[N, C, H, W]`.
        latents: `[N, ...]`, floating point; gradients do not flow into what made them. For the
            paper's w, which a mapping network makes, let them be zeros that `generator` adds to
            w: its mapping is then trained too, as in the paper.
        conditions: passed on after the latents, for example labels.
        noise: y, standard normal, of the images' shape. Divided by √(H·W) here, as the
            published code does, so that lengths do not grow with the resolution.
        average: a, the running mean of the lengths, a scalar that begins with 0; see `advanced`.
        method: as for `gradient_penalty`, like `backend`.

    Returns:
        `loss`; `norms`, the lengths ‖Jᵀy‖ `[N]`; `logits`, which are ⟨G(w), y⟩/a.
    """
    a = average.detach().clamp(min=SMALLEST_LENGTH)
    direction = noise / noise[0, 0].numel() ** 0.5 / a.to(noise.dtype)

    def along(latents: Tensor, *conditions: Tensor | None) -> Tensor:
        return (generator(latents, *conditions) * direction).flatten(1).sum(1)

    output = gradient_penalty(
        along, latents, *conditions, kind="one_centered", method=method, backend=backend
    )
    return PenaltyOutput(
        a.square() * output.loss, output.logits, a * output.norms, exact=output.exact
    )


def advanced(average: Tensor, value: Tensor, decay: float = 0.99) -> Tensor:
    """The running mean after `value`, both scalars: decay · average + (1 − decay) · value.

    Path length and LeCam take decay = 0.99. `value` is a mean over the global batch.
    """
    return decay * average + (1 - decay) * value.detach().to(average.dtype)


def lecam(real: Tensor, fake: Tensor, real_average: Tensor, fake_average: Tensor) -> Tensor:
    """E (D(x) − α_F)² + E (D(G(z)) − α_R)²: each side's logits near the other's running mean.

    LeCam regularisation, Tseng et al. 2021, section 3.2. α_R and α_F are running means
    (`advanced`) of the real and the fake logits, from 0 on; a discriminator that overfits
    moves away from them. The published code counts logits beyond the other side's mean only;
    this is the paper's formula, which is symmetric.
    """
    a_real, a_fake = real_average.detach(), fake_average.detach()
    return (real - a_fake).square().mean() + (fake - a_real).square().mean()


def consistency(logits: Tensor, changed: Tensor) -> Tensor:
    """E (D(x) − D(T(x)))²: logits of samples, and of the same samples changed by T.

    Zhao et al. 2020 ("Improved consistency regularization for GANs"): balanced (bCR, algorithm
    1), the discriminator's loss takes it of real images and of generated ones, T an
    augmentation; for latents (zCR, algorithm 2), of G(z) and G(z + noise).
    """
    if logits.shape != changed.shape:
        raise ValueError(
            f"logits are {tuple(logits.shape)}, of the changed samples {tuple(changed.shape)}: "
            "they must be of the same samples, in order"
        )
    return (logits - changed).square().mean()


def diversity(images: Tensor, changed: Tensor) -> Tensor:
    """−E (G(z) − G(z + noise))², which the generator minimises in zCR.

    Zhao et al. 2020, algorithm 2; the mean is over pixels too, so that a weight means the same at
    every resolution.
    """
    return -consistency(images, changed)


def top_k(batch: int, epochs: float, decay: float = 0.99, least: float = 0.5) -> int:
    """k = max(decay^epochs, least) · batch, rounded, at least 1.

    Sinha et al. 2020 ("Top-k training of GANs"): all samples at first, a hundredth
    fewer after each epoch, no fewer than a fraction of the batch.

    Raises:
        ValueError: `decay` or `least` is not in (0, 1].
    """
    for name, value in (("decay", decay), ("least", least)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} is {value}; it must be above 0 and at most 1")
    return max(1, round(max(decay ** int(epochs), least) * batch))


def top_k_weights(logits: Tensor, k: int) -> Tensor:
    """N/k for the k samples that the discriminator finds most real, 0 for the others; `[N]`.

    As `weights` of a generator's loss, which then is the mean over those k (Sinha et al. 2020,
    algorithm 1). Exact over ranks where `logits` are those of the global batch, gathered in row
    order, and each rank takes its rows of the result. Of equal logits the first count.

    Args:
        logits: `[N]`, or `[N, ...]` of patches, which count by their mean.
        k: how many, 1 … N.

    Raises:
        ValueError: k is not in 1 … N.
    """
    if not 1 <= k <= len(logits):
        raise ValueError(f"k is {k}; it must be 1 … {len(logits)}, the samples of the batch")
    scores = logits.detach().flatten(1).mean(1) if logits.ndim > 1 else logits.detach()
    order = scores.argsort(descending=True, stable=True)
    weights = torch.zeros_like(scores)
    weights[order[:k]] = len(scores) / k
    return weights


def orthogonal(weights: Sequence[Tensor]) -> Tensor:
    """Σ ‖W Wᵀ ∘ (1 − I)‖²_F over weights: filters at right angles, of any length.

    Brock et al. 2019, equation 3 (the form of Brock et al. 2017, ‖WᵀW − I‖², also fixes their
    lengths). W is `[outputs, ...]`, one filter a row. Sharded weights are to be whole:
    pass `weight.full_tensor()`, whose backward gives each rank its shard of the gradient.
    """
    return torch.stack([_overlaps(weight).square().sum() for weight in weights]).sum()


def orthogonal_gradient(weight: Tensor) -> Tensor:
    """4 (W Wᵀ ∘ (1 − I)) W, the gradient of `orthogonal` in one weight, without a graph."""
    rows = weight.detach().flatten(1)
    return (4 * _overlaps(weight.detach()) @ rows).view_as(weight)


def _overlaps(weight: Tensor) -> Tensor:
    rows = weight.flatten(1)
    products = rows @ rows.T
    return products - torch.diag(products.diagonal())


@torch.no_grad()
def clip_weights_(weights: Iterable[Tensor], limit: float) -> None:
    """Put every weight into [−limit, limit], in place.

    Arjovsky et al. 2017, algorithm 1, after each update of the critic (they take 0.01). Entry by
    entry: what a rank holds of a sharded weight is all it needs.

    Raises:
        ValueError: `limit` is not positive.
    """
    if not limit > 0:
        raise ValueError(f"the limit of the weights is {limit}; it must be positive")
    for weight in weights:
        weight.clamp_(-limit, limit)


def historical_average(weights: Sequence[Tensor], averages: Sequence[Tensor]) -> Tensor:
    """‖θ − (1/t) Σ θᵢ‖², the squared distance of weights to the mean of their past.

    Salimans et al. 2016, section 3.3. Entry by entry: of what a rank holds of sharded weights, it
    is that rank's part of the sum, and its gradient is whole.
    """
    pairs = zip(weights, averages, strict=True)
    return torch.stack([(weight - past.detach()).square().sum() for weight, past in pairs]).sum()


@torch.no_grad()
def advance_history_(averages: Sequence[Tensor], weights: Sequence[Tensor], updates: int) -> None:
    """Let `averages` of the weights after `updates` − 1 updates take in those after one more.

    In place; at `updates` = 1 they become the weights. Averages are part of a checkpoint.
    """
    if updates < 1:
        raise ValueError(f"updates is {updates}; it must be at least 1: this one counts")
    for past, weight in zip(averages, weights, strict=True):
        past.lerp_(weight.detach().to(past.dtype), 1 / updates)
