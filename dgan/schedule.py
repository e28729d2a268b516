"""Values that change while a run goes on, as functions of the images it has seen."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine from `start` to `end` over the first `kimg` thousand images, then `end`.

    R3GAN (Huang et al. 2024, appendix D) moves the learning rate, Adam's β₂, γ and the EMA's
    half-life along one such curve. `kimg = 0` means: `end` from the first image on.
    """

    start: float
    end: float
    kimg: float = 0.0

    def at(self, images: int) -> float:
        """The value once `images` real images have been shown to the discriminator."""
        if images >= 1000 * self.kimg:
            return self.end
        fraction = images / (1000 * self.kimg)
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * fraction))


def constant(value: float) -> Cosine:
    """The schedule that does not move."""
    return Cosine(start=value, end=value)
