"""What one rank holds of a parameter, by how it is spread: whole, by FSDP2, or by ZeRO-3."""

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate


class Held:
    """A parameter that every rank holds whole: in one process, under DDP, ZeRO-1 and ZeRO-2.

    Attributes:
        parameter: the module's.
        shard: different on ranks with different parts, equal on ranks with copies.
        numel: elements of the whole parameter.
    """

    shard = 0

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter

    @property
    def numel(self) -> int:
        """Elements of the whole parameter."""
        return self.parameter.numel()

    @property
    def tensor(self) -> Tensor:
        """This rank's part, to be read and written."""
        return self.parameter.detach()

    def gradient(self) -> Tensor | None:
        """This rank's part of `.grad`."""
        return self.parameter.grad

    def zeros(self) -> Tensor:
        """The gradient of a parameter that has none."""
        return self.tensor.new_zeros(self.tensor.shape)

    def cut(self, gradient: Tensor) -> Tensor:
        """This rank's part of a whole gradient."""
        return gradient

    def dot(self, a: Tensor, b: Tensor) -> float:
        """The inner product of two whole tensors, of which `a` and `b` are this rank's parts."""
        return float((a.double() * b.double()).sum())


class HeldByFSDP(Held):
    """A shard, of FSDP2 or any other user of DTensor."""

    @property
    def _whole(self) -> DTensor:
        assert isinstance(self.parameter, DTensor)
        return self.parameter

    @property
    def tensor(self) -> Tensor:
        """This rank's part, to be read and written."""
        return self._whole.to_local().detach()

    @property
    def shard(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Different on ranks with different parts, equal on ranks with copies."""
        where = self._whole.device_mesh.get_coordinate() or []
        return sum(
            coordinate * 100 ** (1 + dim)
            for dim, (coordinate, placement) in enumerate(zip(where, self._whole.placements))
            if placement.is_shard()
        )

    def gradient(self) -> Tensor | None:
        """This rank's part of `.grad`."""
        gradient = self.parameter.grad
        return gradient.to_local() if isinstance(gradient, DTensor) else gradient

    def dot(self, a: Tensor, b: Tensor) -> float:
        """The inner product of two whole tensors, of which `a` and `b` are this rank's parts."""
        whole = self._whole
        sums = [Partial() if p.is_shard() else Replicate() for p in whole.placements]
        part = (a.double() * b.double()).sum()
        return float(DTensor.from_local(part, whole.device_mesh, sums).full_tensor())


class HeldByZero3(Held):
    """DeepSpeed's equal part of the flat parameter, padded at its end."""

    parameter: Any

    @property
    def numel(self) -> int:
        """Elements of the whole parameter."""
        return self.parameter.ds_numel

    @property
    def tensor(self) -> Tensor:
        """This rank's part, to be read and written."""
        if self.parameter.ds_status.name == "AVAILABLE":
            # What is gathered would not follow a change of its part.
            self.parameter._z3_optimizer.parameter_offload.release_backward_leftovers()
            self.parameter.partition()
        start, stop = self._range
        return self.parameter.ds_tensor.detach()[: stop - start]

    @property
    def shard(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Different on ranks with different parts."""
        return 100 * dist.get_rank()

    def cut(self, gradient: Tensor) -> Tensor:
        """This rank's part of a whole gradient."""
        return gradient.flatten()[slice(*self._range)]

    @property
    def _range(self) -> tuple[int, int]:
        """Which elements are this rank's, padding left out."""
        size, numel = self.parameter.ds_tensor.numel(), self.parameter.ds_numel
        start = min(size * dist.get_rank(), numel)
        return start, min(start + size, numel)

    def dot(self, a: Tensor, b: Tensor) -> float:
        """The inner product of two whole tensors, of which `a` and `b` are this rank's parts."""
        total = (a.double() * b.double()).sum()
        dist.all_reduce(total)
        return float(total)


def held(parameter: nn.Parameter) -> Held:
    """What this rank holds of `parameter`."""
    if isinstance(parameter, DTensor):
        return HeldByFSDP(parameter)
    return HeldByZero3(parameter) if hasattr(parameter, "ds_id") else Held(parameter)


def under_zero(parameter: Any) -> bool:
    """Whether a DeepSpeed engine takes this parameter's gradients."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")
