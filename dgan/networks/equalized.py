"""Layers of equalised learning rate (Karras et al. 2018, section 4.1).

Weights are N(0, 1) until they are used, where a constant gives them their scale: an optimizer that
moves every weight equally far then moves all layers at one relative pace.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgan.networks.layers import Fused
from dgan.networks.resampling import Taps
from dgan_kernels import bias_act, downsample2d, upfirdn2d

GAINS = {"leaky_relu": math.sqrt(2), "linear": 1.0}
"""After an activation, keeps the variance."""


class EqualizedLinear(Fused):
    """An activated linear map; its weights learn at `rate` times the pace of the others."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        act: str = "linear",
        rate: float = 1.0,
        bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.act, self.rate, self.begin = act, rate, bias
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.normal_(self.weight, std=1 / self.rate)
        nn.init.constant_(self.bias, self.begin / self.rate)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs]` → `[N, outputs]`."""
        x = F.linear(x, self.weight * (self.rate / math.sqrt(self.weight.shape[1])))
        bias = (self.bias * self.rate).to(x.dtype)
        return bias_act(x, bias, act=self.act, gain=GAINS[self.act], backend=self.backend)


class EqualizedConv2d(Fused):
    """An activated convolution, its weights N(0, 1) until they are used.

    `down` halves the resolution, through [1, 3, 3, 1] smoothing. `gain` is a further factor.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        *,
        down: bool = False,
        act: str = "leaky_relu",
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(outputs)) if act != "linear" else None
        self.taps = Taps()
        self.down, self.act, self.gain = down, act, gain
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, H, W]` → `[N, outputs, H, W]`, or half as high and wide."""
        weight = self.weight / math.sqrt(self.weight[0].numel())
        size = weight.shape[-1]
        if not self.down:
            x = F.conv2d(x, weight, padding=size // 2)
        elif size == 1:
            x = F.conv2d(downsample2d(x, self.taps(), backend=self.backend), weight)
        else:
            # What centres the result of the filter and of the stride, beside the convolution's own.
            around = size // 2 + 1
            smooth = upfirdn2d(x, self.taps(), padding=around, backend=self.backend)
            x = F.conv2d(smooth, weight, stride=2)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        gain = self.gain * GAINS[self.act]
        return bias_act(x, bias, act=self.act, gain=gain, backend=self.backend)
