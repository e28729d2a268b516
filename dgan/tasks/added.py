"""How strongly the players' losses are regularised."""

from dataclasses import dataclass


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
