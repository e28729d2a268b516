"""What the training loop asks of a task, which says what a batch means to the players."""

import importlib
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dgan.draws import Draws
from dgan.objectives.losses import OverRanks
from dgan.tasks.added import Network, Terms
from dgan.tasks.balance import Balance


class Task(Protocol):
    """Both players' losses on a batch, and what is remembered between updates.

    A class of your own inherits from it, and needs the two losses only. It is constructed with a
    `Setting` and `task.options`, before the networks are spread over ranks.

    What a loss is given:

    - the network that it trains first, then the opponent, whose parameters are constant. Either is
      called as a whole, as often as needed, with tensors: nothing inside of it is called directly,
      and each of its parameters takes part in its player's loss. Then any sharding works.
    - `batch`, this rank's rows of a micro-batch: the entries that `data.kind` has (`image` and
      `label` or `condition`, `a` and `b`, …), floating point on the device, pixels in [−1, 1]; and
      `__key__`.
    - `draws`, its random numbers, by row of the global batch; no other source of them repeats
      itself at other world sizes and after a resume.
    - `images_seen` by the discriminator since the run began.

    It returns `loss`, which is minimised, and scalars that are worth logging, each a mean over the
    rows: ranks and micro-batches are averaged. Of the discriminator, `accuracy`, `real_logits` and
    `fake_logits` are what alarms and `balance` go by; without them these are silent.

    Attributes:
        memory: tensors by name that belong to a checkpoint, equal on all ranks; read into in place.
        balance: of the numbers of both players' updates.
        differentiates_twice: whether the discriminator's loss calls `dgan.gradient_penalty` with
            the method `double`.
    """

    memory: dict[str, Tensor] = {}  # noqa: RUF012 - of those that remember nothing
    balance: Balance = Balance()
    differentiates_twice: bool = False

    def discriminator_loss(
        self,
        discriminator: Network,
        generator: nn.Module,
        batch: dict[str, Any],
        draws: Draws,
        images_seen: int,
    ) -> Terms:
        """What the discriminator minimises."""
        ...

    def generator_loss(
        self,
        generator: Network,
        discriminator: nn.Module,
        batch: dict[str, Any],
        draws: Draws,
        images_seen: int,
    ) -> Terms:
        """What the generator minimises."""
        ...

    def after_discriminator(self, metrics: dict[str, float], images: int) -> None:
        """Let `memory` follow an update of the discriminator on so many real samples.

        `metrics` are its terms, over the global batch, by the names they have here.
        """

    def after_generator(self, metrics: dict[str, float]) -> None:
        """Likewise after an update of the generator."""

    def check(self, discriminator: Network, batch: dict[str, Any]) -> float | None:
        """The relative gradient error of a penalty on a batch, if it takes one that is exact.

        Raises:
            ArithmeticError: it is too large.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a task may want to know of the run that it is played in.

    Attributes:
        generator: as it is built, whole and on the CPU; what wants a frozen copy takes it here.
        discriminator: likewise.
        device: where batches are, and `memory` has to be.
        dtype: of batches.
        gather: the rows of all ranks, equally many, in order; without derivatives.
        mean: the mean of a tensor over ranks, with its derivative.
    """

    generator: nn.Module
    discriminator: nn.Module
    device: torch.device
    dtype: torch.dtype
    gather: OverRanks
    mean: OverRanks


def import_task(name: str, setting: Setting, options: dict[str, Any]) -> Task:
    """The task at an import path, `mypackage.tasks:MyTask`, constructed.

    Raises:
        ValueError: it cannot be imported, or does not take the options, or is no task.
    """
    module, _, attribute = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"--task.name {name!r} cannot be imported: {error}; is its folder on PYTHONPATH?"
        ) from error
    try:
        task = make(setting, **options)
    except TypeError as error:
        raise ValueError(f"--task.name {name}: {error}") from error
    lacking = [key for key in _NEEDED if not hasattr(task, key)]
    if lacking:
        raise ValueError(
            f"--task.name {name} lacks {', '.join(lacking)}: inherit from dgan.tasks.Task"
        )
    return task


_NEEDED = [key for key in vars(Task) if not key.startswith("_")]
