"""Samples from noise, with or without a class."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dgan.draws import Draws
from dgan.objectives.check import check_penalty
from dgan.objectives.losses import OverRanks, alone, feature_matching, loss_named
from dgan.tasks.added import Added, Network, Regularizers, Round, Terms
from dgan.tasks.augmentation import Augmentation, join
from dgan.tasks.balance import Balance
from dgan.tasks.features import features_layer, features_of
from dgan.tasks.penalty import Judge, Penalty, Side, side_by_side
from dgan.tasks.statistics import accuracy, moments
from dgan.tasks.task import Task


class Synthesis(Task):
    """Both players' losses on a batch of real samples.

    Args:
        loss: a key of `objectives.losses.LOSSES`.
        penalty: on the discriminator's gradient.
        z_dim: size of the latents.
        condition: which entry of a batch both players are given beside samples and latents:
            `label`, or vectors in its place; empty: none.
        separate: judge real and fake samples in calls of their own, as a discriminator that
            couples the samples of a batch needs; otherwise one call judges both.
        smoothing: see `loss_named`.
        matches_features: the generator minimises the distance of the means of features instead of
            its part of the loss (`objectives.losses.feature_matching`).
        latents: samples of the generator's updates for every real one.
        mismatch: the share of generated samples' part of the discriminator's loss that is instead
            taken on real ones with the condition of their neighbour (`exchanged`). The third term
            of Reed et al. 2016 ("Generative adversarial text to image synthesis"), equation 4, of
            which the share is ½; here for any loss.
        augmentation: of all that is judged.
        penalise_augmented: take the penalty with respect to augmented samples; otherwise it goes
            through the augmentation, as in ADA and DiffAugment.
        regularizers: what is added.
        balance: of both players' updates.
        over_ranks: of losses with a mean over the global batch within.
        gather: the rows of all ranks, in order; for `top_k`.
        w_dim: size of the intermediate latents that the generator takes a shift of, if it does:
            path lengths are measured in them, else (0) in the latents.
        device: of `memory`.
        sample: which entry of a batch is the sample.

    Attributes:
        memory: running means and the like, float64 scalars by name: part of a checkpoint.
    """

    def __init__(
        self,
        *,
        loss: str,
        penalty: Penalty,
        z_dim: int,
        condition: str,
        separate: bool,
        smoothing: float = 0.0,
        matches_features: bool = False,
        latents: int = 1,
        mismatch: float = 0.0,
        augmentation: Augmentation | None = None,
        penalise_augmented: bool = False,
        regularizers: Regularizers | None = None,
        balance: Balance | None = None,
        over_ranks: OverRanks = alone,
        gather: OverRanks = alone,
        w_dim: int = 0,
        device: torch.device | None = None,
        sample: str = "image",
    ) -> None:
        self.loss = loss_named(loss, smoothing=smoothing, over_ranks=over_ranks)
        self.penalty, self.z_dim = penalty, z_dim
        self.condition, self.separate, self.mismatch = condition, separate, mismatch
        self.matches_features, self.latents, self.over_ranks = matches_features, latents, over_ranks
        self.augmentation = augmentation or Augmentation()
        self.penalise_augmented = penalise_augmented
        self.sample = sample
        self.added = Added(
            regularizers or Regularizers(), z_dim=z_dim, w_dim=w_dim, gather=gather,
            backend=penalty.backend, device=device,
        )  # fmt: skip
        self.balance = balance or Balance()
        self.differentiates_twice = penalty.differentiates_twice
        self.memory = {"p": self.augmentation.p, **self.added.memory, **self.balance.memory}

    def check(self, discriminator: Network, batch: dict[str, Any]) -> float | None:
        """The penalty's relative gradient error on real samples; None if no exact one is taken.

        Raises:
            ArithmeticError: it is too large; see `dgan.check_penalty`.
        """
        if not self.penalty.has_exact_gradient:
            return None
        return check_penalty(
            discriminator, batch[self.sample], self._labels(batch), kind=self.penalty.kind,
            one_sided=self.penalty.one_sided, method=self.penalty.method,
            backend=self.penalty.backend,
        )  # fmt: skip

    def after_discriminator(self, metrics: dict[str, float], images: int) -> None:
        """Let `memory` follow an update of the discriminator on so many real samples.

        `metrics` are its terms, over the global batch, by the names they have here.
        """
        self.augmentation.follow(metrics["real_signs"], images)
        self.added.after_discriminator(metrics)

    def after_generator(self, metrics: dict[str, float]) -> None:
        """Likewise after an update of the generator."""
        self.added.after_generator(metrics)

    def discriminator_loss(
        self,
        discriminator: Network,
        generator: nn.Module,
        batch: dict[str, Any],
        draws: Draws,
        images_seen: int,
    ) -> Terms:
        """The adversarial loss, the penalty and what else regularises.

        `batch["image"]` is `[N, C, H, W]` in [−1, 1], `batch["label"]` int64 `[N]`.
        """
        real, labels = batch[self.sample], self._labels(batch)
        z = draws.normal(self.z_dim)
        with torch.no_grad():
            fake = generator(z, labels).to(real.dtype)
        numbers = self._numbers({"real": draws, "fake": draws}, real, images_seen)
        statistics = torch.stack([moments(real), moments(fake)])
        played = Round(real, fake, z, labels, draws)
        if self.penalise_augmented:
            real = self.augmentation.apply(real, numbers["real"])
            fake = self.augmentation.apply(fake, numbers["fake"])
            numbers = {}

        def judge_of(side: Side) -> Judge:
            return self._judge(discriminator, side, numbers)

        if weight := self.penalty.weight(draws.step, images_seen):
            penalty, logits, extra = self.penalty.take(judge_of, real, fake, labels, draws)
            penalty = weight * penalty
            extra["penalty"] = penalty
        else:
            logits = judge_of("both")(*side_by_side(real, fake, labels))
            penalty, extra = 0.0, {}
        real_logits, fake_logits = logits.chunk(2)
        adversarial = self.loss.discriminator(real_logits, fake_logits)
        if self.mismatch and labels is not None:
            others = judge_of("real")(real, exchanged(labels))
            refused = self.loss.discriminator(real_logits, others)
            adversarial = torch.lerp(adversarial, refused, self.mismatch)
            extra["matched"] = accuracy(real_logits, others)
        more = self.added.to_discriminator(discriminator, generator, judge_of, played, logits)
        return {
            "loss": adversarial + penalty + sum(more.values()),
            "adversarial": adversarial,
            "real_logits": real_logits.mean(),
            "fake_logits": fake_logits.mean(),
            "real_signs": real_logits.sign().mean(),
            "accuracy": accuracy(real_logits, fake_logits),
            "moments": statistics,
            **extra,
            **more,
        }

    def generator_loss(
        self,
        generator: Network,
        discriminator: nn.Module,
        batch: dict[str, Any],
        draws: Draws,
        images_seen: int,
    ) -> Terms:
        """What the generator minimises, of `latents` generated samples for every real one."""
        real, labels = batch[self.sample], self._labels(batch)
        many = draws.several(self.latents)
        asked = None if labels is None else labels.repeat_interleave(self.latents, 0)
        z = many.normal(self.z_dim)
        fake = generator(z, asked)
        numbers = self._numbers({"real": draws, "fake": many}, real, images_seen)
        judge_real = partial(self._judge(discriminator, "real", numbers), real, labels)
        judge_fake = partial(self._judge(discriminator, "fake", numbers), fake, asked)
        if self.matches_features:
            layer = features_layer(discriminator)
            with torch.no_grad():
                wanted = features_of(layer, judge_real, len(real)).to(real.dtype)
            found = features_of(layer, judge_fake, len(fake)).to(real.dtype)
            loss = feature_matching(wanted, found, self.over_ranks)
        else:
            loss = self._adversarial(judge_real, judge_fake, many, images_seen)
        more, terms = self.added.to_generator(generator, Round(real, fake, z, asked, many))
        return {"loss": loss + more, **terms}

    def _adversarial(
        self,
        judge_real: Callable[[], Tensor],
        judge_fake: Callable[[], Tensor],
        draws: Draws,
        images_seen: int,
    ) -> Tensor:
        """The generator's loss against the discriminator; `draws` of the generated samples."""
        fake_logits = judge_fake()
        real_logits = fake_logits
        if self.loss.generator_sees_real:
            with torch.no_grad():
                real_logits = judge_real().repeat_interleave(self.latents, 0)
        weights = self.added.of_samples(fake_logits, draws, images_seen)
        return self.loss.generator(real_logits, fake_logits, **weights)

    def _labels(self, batch: dict[str, Any]) -> Tensor | None:
        return batch[self.condition] if self.condition else None

    def _numbers(
        self, draws: dict[str, Draws], real: Tensor, images_seen: int
    ) -> dict[str, dict[str, Any]]:
        """What happens to the samples of each side, drawn once: a penalty judges them twice."""
        if not self.augmentation.changes:
            return {}
        shape = tuple(real.shape[1:])
        found = {
            side: self.augmentation.draw(of_side.named(f"augment {side}"), shape, images_seen)
            for side, of_side in draws.items()
        }
        return {**found, "both": join(found["real"], found["fake"])}

    def _judge(
        self, discriminator: Network, side: Side, numbers: dict[str, dict[str, Any]]
    ) -> Judge:
        """The discriminator on samples of a side, augmented."""

        def judge(x: Tensor, labels: Tensor | None) -> Tensor:
            if side in numbers:
                x = self.augmentation.apply(x, numbers[side])
            if side != "both" or not self.separate:
                return discriminator(x, labels)
            # Two calls, joined: all forward passes come before any differentiation.
            halves = x.chunk(2)
            conditions = (None, None) if labels is None else labels.chunk(2)
            return torch.cat([discriminator(x, y) for x, y in zip(halves, conditions)])

        return judge


def exchanged(conditions: Tensor) -> Tensor:
    """`[N, ...]`, N even: rows 0 and 1 exchanged, 2 and 3, and so on.

    Neighbours stay together however a batch is divided into even parts: the loss is the same over
    any number of ranks and micro-batches. Two of the same class remain as they are.
    """
    return conditions.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
