"""Recipes for machines without a GPU."""

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
from dgan.recipes.r3gan import r3gan_player
from dgan.schedule import Cosine, constant


def digits() -> Recipe:
    """Handwritten digits at 8×8, a small class-conditional R3GAN.

    Data: `dgan data pack digits data/digits` (1,797 images that come with scikit-learn).
    Cost: under 3 minutes in 2 processes on two CPU cores, evaluation included.
    Score: FID 225 before, 10 after (features of a classifier of the same data, 2,000 samples), all
    ten digits covered, 98 % recognised as the digit asked for.
    """
    shape = {"widths": (64, 48), "blocks": (1, 1), "groups": (8, 6)}
    length = 900 * 64 / 1000
    player = r3gan_player(shape, Cosine(start=1e-3, end=1e-4, kimg=length))
    return Recipe(
        name="digits",
        data=Data(shards="data/digits/train-*.tar", resolution=8, channels=1, classes=10),
        generator=replace(player, options={"z_dim": 32, **shape}),
        discriminator=player,
        train=Train(steps=900, batch_size=64, log_every=50),
        # So small a discriminator may stay gathered, and differentiating twice is then cheaper.
        penalty=Penalty(gamma=Cosine(start=1.0, end=0.1, kimg=length), method="double"),
        average=Average(half_life_kimg=Cosine(start=0.0, end=5.0, kimg=length)),
        checkpoint=Checkpoint(every=400),
        samples=Samples(every=200, count=100),
        evaluation=Evaluation(samples=2000),
    )


def digits_stylegan2() -> Recipe:
    """Handwritten digits at 8×8, a small class-conditional StyleGAN2 (Karras et al. 2020).

    Data: `dgan data pack digits data/digits` (1,797 images that come with scikit-learn).
    Cost: under 4 minutes on one CPU core beside other work, evaluation included.
    Score: FID 915 before, 23 after (features of a classifier of the same data, 2,000 samples), all
    ten digits covered, 94 % recognised as the digit asked for.
    """
    length = 900 * 64 / 1000
    widths = (64, 32)
    player = Player(
        network="stylegan2",
        options={"widths": widths},
        learning_rate=Cosine(start=2e-3, end=5e-4, kimg=length),
    )
    mapping = {"z_dim": 32, "w_dim": 64, "mapping_layers": 4}
    return replace(
        digits(),
        name="digits-stylegan2",
        generator=replace(player, options={**mapping, "widths": widths}),
        discriminator=player,
        task=Task(loss="non_saturating"),
        penalty=Penalty(gamma=constant(0.5), every=4, method="double"),
    )


def mnist() -> Recipe:
    """MNIST at 32×32, a narrow class-conditional R3GAN for a machine without a GPU.

    Data: `dgan data pack FOLDER data/mnist --resolution 32 --channels 1 --fit pad`, FOLDER being
    the one with MNIST's idx files. To choose a model on images that are neither trained on nor
    reported on, add `--split-by-hash 95/5/0`, pack again with `--split test`, train with
    `--evaluation.shards 'data/mnist/validation-*.tar'`, and get the one number that is reported
    from `dgan evaluate runs/mnist --step best --shards 'data/mnist/test-*.tar'`.
    Cost: 30 minutes on one CPU core beside other work, scored nine times.
    Score: FID 401 before, 23 after, 18 at best (features of a classifier that is right on 99.1 % of
    held-out images, 10,000 samples).
    """
    shape = {"widths": (96, 64, 32, 16), "blocks": (1, 1, 1, 1), "groups": (12, 8, 4, 2)}
    length = 1600 * 64 / 1000
    player = r3gan_player(shape, Cosine(start=1e-3, end=1e-4, kimg=length))
    return Recipe(
        name="mnist",
        data=Data(shards="data/mnist/train-*.tar", resolution=32, channels=1, classes=10),
        generator=replace(player, options={"z_dim": 64, **shape}),
        discriminator=player,
        train=Train(steps=1600, batch_size=64, log_every=20),
        penalty=Penalty(gamma=Cosine(start=1.0, end=0.1, kimg=length)),
        average=Average(half_life_kimg=Cosine(start=0.0, end=5.0, kimg=length)),
        checkpoint=Checkpoint(every=400),
        samples=Samples(every=200, count=100),
        evaluation=Evaluation(every=200, samples=10_000),
    )


def fashion_mnist() -> Recipe:
    """Fashion-MNIST at 32×32, as the recipe `mnist` in everything but the data.

    Data: `dgan data pack FOLDER data/fashion-mnist --resolution 32 --channels 1 --fit pad
    --split-by-hash 95/5/0`, and again with `--split test`. The best checkpoint is chosen on the
    validation split; the number to report: `dgan evaluate runs/fashion-mnist --step best --shards
    'data/fashion-mnist/test-*.tar'`.
    Cost: that of `mnist`, 30 minutes on one CPU core beside other work; not run.
    Score: not run.
    """
    recipe = mnist()
    folder = "data/fashion-mnist"
    return replace(
        recipe,
        name="fashion-mnist",
        data=replace(recipe.data, shards=f"{folder}/train-*.tar"),
        evaluation=replace(recipe.evaluation, shards=f"{folder}/validation-*.tar"),
    )


def stacked_mnist() -> Recipe:
    """Stacked MNIST at 32×32, a thousand classes: DCGAN's networks, relativistic loss, R1 + R2.

    Data: MNIST, packed as for `mnist`; and a classifier of its digits, which a run of the recipe
    `mnist` leaves in `runs/mnist` (`python benchmarks/training/stacked_mnist.py` trains one and
    measures it on the test split).
    Cost: 8,000 steps of 64 images, about 16 minutes of one CPU core.
    Score: after 22,578 steps, 45 minutes, 1,000 modes and KL 0.033. Published: 1,000 modes and KL
    0.078 with other networks (Huang et al. 2024); DCGAN 78.9 to 99 modes and KL 3.4 to 4.5
    (Srivastava et al. 2017, Lin et al. 2018).
    """
    length = 8000 * 64 / 1000
    player = Player(
        network="dcgan",
        options={"widths": (128, 64, 32)},
        learning_rate=Cosine(start=5e-4, end=1e-4, kimg=length),
        beta2=Cosine(start=0.9, end=0.99, kimg=length),
    )
    return Recipe(
        name="stacked-mnist",
        data=Data(kind="stacked", shards="data/mnist/train-*.tar", resolution=32, channels=3),
        generator=replace(player, options={"z_dim": 100, **player.options}),
        # Penalties are of one sample, and batch normalisation couples them.
        discriminator=replace(player, options={**player.options, "norm": "layer"}),
        train=Train(steps=8000, batch_size=64, log_every=50),
        penalty=Penalty(gamma=Cosine(start=1.0, end=0.1, kimg=length), method="double"),
        average=Average(half_life_kimg=Cosine(start=0.0, end=5.0, kimg=length)),
        checkpoint=Checkpoint(every=1000, best="reverse_kl"),
        samples=Samples(every=500, count=100),
        evaluation=Evaluation(
            every=2000, samples=26_000, features="stacked:runs/mnist/classifier.safetensors"
        ),
    )
