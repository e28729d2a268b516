"""Recipes that train in a fraction of a second a step."""

from dataclasses import replace
from typing import Any

from dgan.config import (
    Average,
    Checkpoint,
    Data,
    Evaluation,
    Penalty,
    Player,
    Recipe,
    Run,
    Samples,
    Task,
    Train,
)
from dgan.schedule import Cosine, constant

OPTIONS: dict[str, dict[str, Any]] = {
    "r3gan": {"widths": (8, 6), "blocks": (1, 1), "groups": (4, 3)},
    "dcgan": {"widths": (8,)},
    "mlp": {"widths": (16, 12)},
    "stylegan2": {"widths": (8, 6)},
    "sngan": {"widths": (8, 6)},
    "biggan": {"widths": (8, 6)},
    "transformer": {"width": 8, "depth": 2, "heads": 2, "patch": 4},
}


def tiny(shards: str, directory: str, family: str = "r3gan", **changes: Any) -> Recipe:
    """A recipe on the 8×8 digits; `changes` replace fields, as `train__steps=3`."""
    options = OPTIONS[family]
    rate = Cosine(start=2e-3, end=1e-3, kimg=0.1)
    player = Player(network=family, options=options, learning_rate=rate)
    recipe = Recipe(
        name="tiny",
        data=Data(shards=shards, resolution=8, channels=1, classes=10, flip=True),
        generator=replace(player, options={**options, "z_dim": 6}),
        discriminator=player,
        train=Train(steps=4, batch_size=16, log_every=1),
        task=Task(loss="relativistic"),
        penalty=Penalty(gamma=Cosine(start=2.0, end=0.5, kimg=0.1), check=False),
        average=Average(half_life_kimg=constant(0.05)),
        checkpoint=Checkpoint(every=2),
        samples=Samples(every=1000, count=20),
        evaluation=Evaluation(every=-1),
        run=Run(dir=directory),
    )
    for path, value in changes.items():
        section, _, name = path.partition("__")
        part = replace(getattr(recipe, section), **{name: value}) if name else value
        recipe = replace(recipe, **{section: part})
    return recipe
