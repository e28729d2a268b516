"""What is added to the players' losses, and the running means that it takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dgan.draws import Draws
from dgan.objectives import regularizers
from dgan.objectives.augment import DIFF_AUGMENT_NUMBERS, diff_augment
from dgan.objectives.losses import OverRanks, alone
from dgan.tasks.penalty import Judge, Side, side_by_side

Network = Callable[..., Any]
Terms = dict[str, Tensor]
"""A player's loss under `loss`, and what else is worth logging: scalars, and vectors of which
`statistics.scalars` makes such, all of them means over the batch."""


@dataclass(frozen=True, kw_only=True)
class Regularizers:
    """Weights of what is added to the losses, 0 where it is not; see `objectives.regularizers`.

    Attributes:
        lecam: of LeCam, with running means of the logits.
        bcr: of balanced consistency, under DiffAugment.
        zcr: of the discriminator's logits under a change of the latents by `zcr_noise`.
        zcr_generator: of the change of images, which the generator is to make large.
        zcr_noise: the standard deviation of that change.
        path_length: of the generator's path lengths, with their running mean.
        path_length_every: steps between, each then so many times as strong.
        top_k: the smallest fraction of a batch that the generator learns from, which it comes down
            to over the epochs (`regularizers.top_k` there); 1: all of it.
        top_k_kimg: thousand images of an epoch, for that.
    """

    lecam: float = 0.0
    bcr: float = 0.0
    zcr: float = 0.0
    zcr_generator: float = 0.0
    zcr_noise: float = 0.07
    path_length: float = 0.0
    path_length_every: int = 4
    top_k: float = 1.0
    top_k_kimg: float = 50.0


@dataclass(frozen=True)
class Round:
    """What one update of a player is about, before any augmentation."""

    real: Tensor
    fake: Tensor
    z: Tensor
    labels: Tensor | None
    draws: Draws


MEANS = ("lecam_real", "lecam_fake", "path_length")
"""Running means, which begin with 0."""


class Added:
    """The terms of `Regularizers`.

    Args:
        weights: of the terms.
        z_dim: size of the latents.
        w_dim: size of the intermediate latents that the generator takes a shift of, if it does:
            path lengths are measured in them, else (0) in the latents.
        gather: the rows of all ranks, in order; for `top_k`.
        backend: of the path length's pieces; see `dgan_kernels.squared_norm`.
        device: of `memory`.

    Attributes:
        memory: running means, float64 scalars by name: part of a checkpoint.
    """

    def __init__(
        self,
        weights: Regularizers,
        *,
        z_dim: int,
        w_dim: int = 0,
        gather: OverRanks = alone,
        backend: str | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.weights, self.z_dim, self.w_dim, self.gather = weights, z_dim, w_dim, gather
        self.backend = backend
        zero = torch.zeros((), dtype=torch.float64, device=device)
        self.memory = {name: zero.clone() for name in MEANS}

    def to_discriminator(
        self,
        discriminator: Network,
        generator: nn.Module,
        judge_of: Callable[[Side], Judge],
        played: Round,
        logits: Tensor,
    ) -> Terms:
        """What is added to the discriminator's loss, by name; `logits` are real ones, then fake."""
        terms: Terms = {}
        weights, draws = self.weights, played.draws
        real_logits, fake_logits = logits.chunk(2)
        if weights.lecam:
            averages = (self.memory[f"lecam_{side}"].to(logits.dtype) for side in ("real", "fake"))
            terms["lecam"] = weights.lecam * regularizers.lecam(real_logits, fake_logits, *averages)
        if weights.bcr:
            images, labels = side_by_side(played.real, played.fake, played.labels)
            uniform = [draws.named(f"bcr {n}").uniform(DIFF_AUGMENT_NUMBERS) for n in range(2)]
            changed = diff_augment(images, torch.cat(uniform))
            # The mean over both halves is half the sum of the halves' means.
            distance = regularizers.consistency(logits, discriminator(changed, labels))
            terms["bcr"] = 2.0 * weights.bcr * distance
        if weights.zcr:
            with torch.no_grad():
                near = generator(self._near(played), played.labels).to(logits.dtype)
            distance = regularizers.consistency(fake_logits, judge_of("fake")(near, played.labels))
            terms["zcr"] = weights.zcr * distance
        return terms

    def to_generator(self, generator: Network, played: Round) -> tuple[Tensor | float, Terms]:
        """What is added to the generator's loss, and what is logged of it."""
        terms: Terms = {}
        loss: Tensor | float = 0.0
        if weight := self.weights.zcr_generator:
            near = generator(self._near(played), played.labels)
            loss = terms["zcr"] = weight * regularizers.diversity(played.fake, near)
        every = self.weights.path_length_every
        if (weight := self.weights.path_length) and (played.draws.step - 1) % every == 0:
            output = self._path_length(generator, played)
            terms["path_length"] = output.norms.mean()
            loss = loss + every * weight * output.loss
        return loss, terms

    def of_samples(self, logits: Tensor, draws: Draws, images_seen: int) -> dict[str, Tensor]:
        """The `weights` of the generator's samples in its loss, if they do not all count alike."""
        if self.weights.top_k == 1:
            return {}
        everyone = self.gather(logits.detach())
        epochs = images_seen / (1000 * self.weights.top_k_kimg)
        k = regularizers.top_k(len(everyone), epochs, least=self.weights.top_k)
        chosen = regularizers.top_k_weights(everyone, k)
        return {"weights": chosen[draws.rows.start : draws.rows.stop]}

    def after_discriminator(self, metrics: dict[str, float]) -> None:
        """Let the means follow the terms of an update, which are those of the global batch."""
        if self.weights.lecam:
            for side in ("real", "fake"):
                self._advance(f"lecam_{side}", metrics[f"{side}_logits"])

    def after_generator(self, metrics: dict[str, float]) -> None:
        """Likewise."""
        if "path_length" in metrics:
            self._advance("path_length", metrics["path_length"])

    def _advance(self, name: str, value: float) -> None:
        average = self.memory[name]
        average.copy_(regularizers.advanced(average, torch.tensor(value)))

    def _near(self, played: Round) -> Tensor:
        noise = played.draws.named("zcr").normal(self.z_dim)
        return played.z + self.weights.zcr_noise * noise

    def _path_length(self, generator: Network, played: Round) -> regularizers.PenaltyOutput:
        z = played.z

        def shifted(shift: Tensor, labels: Tensor | None) -> Tensor:
            return generator(z, labels, shift)

        return regularizers.path_length(
            shifted if self.w_dim else generator,
            z.new_zeros(len(z), self.w_dim) if self.w_dim else z,
            played.labels,
            noise=played.draws.named("path length").noise(tuple(played.fake.shape[1:])),
            average=self.memory["path_length"],
            backend=self.backend,
        )
