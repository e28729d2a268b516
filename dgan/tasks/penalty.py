"""Which gradient penalty a discriminator pays: what of, where, how strong, in which steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dgan.draws import Draws
from dgan.objectives.losses import OverRanks, alone
from dgan.objectives.penalties import Kind, Method, gradient_penalty
from dgan.objectives.points import around, between, spread_of
from dgan.schedule import Cosine

Judge = Callable[[Tensor, Tensor | None], Tensor]
Points = Literal["both", "real", "fake", "between", "around"]
Side = Literal["both", "real", "fake", "points"]


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """γ times a gradient penalty.

    Attributes:
        gamma: γ, over images seen.
        points: `real` samples (R1), `fake` ones (R2) or `both` (their sum), Mescheder et al. 2018;
            `between` them (WGAN-GP, Gulrajani et al. 2017); `around` real ones (DRAGAN, Kodali et
            al. 2017).
        kind: `zero_centered`, ½ E ‖∇D‖², or `one_centered`, E (‖∇D‖ − 1)².
        one_sided: count norms above 1 alone; of `one_centered`.
        every: take it in the first of so many steps, so many times as strong (lazy regularisation,
            Karras et al. 2020, section 3.1). It stays in one update with the adversarial loss, so
            that the optimizer needs none of their corrections.
        method: as in `gradient_penalty`, like `keep_unsharded`.
        over_ranks: of DRAGAN, whose spread is that of the global batch.
        backend: of the kernels it takes, as in `gradient_penalty`.
    """

    gamma: Cosine
    points: Points = "both"
    kind: Kind = "zero_centered"
    one_sided: bool = False
    every: int = 1
    method: Method = "auto"
    keep_unsharded: bool = False
    over_ranks: OverRanks = alone
    backend: str | None = None

    @property
    def is_taken(self) -> bool:
        """Whether the discriminator is differentiated twice at any time of the run."""
        return self.gamma.start > 0 or self.gamma.end > 0

    @property
    def differentiates_twice(self) -> bool:
        """Whether autograd differentiates the discriminator twice, which sharding must know."""
        return self.is_taken and self.method == "double"

    @property
    def has_exact_gradient(self) -> bool:
        """Whether it is ever taken, and not by a central difference, which is an approximation."""
        return self.is_taken and self.method != "difference"

    def weight(self, step: int, images_seen: int) -> float:
        """What the penalty of this step (from 1) is multiplied by; 0: it is not taken."""
        due = (step - 1) % self.every == 0
        return self.every * self.gamma.at(images_seen) if due else 0.0

    def take(
        self,
        judge_of: Callable[[Side], Judge],
        real: Tensor,
        fake: Tensor,
        labels: Tensor | None,
        draws: Draws,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The penalty, before its weight.

        Args:
            judge_of: what judges samples of a side; `both` are real ones and then generated ones.
            real: `[N, ...]`, like `fake`; `labels` are those of either.
            draws: of this update, for points that are drawn.

        Returns:
            The penalty; the logits of the real samples and then of the generated ones,
            `[2 N, ...]`; and what is worth logging.
        """
        if self.points == "both":
            images, twice = side_by_side(real, fake, labels)
            penalty, logits, norms = self._of(judge_of("both"), images, twice)
            r1, r2 = norms.square().chunk(2)
            # The mean over both halves is half the sum of the halves' means.
            return 2.0 * penalty, logits, {"r1": r1.mean(), "r2": r2.mean()}
        if self.points == "real":
            penalty, logits, norms = self._of(judge_of("real"), real, labels)
            others = judge_of("fake")(fake, labels)
            return penalty, torch.cat([logits, others]), {"r1": norms.square().mean()}
        if self.points == "fake":
            penalty, logits, norms = self._of(judge_of("fake"), fake, labels)
            others = judge_of("real")(real, labels)
            return penalty, torch.cat([others, logits]), {"r2": norms.square().mean()}
        if self.points == "between":
            mix = draws.named("between").uniform(1)[:, 0]
            points = between(real, fake, mix, backend=self.backend)
        else:
            uniform = torch.special.ndtr(draws.named("around").noise(tuple(real.shape[1:])))
            points = around(real, uniform, spread_of(real, self.over_ranks))
        penalty, _, norms = self._of(judge_of("points"), points, labels)
        logits = judge_of("both")(*side_by_side(real, fake, labels))
        return penalty, logits, {"gradient": norms.mean()}

    def _of(self, judge: Judge, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        output = gradient_penalty(
            judge, x, labels, kind=self.kind, one_sided=self.one_sided, method=self.method,
            keep_unsharded=self.keep_unsharded, backend=self.backend,
        )  # fmt: skip
        return output.loss, output.logits, output.norms


def side_by_side(real: Tensor, fake: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both halves as one batch, with the labels of either."""
    return torch.cat([real, fake]), None if labels is None else torch.cat([labels, labels])
