"""Adversarial losses, as functions of the discriminator's logits.

Every loss is a mean over the batch. `real` and `fake` are logits of equal shape, `[N]` or
`[N, ...]` for discriminators that judge patches; D(x) is a logit, σ the logistic function.
Each rank's result is the mean over its rows, so the mean over ranks of equal batches is the loss of
the global batch. `relativistic_average` and feature matching have means over the global batch
within: they take `over_ranks`, see `OverRanks`.

- `minimax`, Goodfellow et al. 2014, equation 1: min over G, max over D of
  E log σ(D(x)) + E log(1 − σ(D(G(z)))). G's gradient vanishes where D is sure.
- `non_saturating`, Goodfellow et al. 2014, section 3: D as above, G maximises E log σ(D(G(z)))
  instead of minimising the term that saturates.
- `least_squares`, Mao et al. 2017, equation 9: D minimises ½ E (D(x) − 1)² + ½ E D(G(z))²,
  G ½ E (D(G(z)) − 1)².
- `hinge`, Lim and Ye 2017, equations 10 and 11; Miyato et al. 2018, equations 16 and 17: D
  minimises E max(0, 1 − D(x)) + E max(0, 1 + D(G(z))), G −E D(G(z)).
- `wasserstein`, Arjovsky et al. 2017, equation 2 and algorithm 1: D maximises E D(x) − E D(G(z))
  among Lipschitz functions, by `regularizers.clip_weights_` or a one-centred penalty (Gulrajani et
  al. 2017, equation 3); G minimises −E D(G(z)).
- `relativistic` pairing, Jolicoeur-Martineau 2019; Huang et al. 2024, equation 2: each real sample
  is judged against one fake sample, D minimises −E log σ(D(x) − D(G(z))), G the same with the two
  exchanged.
- `relativistic_average`, Jolicoeur-Martineau 2019 (RaSGAN): against the mean of the other side, D
  minimises −E log σ(D(x) − E D(G(z))) − E log(1 − σ(D(G(z)) − E D(x))), G the same with real and
  generated exchanged.
- `feature_matching`, in place of G's part of any of them: see there.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch.nn.functional as F
from torch import Tensor

OverRanks = Callable[[Tensor], Tensor]
"""The mean over ranks of a tensor that each of them has one of, and its derivative: in a group,
`lambda x: mean_over_ranks(x, group.group_name)` of `dgan_kernels.rank_mean`, whose backward
collects from all ranks what they do with the mean. Gradients that are then averaged over ranks, as
every strategy does, are those of the global batch."""


def alone(x: Tensor) -> Tensor:
    """The mean over the ranks of a world of one."""
    return x


@dataclass(frozen=True)
class Loss:
    """What each player minimises, given (real logits, fake logits)."""

    discriminator: Callable[..., Tensor]
    generator: Callable[..., Tensor]
    """All but relativistic_average's take `weights` `[N]` too, of mean 1 over the global batch, as
    `regularizers.top_k_weights` gives them."""
    generator_sees_real: bool = False
    """Whether the generator's loss depends on the real logits."""
    has_labels: bool = False
    """Whether real samples have a target that `smoothing` can lower."""
    needs_mean: bool = False
    """Whether a mean over the global batch stands within the loss: no micro-batches, then."""


def loss_named(name: str, *, smoothing: float = 0.0, over_ranks: OverRanks = alone) -> Loss:
    """The loss of that name, with its options.

    Args:
        name: a key of `LOSSES`.
        smoothing: one-sided label smoothing (Salimans et al. 2016, section 3.4): the
            discriminator's target for real samples is 1 − `smoothing`, that for generated ones
            stays. Of minimax, non_saturating and least_squares.
        over_ranks: of relativistic_average.

    Raises:
        ValueError: there is no such loss, or it has no labels to smooth, or `smoothing` is not in
            [0, 1).
    """
    if name not in LOSSES:
        close = difflib.get_close_matches(name, LOSSES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"there is no loss {name!r}; {hint}choose from {', '.join(LOSSES)}")
    loss = LOSSES[name]
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is {smoothing}; it must be at least 0 and below 1")
    if smoothing and not loss.has_labels:
        able = ", ".join(key for key, value in LOSSES.items() if value.has_labels)
        raise ValueError(
            f"smoothing is {smoothing}, but the loss {name!r} has no labels to smooth: leave it at "
            f"0 or choose from {able}"
        )
    if smoothing:
        loss = replace(loss, discriminator=partial(loss.discriminator, label=1.0 - smoothing))
    if loss.needs_mean:
        loss = replace(
            loss,
            discriminator=partial(loss.discriminator, over_ranks=over_ranks),
            generator=partial(loss.generator, over_ranks=over_ranks),
        )
    return loss


def check_logits(loss: str, logits: Tensor, samples: int) -> None:
    """Raise `ValueError` unless `logits` is what the losses take of that many samples."""
    if not logits.is_floating_point() or logits.shape[:1] != (samples,):
        raise ValueError(
            f"the discriminator gives {logits.dtype} of shape {tuple(logits.shape)} for {samples} "
            f"samples; the loss {loss!r} takes floating point logits [N], or [N, ...] of patches"
        )


def feature_matching(real: Tensor, fake: Tensor, over_ranks: OverRanks = alone) -> Tensor:
    """‖E f(x) − E f(G(z))‖², of features `[N, ...]` of the discriminator.

    Salimans et al. 2016, section 3.1: what the generator minimises in place of its adversarial
    loss. The means are over the global batch.
    """
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(
            f"features of real samples are {tuple(real.shape[1:])}, of generated ones "
            f"{tuple(fake.shape[1:])}: they must be of the same layer"
        )
    difference = over_ranks(real.flatten(1).mean(0) - fake.flatten(1).mean(0))
    return difference.square().sum()


def _average(values: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return values.mean()
    return (values * weights.view(-1, *[1] * (values.ndim - 1))).mean()


def _minimax_discriminator(real: Tensor, fake: Tensor, label: float = 1.0) -> Tensor:
    # −label · log σ(r) − (1 − label) · log(1 − σ(r)), with softplus(r) = softplus(−r) + r.
    return (F.softplus(-real) + (1 - label) * real).mean() + F.softplus(fake).mean()


def _minimax_generator(real: Tensor, fake: Tensor, weights: Tensor | None = None) -> Tensor:
    return -_average(F.softplus(fake), weights)


def _non_saturating_generator(real: Tensor, fake: Tensor, weights: Tensor | None = None) -> Tensor:
    return _average(F.softplus(-fake), weights)


def _least_squares_discriminator(real: Tensor, fake: Tensor, label: float = 1.0) -> Tensor:
    return 0.5 * (real - label).square().mean() + 0.5 * fake.square().mean()


def _least_squares_generator(real: Tensor, fake: Tensor, weights: Tensor | None = None) -> Tensor:
    return 0.5 * _average((fake - 1).square(), weights)


def _hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def _wasserstein_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return fake.mean() - real.mean()


def _critic_generator(real: Tensor, fake: Tensor, weights: Tensor | None = None) -> Tensor:
    return -_average(fake, weights)


def _relativistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(fake - _paired(real, fake)).mean()


def _relativistic_generator(real: Tensor, fake: Tensor, weights: Tensor | None = None) -> Tensor:
    return _average(F.softplus(_paired(real, fake) - fake), weights)


def _paired(real: Tensor, fake: Tensor) -> Tensor:
    if real.shape != fake.shape:
        raise ValueError(
            f"real logits are {tuple(real.shape)}, fake ones {tuple(fake.shape)}: this loss judges "
            "each real sample against one fake sample"
        )
    return real


def _average_discriminator(real: Tensor, fake: Tensor, over_ranks: OverRanks = alone) -> Tensor:
    return (
        F.softplus(over_ranks(fake.mean()) - real).mean()
        + F.softplus(fake - over_ranks(real.mean())).mean()
    )


def _average_generator(real: Tensor, fake: Tensor, over_ranks: OverRanks = alone) -> Tensor:
    return (
        F.softplus(over_ranks(real.mean()) - fake).mean()
        + F.softplus(real - over_ranks(fake.mean())).mean()
    )


LOSSES: dict[str, Loss] = {
    "minimax": Loss(_minimax_discriminator, _minimax_generator, has_labels=True),
    "non_saturating": Loss(_minimax_discriminator, _non_saturating_generator, has_labels=True),
    "least_squares": Loss(_least_squares_discriminator, _least_squares_generator, has_labels=True),
    "hinge": Loss(_hinge_discriminator, _critic_generator),
    "wasserstein": Loss(_wasserstein_discriminator, _critic_generator),
    "relativistic": Loss(
        _relativistic_discriminator, _relativistic_generator, generator_sees_real=True
    ),
    "relativistic_average": Loss(
        _average_discriminator, _average_generator, generator_sees_real=True, needs_mean=True
    ),
}
"""By name; the module's docstring has each one's paper and equation."""
