"""What the tests of penalties compare, and how near it comes: helpers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dgan.objectives.penalties import gradient_penalty


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(found: Tensor, wanted: Tensor) -> float:
    assert wanted.norm() > 0
    return ((found - wanted).norm() / wanted.norm()).item()


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def parameter_gradient(network: nn.Module, of: Tensor) -> Tensor:
    parameters = [p for p in network.parameters() if p.requires_grad]
    found = torch.autograd.grad(of, parameters, materialize_grads=True, allow_unused=True)
    return torch.cat([gradient.flatten() for gradient in found])


@contextmanager
def written_out() -> Iterator[None]:
    """The double route's reference: attention that PyTorch can differentiate twice."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def penalty_gradient(network: nn.Module, x: Tensor, method: Any) -> Tensor:
    torch.manual_seed(3)
    with written_out():
        return parameter_gradient(network, gradient_penalty(network, x, method=method).loss)
