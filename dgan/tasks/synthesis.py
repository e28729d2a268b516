"""Images from noise, with or without a class."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dgan.draws import Draws
from dgan.objectives.check import check_penalty
from dgan.objectives.losses import LOSSES
from dgan.objectives.penalties import Method, gradient_penalty
from dgan.schedule import Cosine

Network = Callable[..., Tensor]
Terms = dict[str, Tensor]
"""A player's loss under `loss`, and what else is worth logging; scalars, means over the batch."""


class Synthesis:
    """Both players' losses on a batch of real images.

    Args:
        loss: a key of `objectives.losses.LOSSES`.
        gamma: weight of the penalty γ/2 (‖∇D(real)‖² + ‖∇D(fake)‖²), over images seen.
        z_dim: size of the latents.
        conditional: whether both players are given the batch's labels.
        separate: judge real and fake samples in calls of their own, as a discriminator that
            couples the samples of a batch needs; otherwise one call judges both.
        method: of the penalty.
        every: take the penalty in the first of so many steps, so many times as strong (lazy
            regularisation, Karras et al. 2020, section 3.1). It stays in one update with the
            adversarial loss, so that the optimizer needs none of their corrections.
        keep_unsharded: see `gradient_penalty`.
    """

    def __init__(
        self,
        *,
        loss: str,
        gamma: Cosine,
        z_dim: int,
        conditional: bool,
        separate: bool,
        method: Method = "auto",
        every: int = 1,
        keep_unsharded: bool = False,
    ) -> None:
        self.loss = LOSSES[loss]
        self.gamma = gamma
        self.z_dim = z_dim
        self.conditional = conditional
        self.separate = separate
        self.method: Method = method
        self.every, self.keep_unsharded = every, keep_unsharded

    @property
    def has_penalty(self) -> bool:
        """Whether the discriminator is differentiated twice at any time of the run."""
        return self.gamma.start > 0 or self.gamma.end > 0

    def check(self, discriminator: Network, batch: dict[str, Any]) -> float | None:
        """The penalty's relative gradient error on real images; None if no exact one is taken.

        Raises:
            ArithmeticError: it is too large; see `dgan.check_penalty`.
        """
        # A central difference is an approximation, and said to be one.
        if not self.has_penalty or self.method == "difference":
            return None
        real, labels = batch["image"], self._labels(batch)
        return check_penalty(discriminator, real, labels, method=self.method)

    def discriminator_loss(
        self,
        discriminator: Network,
        generator: nn.Module,
        batch: dict[str, Any],
        draws: Draws,
        images_seen: int,
    ) -> Terms:
        """The adversarial loss and the penalty on real and generated images.

        `batch["image"]` is `[N, C, H, W]` in [−1, 1], `batch["label"]` int64 `[N]`.
        """
        real, labels = batch["image"], self._labels(batch)
        with torch.no_grad():
            fake = generator(draws.normal(self.z_dim), labels)
        images = torch.cat([real, fake.to(real.dtype)])
        both = None if labels is None else torch.cat([labels, labels])
        judge = self._judge_halves(discriminator) if self.separate else discriminator
        due = (draws.step - 1) % self.every == 0
        gamma = self.every * self.gamma.at(images_seen) if due else 0.0
        if gamma > 0:
            output = gradient_penalty(
                judge, images, both, method=self.method, keep_unsharded=self.keep_unsharded
            )
            logits = output.logits
            # The mean over both halves is half the sum of the halves' means: R1 + R2.
            penalty = 2.0 * gamma * output.loss
            real_norms, fake_norms = output.norms.chunk(2)
            extra = {
                "penalty": penalty,
                "r1": real_norms.square().mean(),
                "r2": fake_norms.square().mean(),
            }
        else:
            logits, penalty, extra = judge(images, both), 0.0, {}
        real_logits, fake_logits = logits.chunk(2)
        adversarial = self.loss.discriminator(real_logits, fake_logits)
        return {
            "loss": adversarial + penalty,
            "adversarial": adversarial,
            "real_logits": real_logits.mean(),
            "fake_logits": fake_logits.mean(),
            **extra,
        }

    def generator_loss(
        self,
        generator: Network,
        discriminator: nn.Module,
        batch: dict[str, Any],
        draws: Draws,
        images_seen: int,
    ) -> Terms:
        """The adversarial loss of generated images against the batch's real ones."""
        labels = self._labels(batch)
        fake = generator(draws.normal(self.z_dim), labels)
        fake_logits = discriminator(fake, labels)
        real_logits = fake_logits
        if self.loss.generator_sees_real:
            with torch.no_grad():
                real_logits = discriminator(batch["image"], labels)
        return {"loss": self.loss.generator(real_logits, fake_logits)}

    def _labels(self, batch: dict[str, Any]) -> Tensor | None:
        return batch["label"] if self.conditional else None

    @staticmethod
    def _judge_halves(discriminator: Network) -> Network:
        """Two calls, joined: all forward passes come before any differentiation."""

        def judge(images: Tensor, labels: Tensor | None) -> Tensor:
            halves = images.chunk(2)
            conditions = (None, None) if labels is None else labels.chunk(2)
            return torch.cat([discriminator(x, y) for x, y in zip(halves, conditions)])

        return judge
