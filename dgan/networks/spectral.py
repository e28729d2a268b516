"""Spectral normalisation as a parametrisation: weights divided by their largest singular value."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize

from dgan_kernels import spectral_norm_power_iteration

LAYERS = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)
"""What `spectral_norm` normalises by default."""

FIRST_ITERATIONS = 15
"""Of the power iteration, when a weight is new to it."""


class SpectralNorm(nn.Module):
    """W ↦ W/σ(W), Miyato et al. 2018, equation 8, with σ(W) = ‖Wᵀu‖ for a fixed unit vector u.

    The derivative of ‖Wᵀu‖ is uvᵀ with v = Wᵀu/‖Wᵀu‖, that of their algorithm 1. u is a buffer
    that `advance_spectral_norms` moves, once an update, and that no forward pass changes: every
    pass of an update sees one function, in both networks' phases, each pass of a penalty, each
    micro-batch and each recomputation.

    Sharded weights are whole where the layer computes, so that every rank has the same σ; no rank
    has to talk to another for it.

    Args:
        weight: the layer's; u begins with some iterations on it.
        outputs: the dimension that counts outputs; 1 for a transposed convolution.
    """

    u: Tensor

    def __init__(self, weight: Tensor, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        wide = torch.promote_types(weight.dtype, torch.float32)
        u = torch.randn(weight.shape[outputs], dtype=wide, device=weight.device)
        self.register_buffer("u", F.normalize(u, dim=0))
        if not weight.is_meta:  # slow there, and of no use
            self.advance(weight, FIRST_ITERATIONS)

    def forward(self, weight: Tensor) -> Tensor:
        """W `[...]` → W/σ(W), of its dtype."""
        (sigma,) = spectral_norm_power_iteration([self._rows(weight)], [self.u], 0)
        return weight / sigma.to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is assigned to the layer's weight is what gets normalised."""
        return weight

    def advance(self, weight: Tensor, iterations: int) -> None:
        """Let u come closer to the first left singular vector of `weight`."""
        self._advance([self], [weight], iterations)

    @staticmethod
    @torch.no_grad()
    def _advance(norms: list["SpectralNorm"], weights: list[Tensor], iterations: int) -> None:
        rows = [norm._rows(weight).detach() for norm, weight in zip(norms, weights)]
        spectral_norm_power_iteration(rows, [norm.u for norm in norms], iterations)

    def _rows(self, weight: Tensor) -> Tensor:
        return weight.transpose(0, self.outputs)

    def extra_repr(self) -> str:
        """Shown by `print(network)`."""
        return f"outputs={self.outputs}"


def spectral_norm(network: nn.Module, layers: Iterable[nn.Module] | None = None) -> nn.Module:
    """Normalise the `weight` of every linear layer, embedding and convolution of `network`.

    Before the network is spread over ranks. Call `advance_spectral_norms` once after each of the
    network's updates. In a checkpoint a weight's name is `parametrizations.weight.original`, and
    its u is `parametrizations.weight.0.u`.

    Args:
        network: any module.
        layers: which of its modules instead; all have a `weight` of two or more dimensions.

    Returns:
        `network` itself.

    Raises:
        ValueError: there is nothing to normalise, or it is normalised already.
    """
    chosen = [m for m in network.modules() if isinstance(m, LAYERS)] if layers is None else layers
    count = 0
    for layer in chosen:
        weight: Any = layer.weight
        if parametrize.is_parametrized(layer, "weight"):
            raise ValueError(
                f"{type(network).__name__}: the weight of {type(layer).__name__} is "
                "parametrised already"
            )
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        # An embedding is a linear map of one-hot vectors: either dimension gives its σ.
        norm = SpectralNorm(weight, 1 if transposed else 0)
        parametrize.register_parametrization(layer, "weight", norm)
        count += 1
    if not count:
        raise ValueError(f"{type(network).__name__} has no layer with a weight to normalise")
    return network


@contextmanager
def gathered(weight: Tensor) -> Iterator[Tensor]:
    """All of a weight that FSDP2 may have sharded."""
    yield weight.full_tensor() if isinstance(weight, DTensor) else weight


def advance_spectral_norms(
    network: nn.Module,
    iterations: int = 1,
    *,
    whole: Callable[[nn.Parameter], AbstractContextManager[Tensor]] = gathered,
) -> None:
    """One more step of the power iteration for every normalised weight; all ranks call it.

    To be called once after each update of the network, not in its forward pass, and under FSDP2
    when its weights are resharded, as they are after an update. Without any it does nothing.

    Args:
        network: whatever has normalised weights.
        iterations: steps.
        whole: a context that gives all of a weight of which this rank holds a part.
    """
    norms, weights = [], []
    for layer in network.modules():
        if not isinstance(layer, parametrize.ParametrizationList):
            continue
        for norm in layer:
            if isinstance(norm, SpectralNorm):
                norms.append(norm)
                weights.append(layer.original)
    # DeepSpeed marks what its stage 3 shards.
    if any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in weights):
        # One at a time: all of them at once would be the whole network.
        for norm, weight in zip(norms, weights):
            with whole(weight) as entire:
                norm.advance(entire, iterations)
    elif norms:
        SpectralNorm._advance(norms, weights, iterations)
