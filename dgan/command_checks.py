"""What commands on a trained generator are asked for, and whether this one can give it."""

from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from dgan.config import TRANSLATED

if TYPE_CHECKING:
    from torch import Tensor

    from dgan.trained import TrainedGenerator

Given = tyro.conf.Positional

NO_PICTURES = ("audio", "text", "video")
"""Kinds of data whose samples are looked at, or heard, in ways of their own."""


def require(name: str, value: float, least: int) -> None:
    """Raise `ValueError` if `--name` is below `least`."""
    if value < least:
        raise ValueError(f"--{name} is {value}; it must be at least {least}")


def require_images(run: Path, trained: "TrainedGenerator") -> None:
    """Raise `ValueError` for a generator that makes no samples from noise to look at."""
    if trained.recipe.data.kind == "points":
        raise ValueError(
            f"{run} is a run on points, not on images: its pictures are in {run / 'samples'}"
        )
    if trained.recipe.data.kind in TRANSLATED:
        raise ValueError(
            f"{run} translates images, of which {run / 'samples'} has sheets: `dgan evaluate` "
            "scores it on other shards, `dgan export` gives the network"
        )


def require_pixels(run: Path, trained: "TrainedGenerator") -> None:
    """Raise `ValueError` for one whose samples are no images."""
    if (kind := trained.recipe.data.kind) in NO_PICTURES:
        raise ValueError(f"{run} is a run on {kind}, and what is compared here are images")
    if trained.recipe.data.kind == "latents":
        raise ValueError(
            f"{run} is a run on latents, which have no pixels to compare: decode what "
            "`dgan.load_generator` makes, and compare that"
        )


def require_no_embedding(run: Path, trained: "TrainedGenerator", what: str) -> None:
    """Raise `ValueError` for one that is given embeddings; `what` was asked for."""
    if trained.recipe.data.embedding:
        raise ValueError(
            f"{run} is given embeddings, and {what} is of generators that are given none"
        )


def labels_of(trained: "TrainedGenerator", count: int, label: int | None) -> "Tensor | None":
    """Classes int64 `[count]`: `label`, or all in turn; None of an unconditional generator."""
    import torch

    classes = trained.recipe.data.classes
    if label is not None and not 0 <= label < classes:
        known = f"the generator knows 0 … {classes - 1}" if classes else "it has no classes"
        raise ValueError(f"--label is {label}; {known}")
    if not classes:
        return None
    return torch.arange(count) % classes if label is None else torch.full((count,), label)


def named(out: Path | None, usual: str) -> Path:
    """`out`, which must be of the kind of the usual name."""
    kind = Path(usual).suffix
    if out is not None and out.suffix.lower() != kind:
        raise ValueError(f"--out is {out}; this is one {kind[1:].upper()}: name it so, as {usual}")
    return out or Path(usual)
