"""What a run has trained, read from its directory."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dgan.build import build_network, latent_size
from dgan.checkpoint import complete, load
from dgan.config import Recipe
from dgan.recipe_file import from_toml


@dataclass(frozen=True)
class TrainedGenerator:
    """A run's averaged generator, whole and on the CPU, and where it comes from."""

    recipe: Recipe
    network: nn.Module
    z_dim: int
    step: int


def load_run(directory: Path, step: int | None = None) -> TrainedGenerator:
    """The averaged generator of a run's newest checkpoint.

    Args:
        directory: of the run.
        step: of another checkpoint than the newest.

    Raises:
        FileNotFoundError: there is no run, or no such checkpoint.
    """
    recipe = from_toml(directory / "recipe.toml")
    found = {int(path.name[5:]): path for path in complete(directory / "checkpoints")}
    if not found:
        raise FileNotFoundError(f"{directory} has no checkpoint yet: `dgan train {directory}`")
    step = max(found) if step is None else step
    if step not in found:
        raise FileNotFoundError(
            f"{directory} has no checkpoint of step {step}; it has {', '.join(map(str, found))}"
        )
    generator = build_network(recipe, "generator")
    if recipe.train.precision == "float64":
        generator.double()
    state = {f"average.{name}": tensor for name, tensor in generator.state_dict().items()}
    load(found[step], state, distributed=False)
    z_dim = latent_size(generator, recipe.generator.network)
    return TrainedGenerator(recipe, generator.eval().requires_grad_(False), z_dim, step)
