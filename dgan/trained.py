"""What a run has trained, read from its directory."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from dgan.build_networks import build_network, latent_size
from dgan.config import Recipe
from dgan.recipe_file import foreign, from_toml
from dgan.stored import best, candidates, load_newest


@dataclass(frozen=True)
class TrainedGenerator:
    """A run's averaged generator, whole and on the CPU, and where it comes from."""

    recipe: Recipe
    network: nn.Module
    z_dim: int
    step: int


Step = int | Literal["best"] | None
"""Which checkpoint: of that step, the one with the best score, or the newest good one."""


def load_run(directory: Path, step: Step = None) -> TrainedGenerator:
    """The averaged generator of one of a run's checkpoints.

    Args:
        directory: of the run.
        step: which checkpoint.

    Raises:
        FileNotFoundError: there is no run, or no such checkpoint.
        dgan.checkpoint.DamagedCheckpoint: it is damaged; or all are, where the newest is asked for.
        ValueError: it is of a run of another recipe.
    """
    recipe = from_toml(directory / "recipe.toml")
    paths = _chosen(directory, step, recipe.checkpoint.best)
    generator = build_network(recipe, "generator")
    if recipe.train.precision == "float64":
        generator.double()
    state = {f"average.{name}": tensor for name, tensor in generator.state_dict().items()}
    path, facts = load_newest(paths, state, distributed=False, warn=warnings.warn)
    if problem := foreign(path, facts, recipe):
        raise ValueError(problem)
    z_dim = latent_size(generator, recipe.generator.network)
    return TrainedGenerator(recipe, generator.eval().requires_grad_(False), z_dim, facts["step"])


def _chosen(directory: Path, step: Step, score: str) -> list[Path]:
    """What `step` means: one path, or all that there are; `score` says what is best."""
    found = {int(path.name[5:]): path for path in candidates(directory / "checkpoints")}
    if not found:
        raise FileNotFoundError(f"{directory} has no checkpoint yet: `dgan train {directory}`")
    if step is None:
        return list(found.values())
    if step == "best":
        if not (scored := best(list(found.values()), 1, score)):
            raise FileNotFoundError(
                f"{directory} has no checkpoint of a step that was evaluated: "
                f"--evaluation.every says when that is, --checkpoint.best that {score} counts"
            )
        return scored
    if step not in found:
        raise FileNotFoundError(
            f"{directory} has no checkpoint of step {step}; it has {', '.join(map(str, found))}"
        )
    return [found[step]]
