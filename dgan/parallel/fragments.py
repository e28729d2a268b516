"""What one rank's ZeRO optimizer holds of each parameter: the one file that looks inside DeepSpeed.

DeepSpeed flattens parameters, cuts the flat tensor among ranks, and keeps float32 weights and
moments of its cut only. Its public accessors gather whole parameters, or copy; these are views.
`tests/distributed/test_deepspeed_penalties.py` fails when a release holds them otherwise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dgan.parallel.pieces import Piece


def without_compiling() -> None:
    """Let gloo reduce on CPUs.

    DeepSpeed would compile an operation of its own at first use: a minute, and a lock file that a
    killed build leaves behind, at which every later run waits without end.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@dataclass(frozen=True)
class Fragment:
    """The range of one parameter that this rank's optimizer holds.

    Attributes:
        shape: of the whole parameter.
        start: its first element, in row-major order, that is held here.
        size: how many are held; may be 0.
        flat: float32 weights of several fragments, the key of the optimizer's state.
        offset: of this fragment in `flat`, and in moments of its shape.
    """

    shape: torch.Size
    start: int
    size: int
    flat: Tensor
    offset: int

    def view(self, flat: Tensor) -> Tensor:
        """This fragment's part, `[size]`, of `flat` or of something else of that shape."""
        return flat.detach().narrow(0, self.offset, self.size)


def fragments(module: nn.Module, zero: Any) -> dict[str, Fragment]:
    """Of every trainable parameter of `module`, by name; `zero` is its ZeRO optimizer."""
    return {
        name: (_of_partitioned if hasattr(p, "ds_id") else _of_replicated)(p, zero)
        for name, p in module.named_parameters()
        if p.requires_grad
    }


def flats(zero: Any) -> list[Tensor]:
    """The flat float32 weights that the optimizer moves."""
    for attribute in (
        "fp32_partitioned_groups_flat",  # stage 3
        "single_partition_of_fp32_groups",  # stages 1 and 2
        "fp32_groups_flat_partition",  # stage 1 with bfloat16
    ):
        if hasattr(zero, attribute):
            return list(getattr(zero, attribute))
    raise RuntimeError(f"{type(zero).__name__}: this release of DeepSpeed is not known to dgan")


def gradients(zero: Any) -> Iterator[Tensor]:
    """This rank's part of the reduced gradients, between the last backward and the step."""
    if hasattr(zero, "fp32_groups_gradient_flat_partition"):
        yield from zero.fp32_groups_gradient_flat_partition
        return
    for index, flat in enumerate(flats(zero)):
        held = zero.averaged_gradients.get(index)
        if held is not None:
            yield from held
        elif flat.grad is not None:  # offloaded to the CPU
            yield flat.grad


@torch.no_grad()
def publish(module: nn.Module, zero: Any) -> None:
    """Bring what was written into the float32 weights to the weights the network computes with."""
    if hasattr(zero, "update_lp_params"):
        zero.update_lp_params()
        return
    kept = zero.persistent_parameters
    if kept:
        kept[0].partition(kept)
    parameter: Any
    for parameter in module.parameters():
        if parameter.requires_grad:
            group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
            flat = zero.fp32_partitioned_groups_flat[group]
            parameter.ds_tensor.copy_(flat.narrow(0, offset, size))
    if kept:
        kept[0].all_gather(kept)


def constant(parameter: Any, zero: Any) -> Tensor | Piece:
    """A parameter that is not trained: whole, or at stage 3 this rank's part of it."""
    if not hasattr(parameter, "ds_id"):
        return parameter.detach()
    part = parameter.ds_tensor.detach()
    start, held = _range(parameter, part.numel(), zero)
    return Piece(parameter.ds_shape, start, part.narrow(0, 0, held))


def _of_partitioned(parameter: Any, zero: Any) -> Fragment:
    """Stage 3: every parameter is cut into equal parts."""
    group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
    start, held = _range(parameter, size, zero)
    flat = zero.fp32_partitioned_groups_flat[group]
    return Fragment(parameter.ds_shape, start, held, flat, offset)


def _range(parameter: Any, size: int, zero: Any) -> tuple[int, int]:
    """Where this rank's part begins and how much of its `size` is not padding."""
    start = size * zero._get_param_partition_rank(parameter)
    return min(start, parameter.ds_numel), max(0, min(size, parameter.ds_numel - start))


def _of_replicated(parameter: Any, zero: Any) -> Fragment:
    """Stages 1 and 2: all parameters in a row are cut into equal parts."""
    mapping = parameter._hp_mapping
    if mapping is None:  # this rank's part begins behind the parameter or ends before it
        return Fragment(parameter.shape, 0, 0, flats(zero)[0], 0)
    held, whole = mapping.hp_fragment_address, mapping.lp_fragment_address
    flat = flats(zero)[mapping.param_group_index]
    return Fragment(parameter.shape, whole.start, held.numel, flat, held.start)
