"""Recipes from image to image: pix2pix and CycleGAN on the CMP facades."""

from dataclasses import replace

from dgan.config import (
    Average,
    Checkpoint,
    Data,
    Divergence,
    Evaluation,
    Penalty,
    Player,
    Recipe,
    Samples,
    Task,
    Train,
    Translation,
)
from dgan.schedule import Cosine, constant

NO_PENALTY = Penalty(gamma=constant(0.0))

OF_TRANSLATION = Divergence(accuracy=0.0)
"""A discriminator that tells all pairs apart is no alarm: the distance to the target, or the cycle,
goes on teaching the generator."""


def facades_pix2pix() -> Recipe:
    """Facades from label maps at 256×256, as published for pix2pix (Isola et al. 2017).

    Data: the side-by-side images of `facades.tar.gz` (photo left, labels right; 400, 100 and 106 of
    them): `dgan data pack facades/train data/facades --pairs side-by-side --resolution 256`, and
    again with `facades/val --split validation`, by which the best checkpoint is chosen, and
    `facades/test --split test`.
    Cost: 200 epochs, 80,000 steps of one image; hours on one GPU. Not run by us.
    Score: published are none for this split (per-pixel accuracy is of Cityscapes). The learning
    rate is constant, as in the paper; its published code lets it fall to 0 over the last half.
    """
    player = Player(network="unet", learning_rate=constant(2e-4), beta1=0.5, beta2=constant(0.999))
    return Recipe(
        name="facades-pix2pix",
        data=Data(
            kind="pairs",
            shards="data/facades/train-*.tar",
            source="b",
            resolution=256,
            flip=True,
            crop="random",
            resize=286,
        ),
        generator=replace(player, options={"width": 64, "norm": "instance", "dropout": 0.5}),
        discriminator=replace(player, network="patch", options={"width": 64}),
        train=Train(steps=200 * 400, batch_size=1, log_every=100),
        task=Task(name="paired", loss="non_saturating"),
        translation=Translation(l1=100.0, discriminator=0.5),
        penalty=NO_PENALTY,
        average=Average(half_life_kimg=constant(0.0)),
        checkpoint=Checkpoint(every=4000, best="l1"),
        divergence=OF_TRANSLATION,
        samples=Samples(every=2000, count=8),
        evaluation=Evaluation(every=4000, shards="data/facades/validation-*.tar"),
    )


def facades_pix2pix_128() -> Recipe:
    """Facades from label maps at 128×128, a pix2pix half as wide for a machine without a GPU.

    Data: that of `facades-pix2pix`, resized as it is read.
    Cost: 3,000 steps of four images, 12 minutes of one CPU core.
    Score: after 6,886 steps L1 is 0.350 on the test split (untrained 0.413; L1 alone 0.331) and the
    FID of patches 25 (406; L1 alone 161), `python benchmarks/training/translation.py --minutes 26`.
    """
    recipe, length = facades_pix2pix(), 3000 * 4 / 1000
    rate = Cosine(start=4e-4, end=4e-5, kimg=length)
    return replace(
        recipe,
        name="facades-pix2pix-128",
        data=replace(recipe.data, resolution=128, resize=143),
        generator=replace(
            recipe.generator, learning_rate=rate, options={"width": 32, "dropout": 0.5}
        ),
        discriminator=replace(
            recipe.discriminator,
            learning_rate=rate,
            options={"width": 32, "receptive_field": 34},
        ),
        train=Train(steps=3000, batch_size=4, log_every=20),
        average=Average(half_life_kimg=constant(0.4)),
        checkpoint=Checkpoint(every=500, best="l1"),
        samples=Samples(every=250, count=8),
        evaluation=Evaluation(every=500, shards="data/facades/validation-*.tar"),
    )


def facades_cyclegan_64() -> Recipe:
    """Facades and label maps at 64×64 as two unpaired sets, a narrow CycleGAN (Zhu et al. 2017).

    Data: that of `facades-pix2pix`, resized as it is read; each half is shuffled by itself.
    Cost: 4,000 steps of two images of each kind, 25 minutes of one CPU core.
    Score: after 4,184 steps the error of the cycle is 0.153 on the test split (untrained 0.652) and
    the FID of patches 22 (255), `python benchmarks/training/translation.py --minutes 26`. Losses
    and weights are those published; resolution, widths, 6 residual blocks of 9 and the batch are
    smaller.
    """
    rate = Cosine(start=2e-4, end=2e-5, kimg=4000 * 2 / 1000)
    player = Player(network="resnet", learning_rate=rate, beta1=0.5, beta2=constant(0.999))
    return Recipe(
        name="facades-cyclegan-64",
        data=Data(
            kind="unpaired",
            shards="data/facades/train-*.tar",
            resolution=64,
            flip=True,
            crop="random",
            resize=72,
        ),
        generator=replace(player, options={"width": 32, "residual_blocks": 6}),
        discriminator=replace(
            player, network="patch", options={"width": 32, "receptive_field": 34}
        ),
        train=Train(steps=4000, batch_size=2, log_every=20),
        task=Task(name="unpaired", loss="least_squares"),
        translation=Translation(adversarial=2.0, cycle=10.0, identity=0.5, history=50),
        penalty=NO_PENALTY,
        average=Average(half_life_kimg=constant(0.4)),
        checkpoint=Checkpoint(every=500, best="cycle"),
        divergence=OF_TRANSLATION,
        samples=Samples(every=250, count=8),
        evaluation=Evaluation(every=500, shards="data/facades/validation-*.tar"),
    )
