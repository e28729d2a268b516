"""Smooth stand-ins for activations with a kink, for finite differences."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dgan.objectives.operators import Replaced, behind_the_override


def _softplus_relu(input: Tensor, inplace: bool = False) -> Tensor:
    return F.softplus(input)


def _softplus_leaky_relu(
    input: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> Tensor:
    return negative_slope * input + (1 - negative_slope) * F.softplus(input)


SMOOTH: dict[Callable[..., Any], Callable[..., Any]] = {
    F.relu: _softplus_relu,
    torch.relu: _softplus_relu,
    Tensor.relu: _softplus_relu,
    F.leaky_relu: _softplus_leaky_relu,
    F.relu6: lambda input, inplace=False: 6 * torch.sigmoid(input),
}
"""Activations with a kink and a smooth one of the same growth."""


BACKWARD: dict[Callable[..., Any], Callable[..., Any]] = {
    function: behind_the_override(function)
    for function in (torch.autograd.grad, torch.autograd.backward)
}
"""In here, checkpointing computes activations again: they must be the smooth ones too."""


def smooth_activations() -> Replaced:
    """A context in which kinks are rounded, so that finite differences of slopes mean something.

    Limits: a backward on a GPU runs in another thread, where what is recomputed is not rounded.
    """
    return Replaced(SMOOTH, BACKWARD)
