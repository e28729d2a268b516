"""Layers that the network families share; activations run on `dgan_kernels`."""

import math
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dgan_kernels import bias_act

LEAKY_RELU_GAIN = math.sqrt(2 / (1 + 0.2**2))
"""Keeps the variance through a leaky ReLU of slope 0.2 (He et al. 2015, equation 15)."""


def fan_in_normal_(weight: Tensor, gain: float = 1.0) -> Tensor:
    """Fill with N(0, gain²/fan_in); `gain = 0` gives zeros. Shape `[out, in, ...]`."""
    fan_in = weight[0].numel()
    with torch.no_grad():
        return weight.normal_(0.0, 1.0).mul_(gain / math.sqrt(fan_in))


class Conv2d(nn.Conv2d):
    """A convolution without bias that keeps the resolution, of fan-in scaled normal weights."""

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int = 1, groups: int = 1, gain: float = 1.0
    ) -> None:
        self.gain = gain
        super().__init__(
            inputs, outputs, kernel_size, padding=kernel_size // 2, groups=groups, bias=False
        )

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        fan_in_normal_(self.weight, self.gain)


class Linear(nn.Linear):
    """A linear map without bias, of fan-in scaled normal weights."""

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0) -> None:
        self.gain = gain
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        fan_in_normal_(self.weight, self.gain)


class Embedding(nn.Embedding):
    """One vector a class: `Linear` on one-hot labels, and with its initialisation."""

    def __init__(self, classes: int, size: int, gain: float = 1.0) -> None:
        self.gain = gain
        super().__init__(classes, size)

    def reset_parameters(self) -> None:
        """Draw the vectors anew; the fan-in of a one-hot vector is the number of classes."""
        nn.init.normal_(self.weight, std=self.gain / math.sqrt(self.num_embeddings))


class BiasAct(nn.Module):
    """A learned bias a channel, then an activation, in one kernel."""

    backend: str | None = None
    """Of `dgan_kernels.bias_act`: None chooses by device."""

    def __init__(self, channels: int, act: str = "leaky_relu") -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, ...]` → the same shape."""
        return bias_act(x, self.bias.to(x.dtype), act=self.act, backend=self.backend)

    def extra_repr(self) -> str:
        """Shown by `print(network)`."""
        return f"{self.bias.numel()}, act={self.act}"


def without_kernels(network: nn.Module) -> nn.Module:
    """Let every layer of `network` compute in plain PyTorch; returns `network`."""
    for layer in network.modules():
        if isinstance(layer, BiasAct):
            layer.backend = "reference"
    return network


class Resample(nn.Module):
    """Twice or half the resolution, through [1, 2, 1] smoothing with zeros outside the image.

    Up is nearest neighbours, then [1, 2, 1]/4: [1, 3, 3, 1]/4 a side. Down is its adjoint, up to
    scale: smoothing, then 2×2 means. Both are one banded matrix applied to rows and to columns:
    for the sizes of these networks two matrix products beat a depthwise convolution, and their
    derivatives of every order are matrix products again.

    Args:
        size: height and width of the input.
        up: twice the size; otherwise half.
    """

    matrix: Tensor

    def __init__(self, size: int, *, up: bool) -> None:
        super().__init__()
        small, large = (size, 2 * size) if up else (size // 2, size)
        # Pixel j of the large image lies at (j + ½)/2 − ½ of the small one's grid.
        distance = (torch.arange(large) / 2 - 0.25)[:, None] - torch.arange(small)[None]
        triangle = (1 - distance.abs()).clamp(min=0)
        self.register_buffer("matrix", triangle if up else triangle.T / 2, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, size, size]` → `[N, C, 2·size, 2·size]` or `[N, C, size/2, size/2]`."""
        matrix = self.matrix.to(x.dtype)
        return matrix @ (x @ matrix.T)


class BatchNorm(nn.Module):
    """Batch normalisation over the global batch: statistics are shared by `process_group`.

    As `nn.BatchNorm2d`, with per-channel statistics of `[N, C, ...]`. The group is set from
    outside by whoever spreads the network over ranks; the layer itself does not know. Every rank
    must hold the same number of samples. Limits: statistics are those of one micro-batch when
    gradients are accumulated.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.momentum, self.eps = momentum, eps
        self.process_group: dist.ProcessGroup | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, ...]` → the same shape; training mode uses and records the batch's statistics."""
        mean, variance = self._statistics(x) if self.training else self._running(x)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (x * scale.view(shape) + shift.view(shape)).to(x.dtype)

    def _running(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.running_mean, self.running_var

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dims = [d for d in range(x.ndim) if d != 1]
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = self._over_ranks(values.mean(dims))
        shape = (1, -1) + (1,) * (x.ndim - 2)
        # Centred: E[x²] − E[x]² would cancel.
        variance = self._over_ranks((values - mean.view(shape)).square().mean(dims))
        count = x.numel() // x.shape[1] * self._ranks
        with torch.no_grad():
            unbiased = variance * (count / max(count - 1, 1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return mean, variance

    @property
    def _ranks(self) -> int:
        return 1 if self.process_group is None else self.process_group.size()

    def _over_ranks(self, value: Tensor) -> Tensor:
        if self.process_group is None or self._ranks == 1:
            return value
        return _SumOverRanks.apply(value, self.process_group) / self._ranks


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks is its own derivative, of every order and in both modes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return _SumOverRanks.apply(grad_outputs[0], ctx.group), None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Tensor:
        return _SumOverRanks.apply(grad_inputs[0], ctx.group)


def stages_of(resolution: int, widths: tuple[int, ...], name: str) -> list[tuple[int, int]]:
    """The (input, output) widths between a network's stages, from 4×4 up to `resolution`.

    Raises:
        ValueError: `resolution` is not a power of two from 4 on, or `widths` does not have one
            entry for each resolution 4, 8, …, `resolution`.
    """
    stages = resolution.bit_length() - 2
    if resolution < 4 or resolution & (resolution - 1):
        raise ValueError(f"{name} cannot make resolution {resolution}: it takes 4, 8, 16, …")
    if len(widths) != stages:
        wanted = ", ".join(str(4 << i) for i in range(stages))
        raise ValueError(
            f"{name} at resolution {resolution} needs {stages} widths (for {wanted}), "
            f"but got {len(widths)}: {tuple(widths)}"
        )
    return list(pairwise(widths))
