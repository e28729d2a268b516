"""The sections of a recipe that say what is played: losses, penalties and what else is added.

As `dgan.config`, to which they belong: no torch here.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from dgan.schedule import Cosine, constant

Loss = Literal[
    "minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "relativistic",
    "relativistic_average",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a batch means to the players."""

    name: str = "synthesis"
    """`synthesis` (samples from noise, with or without a class), `paired` (pix2pix), `unpaired`
    (CycleGAN), or the import path of a class, `mypackage.tasks:MyTask` (`dgan.tasks.task`): of
    what is said here, in `translation`, `penalty`, `regularizers`, `augment` and `balance`, one of
    your own is given `options` alone."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of a class of your own."""
    loss: Loss = "relativistic"
    smoothing: float = 0.0
    """Real samples' target is 1 − this (minimax, non_saturating, least_squares)."""
    generator: Literal["adversarial", "feature_matching"] = "adversarial"
    """What the generator minimises: its part of `loss`, or the distance of the mean features of
    real and generated samples in the discriminator, behind its last block but one."""
    latents: int = 1
    """So many samples for every real one in the generator's updates."""
    mismatch: float = 0.0
    """The share of what the discriminator learns to refuse that are real samples with the label or
    embedding of another one, instead of generated ones; ½ in GAN-CLS (Reed et al. 2016)."""


@dataclass(frozen=True, kw_only=True)
class Translation:
    """What tasks from image to image, `paired` and `unpaired`, add to the adversarial losses."""

    adversarial: float = 1.0
    """Weight of the generator's adversarial loss. The (D − 1)² of CycleGAN is 2: `least_squares`
    has the ½ of its own paper."""
    discriminator: float = 1.0
    """Weight of the discriminator's; pix2pix takes half of it, which is to slow it down."""
    l1: float = 100.0
    """paired: weight of mean |G(x) − y|, of images in [−1, 1]."""
    cycle: float = 10.0
    """unpaired: weight of mean |F(G(x)) − x| + mean |G(F(y)) − y|."""
    identity: float = 0.5
    """unpaired: weight of mean |G(y) − y| + mean |F(x) − x|, relative to `cycle`; 0: left out."""
    history: int = 50
    """unpaired: so many generated images of each domain are kept for the discriminator, which is
    shown one of them instead of a new one half of the time; 0: none."""


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """γ/2 · (‖∇D(real)‖² + ‖∇D(fake)‖²), or another; γ = 0 leaves it out."""

    gamma: Cosine = field(default_factory=lambda: constant(1.0))
    points: Literal["both", "real", "fake", "between", "around"] = "both"
    """Where: at real samples (R1), at fake ones (R2) or both; between them (WGAN-GP); around real
    ones (DRAGAN)."""
    kind: Literal["zero_centered", "one_centered"] = "zero_centered"
    """γ/2 ‖∇D‖², or γ (‖∇D‖ − 1)²."""
    one_sided: bool = False
    """one_centered: norms below 1 are not penalised."""
    augmented: bool = False
    """With respect to augmented samples; otherwise through the augmentation."""
    every: int = 1
    """Steps between penalties, each then so many times as strong (lazy regularisation)."""
    method: Literal["auto", "double", "forward", "difference"] = "auto"
    """How it is differentiated; all are exact but `difference`, see `dgan.gradient_penalty`."""
    keep_unsharded: bool = False
    """fsdp: keep weights gathered between the passes of `forward`: fewer gathers, more memory."""
    check: bool = True
    """Before the first step, compare its gradient with a finite difference; see `check_penalty`."""


@dataclass(frozen=True, kw_only=True)
class Regularizers:
    """Weights of what is added to the losses (`dgan.objectives.regularizers`); 0 leaves it out."""

    clip: float = 0.0
    """No addition: puts the discriminator's weights into [−clip, clip] after each update (WGAN)."""
    lecam: float = 0.0
    bcr: float = 0.0
    """Balanced consistency, under DiffAugment."""
    zcr: float = 0.0
    """Latent consistency: of the discriminator, when latents move by `zcr_noise`."""
    zcr_generator: float = 0.0
    """And how strongly the generator is to answer such a move."""
    zcr_noise: float = 0.07
    path_length: float = 0.0
    """Of StyleGAN2's generator (in w), or any other's (in z)."""
    path_length_every: int = 4
    """Steps between, each then so many times as strong."""
    top_k: float = 1.0
    """The generator learns from the best of its samples, in the end this fraction; 1: from all."""
    top_k_kimg: float = 50.0
    """Thousand images after which it learns from a hundredth fewer."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What samples go through before they are judged, real and generated ones alike."""

    kind: Literal["none", "diff", "ada", "scheduled"] = "none"
    """DiffAugment, the adaptive augmentation of StyleGAN2-ADA, or its transforms with a probability
    that follows a schedule."""
    target: float = 0.6
    """ada: adapts until the mean sign of real samples' logits is this."""
    kimg: float = 500.0
    """ada: thousand images from no augmentation to all of it."""
    probability: Cosine = field(default_factory=lambda: constant(0.0))
    """scheduled: of each transform falling on an image."""
    color: float = 1.0
    """ada, scheduled: that of each transform of colours, times the probability of the others."""
    cutout: float = 0.0
    """ada, scheduled: likewise that of a square of half the size becoming 0."""
    noise: Cosine = field(default_factory=lambda: constant(0.0))
    """Standard deviation of instance noise."""


@dataclass(frozen=True, kw_only=True)
class Balance:
    """An update ratio that adapts (`dgan.schedule.Band`), from that of `train` on.

    Steps differ in length then. Schedules, and thousand images wherever they are counted, go by
    the images of a step at the ratio of `train`.
    """

    by: Literal["none", "accuracy", "wasserstein"] = "none"
    """What is kept in the band: the discriminator's accuracy (of pairs), or the estimate of the
    Wasserstein distance, the mean logit of real samples over that of generated ones."""
    low: float = 0.6
    high: float = 0.9
    most: int = 4
    """Updates a step that the ratio may move by, either way."""


@dataclass(frozen=True, kw_only=True)
class Judges:
    """Further judges of the generator beside the discriminator, combined by one rule: a loss is the
    mean over the logits of all judges, so each counts the same."""

    scales: int = 1
    """So many judges like the discriminator, with weights of their own: for the images as they are,
    at half the resolution, a quarter, …"""
    extractor: str = ""
    """One more that sees features of this frozen network; as `--discriminator.options.extractor` of
    the family `projected`."""
    shadow_kimg: float = 0.0
    """Above 0: in the generator's updates, all of these also as moving averages of their weights,
    with this half-life in thousand images."""
