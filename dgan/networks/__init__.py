"""Generators and discriminators, one family a file, and how to name them."""

import difflib
import importlib
import inspect
from typing import Any, Literal

import torch
from torch import nn

from dgan.networks.biggan import BigGANDiscriminator, BigGANGenerator
from dgan.networks.characters import CharacterDiscriminator, CharacterGenerator
from dgan.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from dgan.networks.encoder_decoder import ResNetGenerator, UNetGenerator
from dgan.networks.layers import Fused
from dgan.networks.mlp import MLPDiscriminator, MLPGenerator
from dgan.networks.patch import MultiscalePatchDiscriminator, PatchDiscriminator
from dgan.networks.points import PointDiscriminator, PointGenerator
from dgan.networks.projected import ProjectedDiscriminator
from dgan.networks.r3gan import R3GANDiscriminator, R3GANGenerator
from dgan.networks.residual import SNGANDiscriminator, SNGANGenerator
from dgan.networks.spectral import LAYERS, spectral_norm
from dgan.networks.stylegan2 import StyleGAN2Generator
from dgan.networks.stylegan2_discriminator import StyleGAN2Discriminator
from dgan.networks.transformer import TransformerDiscriminator, TransformerGenerator
from dgan.networks.video import VideoDiscriminator, VideoGenerator
from dgan.networks.virtual_batch_norm import with_reference
from dgan.networks.waveform import WaveformDiscriminator, WaveformGenerator
from dgan.networks.waveform_judges import WaveformJudges

Role = Literal["generator", "discriminator"]

FAMILIES: dict[str, dict[Role, type[nn.Module]]] = {
    "biggan": {"generator": BigGANGenerator, "discriminator": BigGANDiscriminator},
    "characters": {"generator": CharacterGenerator, "discriminator": CharacterDiscriminator},
    "dcgan": {"generator": DCGANGenerator, "discriminator": DCGANDiscriminator},
    "mlp": {"generator": MLPGenerator, "discriminator": MLPDiscriminator},
    "patch": {"discriminator": PatchDiscriminator},
    "patch-multiscale": {"discriminator": MultiscalePatchDiscriminator},
    "points": {"generator": PointGenerator, "discriminator": PointDiscriminator},
    "projected": {"discriminator": ProjectedDiscriminator},
    "r3gan": {"generator": R3GANGenerator, "discriminator": R3GANDiscriminator},
    "resnet": {"generator": ResNetGenerator},
    "sngan": {"generator": SNGANGenerator, "discriminator": SNGANDiscriminator},
    "stylegan2": {"generator": StyleGAN2Generator, "discriminator": StyleGAN2Discriminator},
    "transformer": {"generator": TransformerGenerator, "discriminator": TransformerDiscriminator},
    "unet": {"generator": UNetGenerator},
    "video": {"generator": VideoGenerator, "discriminator": VideoDiscriminator},
    "waveform": {"generator": WaveformGenerator, "discriminator": WaveformDiscriminator},
    "waveform-judges": {"discriminator": WaveformJudges},
}


def build(role: Role, network: str, *, seed: int, **arguments: Any) -> nn.Module:
    """Construct a network on the CPU; equal seeds give equal weights on every rank.

    Args:
        role: which of a family's two networks is meant.
        network: a family's name or an import path, `mypackage.models:MyNet`.
        seed: of the initial weights; PyTorch's global generator is left as it was.
        arguments: `resolution`, `channels`, `classes` and the network's own options.

    Raises:
        ValueError: there is no such network, or it does not take these arguments.
    """
    cls = _find(role, network)
    parameters = inspect.signature(cls).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in arguments:
            if name not in parameters:
                close = difflib.get_close_matches(name, parameters, n=1)
                hint = (
                    f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(parameters)}"
                )
                raise ValueError(f"--{role}.network {network} takes no {name!r}; {hint}")
    if network in FAMILIES:
        _check_sizes(arguments, f"--{role}.network {network}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return with_reference(cls(**arguments))
        except TypeError as error:
            raise ValueError(f"--{role}.network {network}: {error}") from error


SIZES = ("z_dim", "w_dim", "widths", "groups", "expansion", "width", "depth", "heads", "patch")
"""Options of the families of which none may be 0."""


def _check_sizes(arguments: dict[str, Any], network: str) -> None:
    for name in SIZES:
        value = arguments.get(name, 1)
        each = value if isinstance(value, tuple | list) else (value,)
        if not all(isinstance(size, int) and size >= 1 for size in each):
            shown = " ".join(map(str, each))
            raise ValueError(f"{network}: {name} is {shown}; sizes are whole numbers from 1 on")


def normalised(network: nn.Module, *, seed: int) -> nn.Module:
    """Divide every weight of `network` by its spectral norm; equal seeds start alike on every rank.

    Returns:
        `network` itself.

    Raises:
        ValueError: a weight has no norm to divide by, or is scaled already.
    """
    name = type(network).__name__
    fused = [p for m in network.modules() if isinstance(m, Fused) for p in m.parameters(False)]
    if any(parameter.ndim > 1 for parameter in fused):
        raise ValueError(
            f"{name} has layers of equalised learning rate, which scale their weights themselves"
        )
    if any(isinstance(m, LAYERS) and not bool(m.weight.any()) for m in network.modules()):
        raise ValueError(f"{name} begins with weights of 0, which have no norm to be divided by")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spectral_norm(network)


def default_options(role: Role, network: str) -> dict[str, Any]:
    """The options that a network has when none are given."""
    sizes = ("resolution", "channels", "frames", "source_channels", "classes", "dimension")
    parameters = inspect.signature(_find(role, network)).parameters.values()
    return {
        p.name: p.default for p in parameters if p.default is not p.empty and p.name not in sizes
    }


def _find(role: Role, network: str) -> type[nn.Module]:
    if network in FAMILIES:
        if role not in FAMILIES[network]:
            able = ", ".join(name for name, family in FAMILIES.items() if role in family)
            raise ValueError(f"the family {network!r} has no {role}; choose from {able}")
        return FAMILIES[network][role]
    if ":" not in network:
        close = difflib.get_close_matches(network, FAMILIES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"--{role}.network {network!r} is no family; {hint}choose from {', '.join(FAMILIES)}, "
            "or name a class by its import path, mypackage.models:MyNet"
        )
    module, _, name = network.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError) as error:  # TypeError: a relative path
        raise ValueError(
            f"--{role}.network {network!r} cannot be imported: {error}; "
            "is its folder on PYTHONPATH?"
        ) from error
