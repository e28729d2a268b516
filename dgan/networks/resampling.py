"""Twice or half the resolution, through the filter that StyleGAN2 and R3GAN share."""

import torch
from torch import Tensor, nn

from dgan.networks.layers import Fused
from dgan_kernels import downsample2d, upsample2d


class Taps(nn.Module):
    """The filter [1, 3, 3, 1]/8 of StyleGAN2 and R3GAN, applied along both axes."""

    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("values", torch.empty(4), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fill in the filter."""
        self.values.copy_(torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8)

    def forward(self) -> Tensor:
        """float32 `[4]`, whatever the network's dtype."""
        return self.values.float()


class Resample(Fused):
    """Twice or half the resolution, through [1, 2, 1] smoothing with zeros outside the image.

    Up is nearest neighbours, then [1, 2, 1]/4: [1, 3, 3, 1]/4 a side. Down is its adjoint, up to
    scale: smoothing, then 2×2 means. On a GPU that is `upfirdn2d`, one pass over memory. In plain
    PyTorch it is one banded matrix applied to rows and to columns: for the sizes of these networks
    two matrix products beat a depthwise convolution on a CPU, and their derivatives of every order
    are matrix products again.

    Args:
        size: height and width of the input.
        up: twice the size; otherwise half.
    """

    matrix: Tensor

    def __init__(self, size: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.large, self.small = (2 * size, size) if up else (size, size // 2)
        shape = (self.large, self.small) if up else (self.small, self.large)
        self.register_buffer("matrix", torch.empty(shape), persistent=False)
        self.taps = Taps()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fill in the filter."""
        # Pixel j of the large image lies at (j + ½)/2 − ½ of the small one's grid.
        distance = (torch.arange(self.large) / 2 - 0.25)[:, None] - torch.arange(self.small)[None]
        triangle = (1 - distance.abs()).clamp(min=0)
        self.matrix.copy_(triangle if self.up else triangle.T / 2)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, size, size]` → `[N, C, 2·size, 2·size]` or `[N, C, size/2, size/2]`."""
        if x.is_cuda and self.backend != "reference":
            resample = upsample2d if self.up else downsample2d
            return resample(x, self.taps(), backend=self.backend)
        matrix = self.matrix.to(x.dtype)
        if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
            return matrix @ (x @ matrix.T)
        rows = x.permute(0, 2, 3, 1)
        resampled = (matrix @ rows.flatten(2)).unflatten(2, rows.shape[2:])
        return (matrix @ resampled).permute(0, 3, 1, 2)
