"""R3GAN as published (Huang et al. 2024, "The GAN is dead; long live the GAN!").

Learning rate, β₂, γ, the average's half-life and the probability of augmentation follow half a
cosine each, over the same images. Two things are not those of the authors' code: there a run has no
end, and the generator's updates see other real images than the discriminator's before them.
"""

from dataclasses import replace

from dgan.config import (
    Average,
    Checkpoint,
    Data,
    Evaluation,
    Penalty,
    Player,
    Recipe,
    Samples,
    Train,
)
from dgan.config_game import Augment
from dgan.schedule import Cosine


def r3gan_player(shape: dict[str, tuple[int, ...]], learning_rate: Cosine) -> Player:
    """Either player, with the paper's β₂ over the images that the learning rate falls over."""
    return Player(
        network="r3gan",
        options=dict(shape),
        learning_rate=learning_rate,
        beta2=Cosine(start=0.9, end=0.99, kimg=learning_rate.kimg),
    )


def cifar10_r3gan() -> Recipe:
    """CIFAR-10 at 32×32, class-conditional, as published for R3GAN (Huang et al. 2024).

    Data: `dgan data pack FOLDER data/cifar10`, FOLDER holding the original python batches.
    Cost: 390,625 steps of 512 images; the authors' command takes 8 GPUs and has no end.
    Generator 20.8 M parameters, discriminator 21.3 M. Not run by us at full size.
    Score: published as FID 1.96 (Inception, 50,000 samples). `--data.classes 0` is the
    unconditional one of the authors' code, 20.7 M parameters each.
    """
    return _published(
        "cifar10-r3gan",
        Data(shards="data/cifar10/train-*.tar", resolution=32, channels=3, classes=10, flip=True),
        _shape(768, 4),
        batch_size=512,
        million_images=200,
        decay_kimg=20_000.0,
        gamma=0.05,
        half_life_kimg=5000.0,
        augmented=0.55,
    )


def ffhq64_r3gan() -> Recipe:
    """FFHQ at 64×64, as published for R3GAN (Huang et al. 2024).

    Data: `dgan data pack FOLDER data/ffhq64 --resolution 64 --no-labels`, of the 70,000 aligned
    faces.
    Cost: 390,625 steps of 256 images; the authors' command takes 8 GPUs and has no end.
    22.4 M parameters each. Not run by us.
    Score: published as FID 1.95 (Inception, 50,000 samples): add `--evaluation.every 10000
    --evaluation.features inception:WEIGHTS`.
    """
    return _published(
        "ffhq64-r3gan",
        Data(shards="data/ffhq64/train-*.tar", resolution=64, channels=3, flip=True),
        _shape(768, 4, 384),
        batch_size=256,
        million_images=100,
        decay_kimg=20_000.0,
        gamma=2.0,
        half_life_kimg=500.0,
        augmented=0.3,
    )


def ffhq256_r3gan() -> Recipe:
    """FFHQ at 256×256, as published for R3GAN (Huang et al. 2024).

    Data: `dgan data pack FOLDER data/ffhq256 --resolution 256 --no-labels`, of the 70,000 aligned
    faces.
    Cost: 390,625 steps of 256 images; the authors' command takes 8 GPUs and has no end.
    Generator 23.06 M parameters, discriminator 23.01 M. Not run by us.
    Score: published as FID 2.75 (Inception, 50,000 samples): add `--evaluation.every 10000
    --evaluation.features inception:WEIGHTS`.
    """
    return _published(
        "ffhq256-r3gan",
        Data(shards="data/ffhq256/train-*.tar", resolution=256, channels=3, flip=True),
        _shape(768, 4, 384, 192, 96),
        batch_size=256,
        million_images=100,
        decay_kimg=20_000.0,
        gamma=150.0,
        half_life_kimg=500.0,
        augmented=0.3,
    )


def imagenet32_r3gan() -> Recipe:
    """ImageNet at 32×32, class-conditional, as published for R3GAN (Huang et al. 2024).

    Data: `dgan data pack ILSVRC2012_img_train.tar data/imagenet32 --resolution 32`.
    Cost: 244,140 steps of 4096 images; the authors' command takes 32 GPUs and has no end.
    Generator 82.9 M parameters (82.8 M without what classes add), discriminator 86.5 M. Not run by
    us.
    Score: published as FID 1.27 (Inception, 50,000 samples).
    """
    return _published(
        "imagenet32-r3gan",
        _imagenet(32),
        _shape(1536, 4),
        batch_size=4096,
        million_images=1000,
        decay_kimg=200_000.0,
        gamma=0.5,
        half_life_kimg=50_000.0,
        augmented=0.5,
    )


def imagenet64_r3gan() -> Recipe:
    """ImageNet at 64×64, class-conditional, as published for R3GAN (Huang et al. 2024).

    Data: `dgan data pack ILSVRC2012_img_train.tar data/imagenet64 --resolution 64`.
    Cost: 244,140 steps of 4096 images; the authors' command takes 64 GPUs and has no end.
    Generator 103.6 M parameters (103.4 M without what classes add), discriminator 107.2 M. Not run
    by us.
    Score: published as FID 2.09 (Inception, 50,000 samples).
    """
    return _published(
        "imagenet64-r3gan",
        _imagenet(64),
        _shape(1536, 5),
        batch_size=4096,
        million_images=1000,
        decay_kimg=200_000.0,
        gamma=1.0,
        half_life_kimg=50_000.0,
        augmented=0.4,
    )


def _imagenet(resolution: int) -> Data:
    shards = f"data/imagenet{resolution}/train-*.tar"
    return Data(shards=shards, resolution=resolution, channels=3, classes=1000, flip=True)


def _shape(width: int, count: int, *narrower: int) -> dict[str, tuple[int, ...]]:
    """`count` stages of one width, in 96 groups, from 4×4 up, and narrower ones in fewer groups."""
    widths = (width,) * count + narrower
    groups = tuple(96 * each // width for each in widths)
    return {"widths": widths, "blocks": (2,) * len(widths), "groups": groups}


def _published(
    name: str,
    data: Data,
    shape: dict[str, tuple[int, ...]],
    *,
    batch_size: int,
    million_images: int,
    decay_kimg: float,
    gamma: float,
    half_life_kimg: float,
    augmented: float,
) -> Recipe:
    """What all published runs have in common; γ falls from `gamma` to a tenth of it."""
    player = r3gan_player(shape, Cosine(start=2e-4, end=5e-5, kimg=decay_kimg))
    return Recipe(
        name=name,
        data=data,
        generator=replace(player, options={"z_dim": 64, **shape}),
        discriminator=player,
        train=Train(
            steps=million_images * 1_000_000 // batch_size, batch_size=batch_size, log_every=50
        ),
        penalty=Penalty(gamma=Cosine(start=gamma, end=gamma / 10, kimg=decay_kimg)),
        augment=Augment(
            kind="scheduled",
            probability=Cosine(start=0.0, end=augmented, kimg=decay_kimg),
            color=0.5,
            cutout=1.0,
        ),
        average=Average(half_life_kimg=Cosine(start=0.0, end=half_life_kimg, kimg=decay_kimg)),
        checkpoint=Checkpoint(every=5000),
        samples=Samples(every=1000, count=100),
        # A classifier to score by learns from labels, which not all data have.
        evaluation=Evaluation(every=10_000 if data.classes else -1, samples=50_000),
    )
