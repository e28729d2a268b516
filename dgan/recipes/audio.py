"""Recipes of audio."""

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
from dgan.schedule import Cosine


def fsdd_wavegan() -> Recipe:
    """Spoken digits, 0.64 s at 8 kHz: a small class-conditional WaveGAN (Donahue et al. 2019).

    Data: the Free Spoken Digit Dataset, 2,700 recordings and 300 to test with, as shards of `.wav`
    and `.cls` (`dgan data pack FOLDER data/fsdd`, FOLDER with a subfolder a digit).
    Cost: 8,000 steps of 32 clips, of 0.5 to 0.6 seconds on one CPU core.
    Score: after 7,135 steps 81 % of 300 clips are recognised as the digit asked for, by a
    classifier that is right on 98 % of the test split (`benchmarks/training/audio.py`).
    Published is WGAN-GP, for 200,000 steps of 64: `--task.loss wasserstein --penalty.points between
    --penalty.kind one_centered --penalty.gamma.start 10 --penalty.gamma.end 10
    --discriminator.network waveform --discriminator.options.widths 256 128 64 32 16`. Here waveform
    and spectrum are judged side by side, the loss is relativistic, with R1 + R2.
    """
    length = 8000 * 32 / 1000
    rate = Cosine(start=5e-4, end=5e-5, kimg=length)
    beta2 = Cosine(start=0.9, end=0.99, kimg=length)
    return Recipe(
        name="fsdd-wavegan",
        data=Data(
            kind="audio",
            shards="data/fsdd/train-*.tar",
            resolution=5120,
            channels=1,
            classes=10,
            rate=8000,
            peak=0.9,
            crop="centre",
        ),
        generator=Player(
            network="waveform",
            options={"z_dim": 64, "widths": (256, 128, 64, 32, 16), "norm": "batch"},
            learning_rate=rate,
            beta2=beta2,
        ),
        discriminator=Player(
            network="waveform-judges",
            options={
                "widths": (128, 64, 32, 16),
                "periods": (),
                "scales": 1,
                "spectra": (256,),
                "phase_shuffle": 2,
            },
            learning_rate=rate,
            beta2=beta2,
        ),
        train=Train(steps=8000, batch_size=32, log_every=20),
        task=Task(loss="relativistic"),
        penalty=Penalty(gamma=Cosine(start=0.1, end=0.03, kimg=length), method="double"),
        average=Average(half_life_kimg=Cosine(start=0.0, end=5.0, kimg=length)),
        checkpoint=Checkpoint(every=1000),
        samples=Samples(every=1000, count=40),
        evaluation=Evaluation(every=1000, samples=1000),
    )
