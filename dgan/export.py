"""A trained generator as two files: safetensors weights and the JSON that rebuilds the network."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dgan.networks import FAMILIES, build, normalised
from dgan.networks.both import Both

FORMAT = 1
WEIGHTS, DESCRIPTION = "generator.safetensors", "generator.json"


def save_generator(
    generator: nn.Module,
    out: Path,
    *,
    network: str,
    arguments: dict[str, Any],
    spectral: bool = False,
    facts: dict[str, Any],
) -> None:
    """Write `generator` into the new folder `out`.

    Args:
        generator: holds whole tensors, not shards.
        out: must not exist, or be empty.
        network: the family or import path it was built from, with `arguments`.
        spectral: whether its weights were then normalised (`dgan.networks.normalised`).
        facts: what else a reader may want to know, such as the step.

    Raises:
        FileExistsError: `out` holds something already.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: name a new folder")
    aside = out.with_name(f".tmp-{out.name}")
    aside.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in generator.state_dict().items()}, aside / WEIGHTS)
    description = {"format": FORMAT, "network": network, "arguments": arguments, **facts}
    description |= {"spectral": True} if spectral else {}
    description |= {"both": True} if isinstance(generator, Both) else {}
    (aside / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
    if out.exists():
        out.rmdir()
    aside.rename(out)


def load_generator(path: str | Path, network: type[nn.Module] | None = None) -> nn.Module:
    """Rebuild an exported generator on the CPU, in evaluation mode.

    Nothing in the folder is executed. A generator that dgan does not ship is therefore not
    imported by the name in the file: pass its class as `network`.

    Raises:
        FileNotFoundError: there is no export at `path`.
        ValueError: another format, or a class is needed.
    """
    folder = Path(path)
    if not (folder / DESCRIPTION).is_file():
        raise FileNotFoundError(
            f"no exported generator at {folder}: `dgan export RUN OUT` makes one"
        )
    description = json.loads((folder / DESCRIPTION).read_text())
    if description["format"] != FORMAT:
        raise ValueError(f"{folder} has format {description['format']}, this dgan reads {FORMAT}")
    arguments = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in description["arguments"].items()
    }
    name = description["network"]
    if network is None and name not in FAMILIES:
        raise ValueError(f"{folder} was made by {name}: pass that class as `network`")

    def make() -> nn.Module:
        return network(**arguments) if network else build("generator", name, seed=0, **arguments)

    generator = Both(make(), make()) if description.get("both") else make()
    if description.get("spectral"):
        normalised(generator, seed=0)
    generator.load_state_dict(load_file(folder / WEIGHTS))
    return generator.eval().requires_grad_(False)


@torch.no_grad()
def synthesise(
    generator: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
    latents: torch.Tensor,
    labels: torch.Tensor | None,
    batch_size: int = 64,
) -> torch.Tensor:
    """Images `[N, C, H, W]` of latents `[N, z_dim]`, a batch at a time."""
    parts = latents.split(batch_size)
    conditions = [None] * len(parts) if labels is None else labels.split(batch_size)
    return torch.cat([generator(z, y) for z, y in zip(parts, conditions)])
