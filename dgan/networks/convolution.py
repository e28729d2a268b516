"""What the image-to-image families are built of; weights start from N(0, 0.02²), as published."""

import torch
from torch import Tensor, nn

from dgan.networks.layers import NORMS, BiasAct, NormAct, stored_weight

STANDARD_DEVIATION = 0.02


class Conv2d(nn.Conv2d):
    """A convolution whose weights start from N(0, 0.02²), and its bias from 0."""

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        _draw(self)


class ConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution, likewise."""

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        _draw(self)


class ReflectedConv2d(Conv2d):
    """A convolution that keeps the resolution and sees the image mirrored outside of it."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, *, bias: bool = False) -> None:
        super().__init__(inputs, outputs, kernel_size, bias=bias)
        self.margin = kernel_size // 2

    def forward(self, input: Tensor) -> Tensor:
        """`[N, inputs, H, W]` → `[N, outputs, H, W]`, where H and W exceed half the kernel's."""
        return super().forward(_mirrored(_mirrored(input, self.margin, 2), self.margin, 3))


def stage(conv: Conv2d | ConvTranspose2d, norm: str, act: str) -> nn.Sequential:
    """A convolution without bias, a norm (`none`: a bias in its place) and an activation.

    Raises:
        ValueError: there is no such norm.
    """
    if norm not in ("none", *NORMS):
        raise ValueError(f"norm {norm!r} is not known: choose from none, {', '.join(NORMS)}")
    width = conv.out_channels
    return nn.Sequential(conv, BiasAct(width, act) if norm == "none" else NormAct(width, norm, act))


def _draw(layer: Conv2d | ConvTranspose2d) -> None:
    nn.init.normal_(stored_weight(layer), std=STANDARD_DEVIATION)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _mirrored(x: Tensor, margin: int, dim: int) -> Tensor:
    """As `F.pad(mode="reflect")`, whose derivative has no deterministic kernel on a GPU."""
    before = x.narrow(dim, 1, margin).flip(dim)
    after = x.narrow(dim, x.shape[dim] - 1 - margin, margin).flip(dim)
    return torch.cat([before, x, after], dim)
