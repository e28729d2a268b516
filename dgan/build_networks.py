"""The networks that a recipe describes, on the CPU and whole."""

from typing import Any

from torch import nn

from dgan.config import Player, Recipe
from dgan.data.toy import find_toy
from dgan.networks import Role, build, normalised
from dgan.networks.layers import without_kernels
from dgan.networks.spectral import SpectralNorm


def build_network(recipe: Recipe, role: Role) -> nn.Module:
    """One player's network on the CPU, with the recipe's initial weights."""
    player: Player = getattr(recipe, role)
    # The two networks of a family must not start from the same random numbers.
    seed = 2 * recipe.train.seed + (role == "discriminator")
    network = build(role, player.network, seed=seed, **network_arguments(recipe, role))
    if player.spectral:
        try:
            normalised(network, seed=seed)
        except ValueError as error:
            raise ValueError(f"--{role}.spectral with --{role}.network: {error}") from None
    return network if recipe.train.kernels else without_kernels(network)


def network_arguments(recipe: Recipe, role: Role) -> dict[str, Any]:
    """What one player's network is constructed with."""
    player: Player = getattr(recipe, role)
    data = recipe.data
    if data.kind == "points":
        sizes = {"dimension": find_toy(str(data.shards)).dimension}
    else:
        sizes = {"resolution": data.resolution, "channels": data.channels, "classes": data.classes}
    return {**sizes, **player.options}


def latent_size(generator: nn.Module, name: str) -> int:
    """The size of the latents that a generator takes; `ValueError` if it does not say."""
    z_dim = getattr(generator, "z_dim", None)
    if not isinstance(z_dim, int):
        raise ValueError(f"--generator.network {name} must have an int attribute `z_dim`")
    return z_dim


def refuse_spectral(recipe: Recipe, *networks: nn.Module) -> None:
    """Raise `ValueError` if weights are normalised whose norm this recipe's ranks cannot know."""
    plan = recipe.parallel
    if plan.strategy != "deepspeed" or plan.zero_stage != 3:
        return
    for network in networks:
        if any(isinstance(part, SpectralNorm) for part in network.modules()):
            raise ValueError(
                f"{type(network).__name__} has weights of spectral norm one, which ZeRO stage 3 "
                "cannot gather: choose --parallel.zero_stage 2, or --parallel.strategy fsdp"
            )
