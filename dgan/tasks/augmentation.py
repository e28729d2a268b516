"""What images go through before the discriminator judges them."""

from typing import Any, Literal

import torch
from torch import Tensor

from dgan.draws import Draws
from dgan.objectives.augment import (
    DIFF_AUGMENT_NUMBERS,
    adapted,
    diff_augment,
    instance_noise,
)
from dgan.objectives.augment_adaptive import ADAPTIVE_NUMBERS, adaptive_augment
from dgan.schedule import Cosine, constant

Kind = Literal["none", "diff", "ada", "scheduled"]


class Augmentation:
    """Augmentation and instance noise of both players' images, drawn for each sample by its row.

    Args:
        kind: `diff` (DiffAugment, Zhao et al. 2020), `ada` (adaptive, Karras et al. 2020,
            "Training GANs with limited data"), `scheduled` (ADA's transforms, their probability
            given) or `none`.
        target: of ADA, which adapts its probability until the mean sign of the real images' logits
            is this.
        kimg: of ADA, how many thousand images its probability takes from 0 to 1.
        probability: of `scheduled`, over images seen, as R3GAN has it (Huang et al. 2024).
        color: that of transforms of colours, times the probability of the others.
        cutout: likewise that of cutout.
        noise: standard deviation of instance noise (Sønderby et al. 2017), over images seen.
        backend: of ADA's resampling, as in `adaptive_augment`.

    Attributes:
        p: ADA's probability, a float64 scalar that is part of a checkpoint.
    """

    def __init__(
        self,
        *,
        kind: Kind = "none",
        target: float = 0.6,
        kimg: float = 500.0,
        probability: Cosine | None = None,
        color: float = 1.0,
        cutout: float = 0.0,
        noise: Cosine | None = None,
        device: torch.device | None = None,
        backend: str | None = None,
    ) -> None:
        self.backend = backend
        self.kind, self.target, self.kimg = kind, target, kimg
        self.probability = constant(0.0) if probability is None else probability
        self.color, self.cutout = color, cutout
        self.noise = constant(0.0) if noise is None else noise
        self.p = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def changes(self) -> bool:
        """Whether images are changed at all."""
        return self.kind != "none" or self.noise.start > 0 or self.noise.end > 0

    def draw(self, draws: Draws, shape: tuple[int, ...], images_seen: int) -> dict[str, Any]:
        """The numbers for as many images as `draws` has rows, each `[*shape]`; see `join`."""
        found: dict[str, Any] = {}
        if self.kind != "none":
            count = DIFF_AUGMENT_NUMBERS if self.kind == "diff" else ADAPTIVE_NUMBERS
            found["uniform"] = draws.uniform(count)
        if self.kind == "scheduled":
            found["p"] = self.probability.at(images_seen)
        if (scale := self.noise.at(images_seen)) > 0:
            found |= {"normal": draws.named("noise").noise(shape), "scale": scale}
        return found

    def apply(self, images: Tensor, numbers: dict[str, Any]) -> Tensor:
        """`images` `[N, C, H, W]`, changed as `numbers` say; differentiable to any order."""
        if self.kind == "diff":
            images = diff_augment(images, numbers["uniform"])
        elif self.kind != "none":
            images = adaptive_augment(
                images,
                numbers["uniform"],
                numbers.get("p", self.p),
                color=self.color,
                cutout=self.cutout,
                backend=self.backend,
            )
        if "normal" in numbers:
            images = instance_noise(images, numbers["normal"], numbers["scale"])
        return images

    def follow(self, sign: float, images: int) -> None:
        """Adapt ADA's probability, after so many images with this mean sign of real logits."""
        if self.kind == "ada":
            value = torch.tensor(sign, dtype=torch.float64, device=self.p.device)
            self.p.copy_(adapted(self.p, value, images, self.target, self.kimg))


def join(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The numbers of two batches that become one."""
    return {
        name: torch.cat([value, second[name]]) if isinstance(value, Tensor) else value
        for name, value in first.items()
    }
