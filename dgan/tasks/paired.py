"""From an image to the one that belongs to it: pix2pix (Isola et al. 2017)."""

from typing import Any

import torch
from torch import Tensor, nn

from dgan.draws import Draws
from dgan.objectives.check import check_penalty
from dgan.objectives.losses import OverRanks, alone, loss_named
from dgan.tasks.added import Network, Terms
from dgan.tasks.balance import Balance
from dgan.tasks.penalty import Judge, Penalty, Side, side_by_side
from dgan.tasks.statistics import accuracy, moments
from dgan.tasks.task import Task


class Paired(Task):
    """A conditional game whose condition is an image, and the distance to the target.

    The generator is called with source images and latents, its noise; the discriminator with images
    and the sources that they go with. The discriminator minimises `halving` times its part of
    `loss`, plus the penalty with respect to the image alone; the generator `adversarial` times its
    part plus λ E ‖y − G(x, z)‖₁ (equation 4 there), the norm being a mean over pixels.

    Args:
        loss: a key of `objectives.losses.LOSSES`.
        smoothing: see `loss_named`.
        source: which entry of a batch is translated, `a` or `b`; the other is the target.
        z_dim: size of the latents; 0 is allowed.
        l1: λ.
        adversarial: weight of the generator's adversarial loss; 0: the distance alone teaches it.
        halving: weight of the discriminator's. Published is ½ of both terms' sum, "which slows down
            the rate at which D learns relative to G" (section 3.3). Adam undoes such a factor but
            for its ε, and a penalty then weighs twice as much.
        penalty: on the discriminator's gradient.
        separate: judge real and fake images in calls of their own; see `Synthesis`.
        balance: of both players' updates.
        over_ranks: of losses with a mean over the global batch within.
    """

    def __init__(
        self,
        *,
        loss: str,
        smoothing: float = 0.0,
        source: str,
        z_dim: int,
        l1: float,
        adversarial: float = 1.0,
        halving: float = 1.0,
        penalty: Penalty,
        separate: bool,
        balance: Balance | None = None,
        over_ranks: OverRanks = alone,
    ) -> None:
        self.loss = loss_named(loss, smoothing=smoothing, over_ranks=over_ranks)
        self.source, self.target = source, "b" if source == "a" else "a"
        self.z_dim, self.l1 = z_dim, l1
        self.adversarial, self.halving = adversarial, halving
        self.penalty, self.separate = penalty, separate
        self.balance = balance or Balance()
        self.memory = self.balance.memory
        self.differentiates_twice = penalty.differentiates_twice

    def check(self, discriminator: Network, batch: dict[str, Any]) -> float | None:
        """As `Synthesis.check`, on real pairs."""
        if not self.penalty.has_exact_gradient:
            return None
        return check_penalty(
            discriminator, batch[self.target], batch[self.source], kind=self.penalty.kind,
            one_sided=self.penalty.one_sided, method=self.penalty.method,
            backend=self.penalty.backend,
        )  # fmt: skip

    def discriminator_loss(
        self,
        discriminator: Network,
        generator: nn.Module,
        batch: dict[str, Any],
        draws: Draws,
        images_seen: int,
    ) -> Terms:
        """The adversarial loss and the penalty; `batch["a"]` and `["b"]` are `[N, C, H, W]`."""
        source, real = batch[self.source], batch[self.target]
        with torch.no_grad():
            fake = generator(source, draws.normal(self.z_dim)).to(real.dtype)

        def judge_of(side: Side) -> Judge:
            return self._judge(discriminator, side)

        terms: Terms = {}
        if weight := self.penalty.weight(draws.step, images_seen):
            penalty, logits, terms = self.penalty.take(judge_of, real, fake, source, draws)
            terms["penalty"] = weight * penalty
        else:
            logits = judge_of("both")(*side_by_side(real, fake, source))
        real_logits, fake_logits = logits.chunk(2)
        adversarial = self.halving * self.loss.discriminator(real_logits, fake_logits)
        return {
            "loss": adversarial + terms.get("penalty", 0.0),
            "adversarial": adversarial,
            "real_logits": real_logits.mean(),
            "fake_logits": fake_logits.mean(),
            "accuracy": accuracy(real_logits, fake_logits),
            "moments": torch.stack([moments(real), moments(fake)]),
            **terms,
        }

    def generator_loss(
        self,
        generator: Network,
        discriminator: nn.Module,
        batch: dict[str, Any],
        draws: Draws,
        images_seen: int,
    ) -> Terms:
        """The adversarial loss and the distance to the targets."""
        source, real = batch[self.source], batch[self.target]
        fake = generator(source, draws.normal(self.z_dim))
        distance = (fake - real).abs().mean()
        terms: Terms = {"loss": self.l1 * distance, "l1": distance}
        if self.adversarial:
            fake_logits = real_logits = discriminator(fake, source)
            if self.loss.generator_sees_real:
                with torch.no_grad():
                    real_logits = discriminator(real, source)
            terms["adversarial"] = self.loss.generator(real_logits, fake_logits)
            terms["loss"] = terms["loss"] + self.adversarial * terms["adversarial"]
        return terms

    def _judge(self, discriminator: Network, side: Side) -> Judge:
        def judge(x: Tensor, source: Tensor | None) -> Tensor:
            assert source is not None, "every image has its source"
            if side != "both" or not self.separate:
                return discriminator(x, source)
            halves = zip(x.chunk(2), source.chunk(2))
            return torch.cat([discriminator(*half) for half in halves])

        return judge
