"""What a person, or a network that knows images, sees of samples."""

from collections.abc import Callable

import torch
from torch import Tensor

Picture = Callable[[Tensor], Tensor]
"""Samples, uint8 or floating, → uint8 `[N, 1 or 3, H, W]`, each sample by itself."""


def visible(samples: Tensor) -> Tensor:
    """uint8 `[N, 1 or 3, H, W]`: images in [−1, 1], or of latents the first channels, to ±3."""
    if samples.dtype == torch.uint8:
        return samples
    if samples.shape[1] in (1, 3):
        return to_uint8(samples)
    return to_uint8(samples[:, : 3 if samples.shape[1] > 3 else 1] / 3)


def to_uint8(images: Tensor) -> Tensor:
    """Images in [−1, 1] to uint8; values outside are clipped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
