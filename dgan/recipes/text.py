"""Recipes of text."""

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
)
from dgan.schedule import constant

ALPHABET = " abcdefghijklmnopqrstuvwxyz0123456789.,:;'\"()-_"


def characters_wgan_gp() -> Recipe:
    """Lines of text in lower case, a narrow character-level WGAN-GP (Gulrajani et al. 2017).

    Data: `dgan data pack lines.txt data/text --split-by-hash 90/5/5`, of lines with 32 characters
    of `ALPHABET` or more.
    Cost: 3,000 steps, 36 minutes on one CPU core; published with width 512 and 200,000 steps.
    Score: after 2,529 steps the divergence of runs of four characters is 0.453 nats (untrained
    0.692, real text 0.143), `python benchmarks/training/text.py --minutes 30`. Loss, penalty,
    updates and the shape of the networks are those published; they are narrower.
    """
    player = Player(
        network="characters",
        options={"width": 96, "depth": 4},
        learning_rate=constant(2e-4),
        beta1=0.5,
        beta2=constant(0.9),
    )
    return Recipe(
        name="characters-wgan-gp",
        data=Data(
            kind="text",
            shards="data/text/train-*.tar",
            resolution=32,
            channels=len(ALPHABET),
            alphabet=ALPHABET,
            crop="window",
        ),
        generator=player,
        discriminator=player,
        train=Train(steps=3000, batch_size=64, discriminator_updates=5, log_every=20),
        task=Task(loss="wasserstein"),
        penalty=Penalty(gamma=constant(10.0), points="between", kind="one_centered"),
        average=Average(half_life_kimg=constant(10.0)),
        checkpoint=Checkpoint(every=500, best="js_4"),
        divergence=Divergence(accuracy=0.0),  # a critic is to be as good as it can
        samples=Samples(every=500, count=32),
        evaluation=Evaluation(every=500, samples=5000, shards="data/text/validation-*.tar"),
    )
