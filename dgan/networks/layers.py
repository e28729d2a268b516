"""Layers that the network families share; activations run on `dgan_kernels`."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dgan_kernels import bias_act, norm_act

LEAKY_RELU_GAIN = math.sqrt(2 / (1 + 0.2**2))
"""Keeps the variance through a leaky ReLU of slope 0.2 (He et al. 2015, equation 15)."""


def fan_in_normal_(weight: Tensor, gain: float = 1.0) -> Tensor:
    """Fill with N(0, gain²/fan_in); `gain = 0` gives zeros. Shape `[out, in, ...]`."""
    fan_in = weight[0].numel()
    with torch.no_grad():
        return weight.normal_(0.0, 1.0).mul_(gain / math.sqrt(fan_in))


def one_hot_normal_(weight: Tensor, gain: float = 1.0) -> Tensor:
    """`fan_in_normal_` of a map of one-hot vectors; shape `[classes, size]`."""
    return nn.init.normal_(weight, std=gain / math.sqrt(len(weight)))


def channels_last(x: Tensor) -> Tensor:
    """`[N, C, H, W]` as [N, H, W, C] in memory, an order that convolutions keep and that is faster.

    A single channel lies so in either order, and convolutions then take it for the other one.
    """
    return x.contiguous(memory_format=torch.channels_last)


Fill = Callable[[Tensor, float], Tensor]
"""Draws a weight in place, at a gain: `fan_in_normal_`, or one of `torch.nn.init`."""


def stored_weight(layer: nn.Module) -> Tensor:
    """What a layer learns: its `weight`, or the tensor that a parametrisation makes it from."""
    if parametrize.is_parametrized(layer, "weight"):
        return layer.get_parameter("parametrizations.weight.original")
    return layer.get_parameter("weight")


class Conv2d(nn.Conv2d):
    """A convolution that keeps the resolution; by default without bias."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int = 1,
        groups: int = 1,
        gain: float = 1.0,
        *,
        bias: bool = False,
        fill: Fill = fan_in_normal_,
    ) -> None:
        self.gain, self.fill = gain, fill
        super().__init__(
            inputs, outputs, kernel_size, padding=kernel_size // 2, groups=groups, bias=bias
        )

    def reset_parameters(self) -> None:
        """Draw the weights anew; the bias is 0."""
        self.fill(stored_weight(self), self.gain)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Linear(nn.Linear):
    """A linear map; by default without bias."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        gain: float = 1.0,
        *,
        bias: bool = False,
        fill: Fill = fan_in_normal_,
    ) -> None:
        self.gain, self.fill = gain, fill
        super().__init__(inputs, outputs, bias=bias)

    def reset_parameters(self) -> None:
        """Draw the weights anew; the bias is 0."""
        self.fill(stored_weight(self), self.gain)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """One vector a class: `Linear` on one-hot labels, and with its initialisation.

    It takes any vectors in their place, such as embedded captions, whose size is then `classes`.
    """

    def __init__(
        self, classes: int, size: int, gain: float = 1.0, *, fill: Fill = one_hot_normal_
    ) -> None:
        self.gain, self.fill = gain, fill
        super().__init__(classes, size)

    def reset_parameters(self) -> None:
        """Draw the vectors anew; the fan-in of a one-hot vector is the number of classes."""
        self.fill(stored_weight(self), self.gain)

    def forward(self, input: Tensor) -> Tensor:
        """Labels int64 `[N]`, or vectors `[N, classes]` → `[N, size]`."""
        return input @ self.weight if input.is_floating_point() else super().forward(input)


class Fused(nn.Module):
    """A layer on a kernel of `dgan_kernels`; `backend` is the kernel's: None chooses by device."""

    backend: str | None = None


def without_kernels(network: nn.Module) -> nn.Module:
    """Let every layer of `network` compute in plain PyTorch; returns `network`."""
    for layer in network.modules():
        if isinstance(layer, Fused):
            layer.backend = "reference"
    return network


class BiasAct(Fused):
    """A learned bias a channel, then an activation, in one kernel; `dim` is the channels'."""

    def __init__(self, channels: int, act: str = "leaky_relu", dim: int = 1) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.act, self.dim = act, dim

    def reset_parameters(self) -> None:
        """Begin anew, at 0."""
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, ...]` → the same shape."""
        bias = self.bias.to(x.dtype)
        return bias_act(x, bias, act=self.act, dim=self.dim, backend=self.backend)

    def extra_repr(self) -> str:
        """Shown by `print(network)`."""
        return f"{self.bias.numel()}, act={self.act}"


NORMS: dict[str, tuple[str, int | None]] = {
    "batch": ("batch", None),
    "layer": ("group", 1),
    "instance": ("instance", None),
}
"""The norms by the names they have in networks: `norm` and `groups` of `dgan_kernels.norm_act`."""


class NormAct(Fused):
    """A norm with a learned scale and shift a channel, then an activation, in one kernel.

    Args:
        channels: C of the input `[N, C, ...]`.
        norm: one of `NORMS`: `batch`, over the global batch; `layer`, over all of a sample, as
            Gulrajani et al. 2017 take it in a convolutional critic; `instance`, over each channel
            of a sample.
        act: an activation of `dgan_kernels.norm_act`.
        learned: have a scale and a shift; without, they are given with the input.

    Batch statistics are shared by `process_group`, which is set from outside by whoever spreads the
    network over ranks; the layer itself does not know. Every rank must hold the same number of
    samples. Limits: statistics are those of one micro-batch when gradients are accumulated.

    Raises:
        ValueError: there is no such norm.
    """

    momentum, eps = 0.1, 1e-5
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, channels: int, norm: str, act: str = "linear", *, learned: bool = True
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm {norm!r} is not known: choose from {', '.join(NORMS)}")
        self.weight = nn.Parameter(torch.ones(channels)) if learned else None
        self.bias = nn.Parameter(torch.zeros(channels)) if learned else None
        self.channels = channels
        self.norm, self.act = norm, act
        self.process_group: dist.ProcessGroup | None = None
        if norm == "batch":
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))

    def reset_parameters(self) -> None:
        """Begin anew: scales and variances 1, shifts and means 0."""
        for name, value in (*self.named_parameters(), *self.named_buffers()):
            nn.init.constant_(value, 1.0 if name in ("weight", "running_var") else 0.0)

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """`[N, C, ...]` → the same shape; in training, `batch` uses and records the batch's own.

        `scale` and `shift`, `[C]` or for each sample `[N, C]`, take the place of the learned ones.
        """
        scale = self.weight if scale is None else scale
        shift = self.bias if shift is None else shift
        assert scale is not None, "not learned, so it must be given"
        assert shift is not None, "not learned, so it must be given"
        if self.norm == "batch" and not self.training:
            return self._with_running_statistics(x, scale, shift)
        if self.norm == "batch":
            self._record(x.detach())
        over, groups = NORMS[self.norm]
        return norm_act(
            x, scale.to(x.dtype), shift.to(x.dtype), norm=over, groups=groups, act=self.act,
            eps=self.eps, process_group=self.process_group if self.norm == "batch" else None,
            backend=self.backend,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Shown by `print(network)`."""
        return f"{self.channels}, norm={self.norm}, act={self.act}"

    def _with_running_statistics(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        scale = scale * (self.running_var + self.eps).rsqrt()
        shift = shift - self.running_mean * scale
        scale, shift = (t.view(-1, self.channels, *[1] * (x.ndim - 2)) for t in (scale, shift))
        return bias_act((x * scale + shift).to(x.dtype), act=self.act, backend=self.backend)

    @torch.no_grad()
    def _record(self, x: Tensor) -> None:
        """Let the running statistics follow those of the global batch `[N, C, ...]`."""
        variance, mean = _moments(x.to(torch.promote_types(x.dtype, torch.float32)))
        count = x.numel() // x.shape[1]
        if self.process_group is not None:
            ranks = self.process_group.size()
            own = mean
            mean = self._over_ranks(own) / ranks
            # The spread within ranks and between them: E[x²] − E[x]² would cancel.
            variance = self._over_ranks(variance + (own - mean).square()) / ranks
            count *= ranks
        unbiased = variance * (count / max(count - 1, 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)

    def _over_ranks(self, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total, group=self.process_group)
        return total


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel's variance (of the batch itself) and mean; x is `[N, C, ...]`."""
    others = [0, *range(2, x.ndim)]
    if x.is_cuda:
        return torch.var_mean(x, others, correction=0)
    # On a CPU two sweeps take a tenth of var_mean's time.
    mean = x.mean(others)
    centred = x - mean.view(-1, *[1] * (x.ndim - 2))
    return centred.square_().mean(others), mean


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
