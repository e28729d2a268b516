"""The networks that a recipe describes, on the CPU and whole."""

from typing import Any

from torch import nn

from dgan.config import Player, Recipe
from dgan.data.toy import find_toy
from dgan.draws import seed_of
from dgan.networks import Role, build, normalised
from dgan.networks.both import Both
from dgan.networks.judges import Judges, Shadowed
from dgan.networks.layers import without_kernels
from dgan.schedule import half_life_decay

BY_RESOLUTION = {
    "biggan": ("widths",),
    "dcgan": ("widths",),
    "r3gan": ("widths", "blocks", "groups"),
    "sngan": ("widths",),
    "stylegan2": ("widths",),
}
"""Options with an entry for each resolution, the highest last."""


def build_network(recipe: Recipe, role: Role) -> nn.Module:
    """One player's network on the CPU, with the recipe's initial weights.

    Of data that are not paired, two of a kind: one for each direction, or each domain.
    """
    # The two networks of a family must not start from the same random numbers.
    seed = 2 * recipe.train.seed + (role == "discriminator")
    arguments = network_arguments(recipe, role)
    network = _built(recipe, role, seed, arguments)
    if recipe.data.kind == "unpaired":
        network = Both(network, _built(recipe, role, seed_of(seed, "the other"), arguments))
    return network if recipe.train.kernels else without_kernels(network)


def build_discriminator(recipe: Recipe) -> nn.Module:
    """The discriminator with the judges beside it, and their shadow, if the recipe has any."""
    plan, seed = recipe.judges, recipe.train.seed
    judges = [build_network(recipe, "discriminator")]
    for scale in range(1, plan.scales):
        try:
            judges.append(_smaller(recipe, scale))
        except ValueError as error:
            raise ValueError(f"--judges.scales {plan.scales}: {error}") from None
    halvings = list(range(plan.scales))
    if plan.extractor:
        of_features = build(
            "discriminator",
            "projected",
            seed=seed_of(seed, "judge of features"),
            extractor=plan.extractor,
            **_sizes(recipe),
        )
        judges.append(of_features)
        halvings.append(0)
    panel = judges[0] if len(judges) == 1 else Judges(judges, halvings)
    if plan.shadow_kimg:
        images = recipe.train.batch_size
        panel = Shadowed(panel, half_life_decay(1000 * plan.shadow_kimg, images))
    return panel if recipe.train.kernels else without_kernels(panel)


def _smaller(recipe: Recipe, scale: int) -> nn.Module:
    """A judge like the discriminator, with weights of its own, of images halved `scale` times."""
    arguments = network_arguments(recipe, "discriminator")
    arguments["resolution"] //= 2**scale
    for option in BY_RESOLUTION.get(recipe.discriminator.network, ()):
        if option in arguments:
            arguments[option] = arguments[option][:-scale]
    return _built(recipe, "discriminator", seed_of(recipe.train.seed, "judge", scale), arguments)


def _built(recipe: Recipe, role: Role, seed: int, arguments: dict[str, Any]) -> nn.Module:
    player: Player = getattr(recipe, role)
    network = build(role, player.network, seed=seed, **arguments)
    if player.spectral:
        try:
            normalised(network, seed=seed)
        except ValueError as error:
            raise ValueError(f"--{role}.spectral with --{role}.network: {error}") from None
    return network


def network_arguments(recipe: Recipe, role: Role) -> dict[str, Any]:
    """What one player's network is constructed with."""
    player: Player = getattr(recipe, role)
    return {**_sizes(recipe), **player.options}


def _sizes(recipe: Recipe) -> dict[str, Any]:
    """Of the samples, as constructors of networks take them."""
    data = recipe.data
    if data.kind == "points":
        return {"dimension": find_toy(str(data.shards)).dimension}
    sizes = {"resolution": data.resolution, "channels": data.channels}
    # A vector in the place of a label is to a network what a one-hot one is.
    sizes["classes"] = data.classes or data.embedding
    if data.kind == "video":
        return sizes | {"frames": data.frames}
    # Networks of pairs are given the source beside the latent, or the image that they judge.
    return sizes | ({"source_channels": data.channels} if data.kind == "pairs" else {})


def latent_size(generator: nn.Module, name: str) -> int:
    """The size of the latents that a generator takes; `ValueError` if it does not say."""
    z_dim = getattr(generator, "z_dim", None)
    if not isinstance(z_dim, int):
        raise ValueError(f"--generator.network {name} must have an int attribute `z_dim`")
    return z_dim
