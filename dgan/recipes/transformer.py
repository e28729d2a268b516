"""Transformers, for as many parameters as there are GPUs to hold them."""

from dataclasses import replace
from typing import Any

from dgan.config import (
    Average,
    Checkpoint,
    Data,
    Evaluation,
    Parallel,
    Penalty,
    Player,
    Recipe,
    Samples,
    Train,
)
from dgan.schedule import Cosine

IMAGES = 1_281_167
"""Of ImageNet's training set."""


def imagenet256_transformer() -> Recipe:
    """ImageNet at 256×256 in an autoencoder's latents, class-conditional transformers of DiT-XL/2's
    size (Peebles and Xie 2023).

    R3GAN's loss, penalty and schedules (Huang et al. 2024), with a lower learning rate; not a
    published recipe. The closest that is, "Scalable GANs with transformers" (Hyun et al. 2025),
    supervises inner layers besides.
    Data: the latents of the 256×256 images in Stable Diffusion's autoencoder, times 0.18215, as
    float16 `[4, 32, 32]` in `CLASS/NAME.npy`: `dgan data pack FOLDER data/imagenet256-latents`. The
    autoencoder is not ours: encode with it before, and decode what `dgan.load_generator` makes.
    Cost: 75,068 steps of 1024 latents, 60 epochs. Generator 675 M parameters (as many as DiT-XL/2
    has), discriminator 448 M. Not run.
    Score: not run. Hyun et al. publish FID 2.96 after 40 epochs with networks of this size.
    """
    shape = {"width": 1152, "depth": 28, "heads": 16, "patch": 2}
    return _latents("imagenet256-transformer", shape, shape, learning_rate=1e-4)


def ten_billion() -> Recipe:
    """A discriminator of 10 billion parameters and a generator of 2.9 billion, to be planned.

    It exists to see what such a run takes: `imagenet256-transformer` with wider and deeper
    networks, recomputed blocks and a lower learning rate. Nobody has trained it.
    Data: as for `imagenet256-transformer`.
    Cost: 75,068 steps of 1024 latents; weights, gradients, Adam's moments and the average are
    218 GB in float32, over all GPUs together, before any activation.
    Score: not run.
    """
    generator = {"width": 2560, "depth": 24, "heads": 20, "patch": 2}
    discriminator = {"width": 5120, "depth": 32, "heads": 40, "patch": 2}
    recipe = _latents("10b", generator, discriminator, learning_rate=3e-5)
    return replace(recipe, parallel=Parallel(activation_checkpointing=True))


def _latents(
    name: str,
    generator: dict[str, Any],
    discriminator: dict[str, Any],
    *,
    learning_rate: float,
) -> Recipe:
    batch_size, images = 1024, 60 * IMAGES
    decay_kimg = images / 2000
    player = Player(
        network="transformer",
        options=discriminator,
        learning_rate=Cosine(start=learning_rate, end=learning_rate / 4, kimg=decay_kimg),
        beta2=Cosine(start=0.9, end=0.99, kimg=decay_kimg),
    )
    return Recipe(
        name=name,
        data=Data(
            kind="latents",
            shards="data/imagenet256-latents/train-*.tar",
            resolution=32,
            channels=4,
            classes=1000,
        ),
        generator=replace(player, options={"z_dim": 64, **generator}),
        discriminator=player,
        train=Train(steps=images // batch_size, batch_size=batch_size, log_every=50),
        penalty=Penalty(gamma=Cosine(start=1.0, end=0.1, kimg=decay_kimg)),
        average=Average(half_life_kimg=Cosine(start=0.0, end=10_000.0, kimg=decay_kimg)),
        checkpoint=Checkpoint(every=1000),
        samples=Samples(every=1000, count=100),
        evaluation=Evaluation(every=-1),
    )
