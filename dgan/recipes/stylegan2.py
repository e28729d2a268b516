"""StyleGAN2-ADA as published (Karras et al. 2020, "Training GANs with limited data")."""

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
from dgan.config_game import Augment
from dgan.schedule import constant


def cifar10_stylegan2() -> Recipe:
    """CIFAR-10 at 32×32, unconditional, StyleGAN2-ADA as tuned for it (Karras et al. 2020).

    No style mixing, no path length regularisation, no residual connections in the discriminator,
    two layers of mapping, γ 0.01. R1 is in one update with the adversarial loss, sixteen times as
    strong every sixteenth time, where the authors take a step of its own: their correction of the
    discriminator's learning rate and β₂ falls away, and that of the generator's stays. ADA adapts
    after each batch, not each fourth.
    Data: `dgan data pack FOLDER data/cifar10`, FOLDER holding the original python batches.
    Cost: 1,562,500 steps of 64 images, published on 2 GPUs. Generator 19.9 M parameters,
    discriminator 20.7 M. Not run by us.
    Score: published as FID 2.92 and Inception score 9.83 (means of five runs, 50,000
    samples).
    """
    widths = (512,) * 4
    player = Player(network="stylegan2", options={"widths": widths})
    return Recipe(
        name="cifar10-stylegan2",
        data=Data(shards="data/cifar10/train-*.tar", resolution=32, channels=3),
        generator=replace(
            player,
            options={"z_dim": 512, "w_dim": 512, "mapping_layers": 2, "widths": widths},
            learning_rate=constant(2.5e-3 * 4 / 5),
            beta2=constant(0.99 ** (4 / 5)),
        ),
        discriminator=replace(
            player,
            options={"widths": widths, "group_size": 32, "residual": False},
            learning_rate=constant(2.5e-3),
        ),
        train=Train(steps=100_000_000 // 64, batch_size=64, log_every=100),
        task=Task(loss="non_saturating"),
        penalty=Penalty(gamma=constant(0.01), points="real", every=16),
        augment=Augment(kind="ada"),
        average=Average(half_life_kimg=constant(500.0), ramp=0.05),
        checkpoint=Checkpoint(every=20_000),
        samples=Samples(every=5000, count=100),
        evaluation=Evaluation(every=40_000, samples=50_000),
    )


def cifar10_stylegan2_conditional() -> Recipe:
    """CIFAR-10 at 32×32, class-conditional, StyleGAN2-ADA as tuned for it (Karras et al. 2020).

    As `cifar10-stylegan2`, and eight layers of mapping from a class to what it is projected on. The
    embeddings of classes have no bias, which is 512 parameters fewer in each network.
    Data: `dgan data pack FOLDER data/cifar10`, FOLDER holding the original python batches.
    Cost: 1,562,500 steps of 64 images, published on 2 GPUs. Generator 20.2 M parameters,
    discriminator 23.1 M. Not run by us.
    Score: published as FID 2.42 and Inception score 10.14 (means of five runs, 50,000
    samples).
    """
    recipe = cifar10_stylegan2()
    options = {**recipe.discriminator.options, "mapping_layers": 8}
    return replace(
        recipe,
        name="cifar10-stylegan2-conditional",
        data=replace(recipe.data, classes=10),
        discriminator=replace(recipe.discriminator, options=options),
    )
