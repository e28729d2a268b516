"""The operators of gradient penalties in plain PyTorch, on rows: x [N, L], one row for each sample.

Any floating dtype, any device, any derivative order. Sums are taken in float32 at least. More
dimensions may come first: a batch of batches, under vmap.
"""

import torch
from torch import Tensor

from dgan_kernels.checks import SIXTEEN_BITS


def wide(x: Tensor) -> Tensor:
    """Return x in at least float32."""
    return x.float() if x.dtype in SIXTEEN_BITS else x


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that sums over x have: at least float32."""
    return torch.promote_types(x.dtype, torch.float32)


def squared_norm(x: Tensor) -> Tensor:
    """Return Σ x² of each row, [N]."""
    return wide(x).square().sum(-1)


def dot(x: Tensor, y: Tensor, factor: float) -> Tensor:
    """Return factor · Σ x·y of each row, [N]."""
    return (wide(x) * wide(y)).sum(-1) * factor


def scale(x: Tensor, weight: Tensor, factor: float) -> Tensor:
    """Return factor · weight · x, of x's dtype; weight [N]."""
    return (wide(x) * (weight * factor)[..., None]).to(x.dtype)


def interpolate(real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """Return fake + mix·(real − fake), of real's dtype; mix [N]."""
    return torch.lerp(wide(fake), wide(real), mix[..., None].to(wide_dtype(real))).to(real.dtype)


def direction(gradient: Tensor, squares: Tensor, one_sided: bool) -> Tensor:
    """Return 2(1 − 1/‖g‖)·g, of the gradient's dtype; 0 where ‖g‖² = squares [N] is 0."""
    inverse = torch.where(squares != 0, squares, 1.0).rsqrt()
    weight = torch.where(squares != 0, 2 * (1 - inverse), 0.0)
    return scale(gradient, weight.clamp(min=0) if one_sided else weight, 1.0)
