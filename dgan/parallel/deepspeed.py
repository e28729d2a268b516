"""DeepSpeed's ZeRO: an engine for each network (strategy `deepspeed`).

Stage 1 spreads the optimizer's state over ranks, stage 2 gradients too, stage 3 weights too.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dgan.parallel.fragments import (
    constant,
    flats,
    fragments,
    gradients,
    publish,
    without_compiling,
)
from dgan.parallel.pieces import Piece
from dgan.parallel.replicas import Replica, fresh_moments
from dgan.parallel.world import World


class DeepSpeedReplica(Replica):
    """A network under its own DeepSpeed engine, from `drive` on.

    Args:
        module: the network; the same weights on every rank.
        world: the run's; float32, or bfloat16 with float32 master weights.
        configuration: DeepSpeed's.

    Raises:
        ValueError: the run is in float64, which DeepSpeed would round.
    """

    def __init__(self, module: nn.Module, world: World, configuration: dict[str, Any]) -> None:
        if world.dtype != torch.float32:
            raise ValueError(
                f"--parallel.strategy deepspeed keeps float32 weights, not {world.dtype}: choose "
                "--train.precision float32 or bfloat16, or another strategy"
            )
        super().__init__(module, world)
        self.configuration = configuration

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """The network in its own phase: a backward through this call gives it gradients."""
        return self.engine(*inputs)

    def drive(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the engine, in which `optimizer` moves flat float32 weights."""
        self.optimizer = optimizer
        self.engine = _initialize(self.module, optimizer, self.configuration, self.world)
        self.zero = self.engine.optimizer
        self.fragments = fragments(self.module, self.zero)
        for flat in flats(self.zero):
            optimizer.state[flat] = fresh_moments(flat)

    @contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        """Around a micro-batch's forward and backward; gradients are exchanged in the last."""
        self.engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, a scalar."""
        self.engine.backward(loss, scale_wrt_gas=False)

    def squared_gradient_norm(self) -> Tensor:
        """This rank's part of ‖∇‖² of the global gradient: the parts of all ranks add up to it."""
        parts = [gradient for gradient in gradients(self.zero) if gradient.numel()]
        if not parts:
            return torch.zeros((), dtype=torch.float64, device=self.world.device)
        squares = torch.stack(torch._foreach_norm(parts)).double().square()
        return squares.sum().to(self.world.device)

    def step(self, *, lr: float, betas: tuple[float, float]) -> None:
        """Move the weights along the accumulated gradients, and forget these."""
        self.optimizer.param_groups[0].update(lr=lr, betas=betas)
        self.engine.step()

    def weights(self) -> dict[str, Tensor]:
        """What this rank holds of each trained parameter, in full precision; writable."""
        return {name: fragment.view(fragment.flat) for name, fragment in self.fragments.items()}

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """What this rank holds of the optimizer's state for each trained parameter; writable."""
        return {
            name: {
                key: value if value.ndim == 0 else fragment.view(value)
                for key, value in self.optimizer.state[fragment.flat].items()
            }
            for name, fragment in self.fragments.items()
        }

    def written(self) -> None:
        """Compute with what was written."""
        publish(self.module, self.zero)

    @contextmanager
    def whole(self, parameter: nn.Parameter) -> Iterator[Tensor]:
        """All of a parameter of the module, of which this rank may hold a part; all ranks enter."""
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            yield parameter

    def saved(self, name: str, part: Tensor) -> Piece:
        """`part` of the parameter `name`, or of its moments, as a checkpoint takes it."""
        return Piece(self.fragments[name].shape, self.fragments[name].start, part)

    def constant(self, parameter: nn.Parameter) -> Tensor | Piece:
        """A parameter that is never trained, as a checkpoint takes it."""
        return constant(parameter, self.zero)


def _initialize(
    module: nn.Module, optimizer: torch.optim.Optimizer, configuration: dict[str, Any], world: World
) -> Any:
    if world.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise ImportError(
            "--parallel.strategy deepspeed needs DeepSpeed: pip install 'dgan[deepspeed]'"
        ) from error
    if world.device.type == "cpu":
        without_compiling()
    # Its warning that PyTorch's Adam is no optimizer of its own comes with every engine.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # It calls exchanges by names that PyTorch gives up: some lines in the log of every step.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=configuration)
    return engine
