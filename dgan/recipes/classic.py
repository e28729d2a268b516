"""What GANs were before: DCGAN, WGAN-GP, SNGAN and BigGAN, as published."""

import math
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
    Task,
    Train,
)
from dgan.schedule import Cosine, constant

NO_PENALTY = Penalty(gamma=constant(0.0))
NO_AVERAGE = Average(half_life_kimg=constant(0.0))


def lsun64_dcgan() -> Recipe:
    """LSUN bedrooms at 64×64, as published for DCGAN (Radford et al. 2016).

    Filters are 4×4, as in the authors' code for Torch, not 5×5 as in the paper's figure, and
    latents normal, not uniform.
    Data: `dgan data pack FOLDER data/lsun64 --resolution 64 --no-labels`, of the 3,033,042
    bedrooms.
    Cost: 118,478 steps of 128 images, five epochs. Generator 12.7 M parameters, discriminator
    11.0 M. Not run by us.
    Score: the paper has none. FID 70.4 with one learning rate for both, 57.5 with two (Heusel et
    al. 2017, table 1): add `--evaluation.every 10000 --evaluation.features inception:WEIGHTS`.
    """
    options = {"widths": (1024, 512, 256, 128)}
    player = Player(
        network="dcgan",
        options=options,
        learning_rate=constant(2e-4),
        beta1=0.5,
        beta2=constant(0.999),
    )
    return Recipe(
        name="lsun64-dcgan",
        data=Data(shards="data/lsun64/train-*.tar", resolution=64, channels=3),
        generator=replace(player, options={"z_dim": 100, **options}),
        discriminator=player,
        train=Train(steps=5 * 3_033_042 // 128, batch_size=128, log_every=50),
        task=Task(loss="non_saturating"),
        penalty=NO_PENALTY,
        average=NO_AVERAGE,
        checkpoint=Checkpoint(every=5000),
        samples=Samples(every=1000, count=64),
        evaluation=Evaluation(every=-1, samples=50_000),
    )


def cifar10_wgan_gp() -> Recipe:
    """CIFAR-10 at 32×32, unconditional, the residual WGAN-GP as published (Gulrajani et al. 2017).

    The learning rate falls to 0 along half a cosine, not a line; real pixels get no noise of less
    than a level.
    Data: `dgan data pack FOLDER data/cifar10`, FOLDER holding the original python batches.
    Cost: 100,000 steps, each of five batches of 64 for the critic and one of 128 for the generator.
    Generator 1.20 M parameters, critic 1.05 M. Not run by us.
    Score: published as Inception score 7.86. FID 29.3 with one learning rate for both networks
    (Heusel et al. 2017, table 1).
    """
    recipe = _cifar10("cifar10-wgan-gp", generator_width=128, steps=100_000)
    critic = {**recipe.discriminator.options, "spectral": False, "pool": "mean"}
    return replace(
        recipe,
        discriminator=replace(recipe.discriminator, options=critic),
        task=Task(loss="wasserstein", latents=2),
        penalty=Penalty(gamma=constant(10.0), points="between", kind="one_centered"),
    )


def cifar10_sngan() -> Recipe:
    """CIFAR-10 at 32×32, unconditional, the residual SNGAN as published (Miyato et al. 2018).

    As the authors' code has it, but that the learning rate falls to 0 along half a cosine, not a
    line, and real pixels get no noise of less than a level.
    Data: `dgan data pack FOLDER data/cifar10`, FOLDER holding the original python batches.
    Cost: 50,000 steps, each of five batches of 64 for the discriminator and one of 128 for the
    generator. Generator 4.28 M parameters, discriminator 1.05 M. Not run by us.
    Score: published as FID 21.7 and Inception score 8.22 (5,000 samples).
    """
    recipe = _cifar10("cifar10-sngan", generator_width=256, steps=50_000)
    return replace(recipe, task=Task(loss="hinge", latents=2), penalty=NO_PENALTY)


def imagenet128_biggan() -> Recipe:
    """ImageNet at 128×128, class-conditional, as published for BigGAN (Brock et al. 2019), ch = 96.

    Data: `dgan data pack ILSVRC2012_img_train.tar data/imagenet128 --resolution 128`.
    Cost: 165,000 steps, each of two batches of 2048 for the discriminator and one for the
    generator; published on 128 TPU v3 cores, and by the authors' PyTorch code on 8 V100 in 15 days
    (150,000 steps with one batch for the discriminator). Generator 70.4 M parameters, discriminator
    88.0 M. Not run by us.
    Score: published as FID 8.5 and Inception score 99.3 before collapse (table 1), and with
    truncation 7.4 and 166.5. Samples are drawn with the running mean and variance of batch
    normalisation, where the paper measures them anew.
    """
    options = {"widths": (1536, 1536, 768, 384, 192, 96), "attention": 64}
    player = Player(
        network="biggan",
        options=options,
        learning_rate=constant(2e-4),
        beta2=constant(0.999),
    )
    batch_size, updates = 2048, 2
    return Recipe(
        name="imagenet128-biggan",
        data=Data(shards="data/imagenet128/train-*.tar", resolution=128, channels=3, classes=1000),
        generator=replace(
            player,
            options={"z_dim": 120, "embedding_dim": 128, **options},
            learning_rate=constant(5e-5),
            orthogonal=1e-4,
        ),
        discriminator=player,
        train=Train(
            steps=165_000, batch_size=batch_size, discriminator_updates=updates, log_every=50
        ),
        task=Task(loss="hinge"),
        penalty=NO_PENALTY,
        average=Average(half_life_kimg=constant(_half_life(0.9999, batch_size * updates))),
        checkpoint=Checkpoint(every=1000),
        samples=Samples(every=1000, count=100),
        evaluation=Evaluation(every=5000, samples=50_000),
    )


def _cifar10(name: str, *, generator_width: int, steps: int) -> Recipe:
    """What the residual networks for CIFAR-10 have in common."""
    updates, batch_size = 5, 64
    images_kimg = steps * updates * batch_size / 1000
    player = Player(
        network="sngan",
        options={"widths": (128,) * 4, "smallest": 8},
        learning_rate=Cosine(start=2e-4, end=0.0, kimg=images_kimg),
        beta2=constant(0.9),
    )
    return Recipe(
        name=name,
        data=Data(shards="data/cifar10/train-*.tar", resolution=32, channels=3),
        generator=replace(player, options={"z_dim": 128, "widths": (generator_width,) * 4}),
        discriminator=player,
        train=Train(
            steps=steps, batch_size=batch_size, discriminator_updates=updates, log_every=50
        ),
        average=NO_AVERAGE,
        checkpoint=Checkpoint(every=5000),
        samples=Samples(every=1000, count=100),
        evaluation=Evaluation(every=5000, samples=50_000),
    )


def _half_life(decay: float, images: int) -> float:
    """In thousand images, of an average with this decay for each step of so many."""
    return images * math.log(0.5) / math.log(decay) / 1000
