"""A recipe for short clips."""

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
from dgan.schedule import Cosine


def weizmann_video() -> Recipe:
    """Four actions at 32×32, 8 frames, class-conditional, for a machine without a GPU.

    Data: the 72 clips of the Weizmann actions (Gorelick et al. 2007) as `video-weizmann` has them:
    strips of 64×64 frames, half of the clips the mirror images of the others. Every second frame is
    taken, from anywhere in a clip.
    Cost: 2,400 steps of 16 clips, 24 minutes of one CPU core.
    Score: after 3,043 steps the Fréchet distance is 81 (untrained 284) and 80 % are recognised as
    the action asked for, `python benchmarks/training/video.py --minutes 30`.
    """
    length = 2400 * 16 / 1000
    widths = (64, 48, 32, 16)
    player = Player(
        network="video",
        options={"widths": widths},
        learning_rate=Cosine(start=1e-3, end=1e-4, kimg=length),
        beta2=Cosine(start=0.9, end=0.99, kimg=length),
    )
    return Recipe(
        name="weizmann-video",
        data=Data(
            kind="video",
            shards="data/video-weizmann/*.tar",
            resolution=32,
            channels=3,
            frames=8,
            frame_stride=2,
            classes=4,
        ),
        generator=replace(player, options={"z_dim": 64, "widths": widths}),
        discriminator=player,
        train=Train(steps=2400, batch_size=16, log_every=20),
        penalty=Penalty(gamma=Cosine(start=1.0, end=0.1, kimg=length), method="double"),
        average=Average(half_life_kimg=Cosine(start=0.0, end=1.0, kimg=length)),
        checkpoint=Checkpoint(every=300),
        samples=Samples(every=200, count=24),
        evaluation=Evaluation(every=300, samples=1000),
    )
