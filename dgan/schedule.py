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


@dataclass(frozen=True, kw_only=True)
class Band:
    """An update ratio that adapts until some measure of the discriminator's lead is in a band.

    A running mean follows the measure from step to step. Where it leaves the band, the player that
    is ahead makes an update fewer in each step from then on or, where it makes one only, the other
    one more; and the mean begins again in the middle of the band, so that the next change comes
    only after the measure stayed outside for a while, the longer the nearer it is to the band.

    Attributes:
        low: below it, the discriminator is behind.
        high: above it, the discriminator is ahead.
        most: how many updates a step the ratio may move from where it began, either way.
        decay: of the running mean, for each step.
    """

    low: float
    high: float
    most: int = 4
    decay: float = 0.9

    @property
    def middle(self) -> float:
        """Where the mean begins."""
        return (self.low + self.high) / 2

    def follow(self, mean: float, lead: int, measure: float) -> tuple[float, int]:
        """The mean and the discriminator's additional updates after a step with this measure."""
        mean = self.decay * mean + (1 - self.decay) * measure
        if self.low <= mean <= self.high:
            return mean, lead
        lead += 1 if mean < self.low else -1
        return self.middle, max(-self.most, min(self.most, lead))


def shifted(discriminator: int, generator: int, lead: int) -> tuple[int, int]:
    """Both players' updates of a step when the discriminator makes `lead` more than it had.

    What is beyond the last update of one player becomes further ones of the other: neither stops.
    """
    more = discriminator + max(0, lead - (generator - 1)), max(1, generator - lead)
    fewer = max(1, discriminator + lead), generator + max(0, 1 - discriminator - lead)
    return more if lead > 0 else fewer


@dataclass(frozen=True, kw_only=True)
class Averaging:
    """How fast a moving average follows.

    Attributes:
        half_life_kimg: in thousand images, over images seen.
        ramp: the half-life is at most this times the images seen, see `ramped`; 0: no bound.
        width: of a power function average instead, relative to the run so far; 0: exponential.
    """

    half_life_kimg: Cosine
    ramp: float = 0.0
    width: float = 0.0

    def decay(self, seen: int, images: int) -> float:
        """Of a step of `images` images, after `seen` others."""
        if self.width:
            return power_decay(seen + images, images, power_exponent(self.width))
        half_life = 1000 * self.half_life_kimg.at(seen)
        if self.ramp:
            half_life = ramped(half_life, seen + images, self.ramp)
        return half_life_decay(half_life, images)


def ramped(half_life: float, images: float, ratio: float = 0.05) -> float:
    """A half-life of at most `ratio` times the images seen so far, which forgets the start sooner.

    The warm-up of StyleGAN2-ADA's moving average (Karras et al. 2020, "Training GANs with limited
    data", published code).

    Raises:
        ValueError: `ratio` is not positive.
    """
    if not ratio > 0:
        raise ValueError(f"the ratio of half-life to images seen is {ratio}; it must be positive")
    return min(half_life, ratio * images)


def half_life_decay(half_life: float, images: float) -> float:
    """The decay of a moving average over `images` images; both in the same unit. 0: no memory."""
    return 0.5 ** (images / half_life) if half_life > 0 else 0.0


def power_decay(seen: float, images: float, exponent: float) -> float:
    """The decay of a power function average: (1 − images/seen)^(γ + 1), γ being `exponent`.

    Karras et al. 2024 ("Analyzing and improving the training dynamics of diffusion models"),
    section 3.1: the average weighs the weights at time t in proportion to t^γ, over all of the
    run, so that its width grows with the run and the first weights are forgotten.

    Args:
        seen: images at the end of this step.
        images: of this step, of those.
        exponent: γ; see `power_exponent`.
    """
    return max(0.0, 1.0 - images / seen) ** (exponent + 1.0)


def power_exponent(width: float) -> float:
    """γ of the power function average whose standard deviation is `width` of the run's length.

    Karras et al. 2024, section 3.1: width² = (γ + 1)/((γ + 2)² (γ + 3)); 0.05 to 0.1 are usual.

    Raises:
        ValueError: `width` is not above 0 and at most √(1/12), the uniform average's.
    """
    if not 0 < width <= WIDEST:
        raise ValueError(
            f"the average's width is {width} of the run; it must be above 0 and at most "
            f"{WIDEST:.4f}, where all steps count the same"
        )
    low, high = 0.0, 1.0 / width  # the width falls as γ grows, and is below 1/(γ + 2)
    while (middle := (low + high) / 2) not in (low, high):
        wide = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > width**2
        low, high = (middle, high) if wide else (low, middle)
    return low


WIDEST = math.sqrt(1 / 12)
"""The relative width of a power function average with γ = 0."""
