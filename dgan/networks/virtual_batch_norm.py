"""Virtual batch normalisation (Salimans et al. 2016, section 3.5).

Each sample is normalised by the statistics of a reference batch, fixed at the start of training,
and its own: unlike batch normalisation, no sample depends on the others it came with.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgan.networks.layers import Fused
from dgan_kernels import bias_act

REFERENCE = 64
"""Rows of the reference batch of networks that are built by name."""


class VirtualBatchNorm(Fused):
    """Normalise by the first rows of the batch and the sample itself, scale, shift, activate.

    With R reference rows, of mean m and mean square q a channel, a sample of its own m′ and q′
    (over its positions) is normalised by (R m + m′)/(R + 1) and (R q + q′)/(R + 1). The reference
    rows are normalised by m and q alone. Gradients flow through all of them.

    Args:
        channels: C of the input `[R + N, C, ...]`.
        act: an activation of `dgan_kernels.bias_act`.

    Attributes:
        reference: R; set by `WithReference`, which puts those rows in front.
    """

    eps = 1e-5

    def __init__(self, channels: int, act: str = "linear") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.act = act
        self.reference = 0
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin anew: scales 1, shifts 0."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[R + N, C, ...]` → the same shape."""
        if not 0 < self.reference <= len(x):
            raise ValueError(
                f"virtual batch normalisation got {len(x)} rows, of which {self.reference} are "
                "its reference batch: wrap the network in WithReference"
            )
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        positions = tuple(range(2, x.ndim))
        means = wide.mean(positions, keepdim=True) if positions else wide
        # Squares around the reference's mean: those around 0 would cancel.
        centre = means[: self.reference].mean(0, keepdim=True)
        moved = wide - centre
        own = means - centre
        squares = moved.square()
        squares = squares.mean(positions, keepdim=True) if positions else squares
        variance = squares[: self.reference].mean(0, keepdim=True)
        share = self._share(x)
        mean = share * own
        spread = (1 - share) * variance + share * squares - mean.square()
        shape = (1, -1, *[1] * (x.ndim - 2))
        normal = (
            (moved - mean) * (spread + self.eps).rsqrt() * self.weight.to(wide.dtype).view(shape)
        )
        bias = self.bias.to(x.dtype)
        return bias_act(normal.to(x.dtype), bias, act=self.act, backend=self.backend)

    def extra_repr(self) -> str:
        """Shown by `print(network)`."""
        return f"{self.bias.numel()}, act={self.act}"

    def _share(self, x: Tensor) -> Tensor:
        """What each row counts in its own statistics: 0 for the reference, else 1/(R + 1)."""
        share = x.new_full((len(x),), 1 / (self.reference + 1), dtype=torch.float64)
        share[: self.reference] = 0
        wide = torch.promote_types(x.dtype, torch.float32)
        return share.to(wide).view(-1, *[1] * (x.ndim - 1))


class WithReference(nn.Module):
    """A network that sees its reference batch before every batch.

    Of the network's results, those of the reference batch are left out. The batch is a buffer:
    part of checkpoints and exports, the same on every rank. Costs R further rows in every pass.

    Args:
        network: with `VirtualBatchNorm` layers, called with a batch and conditions.
        reference: its inputs for the reference batch: first samples of the data, or fixed latents,
            `[R, ...]`, then conditions (labels), if the network takes any.

    Raises:
        ValueError: the network has no `VirtualBatchNorm`, or the inputs' lengths differ.
    """

    couples_samples = False

    def __init__(self, network: nn.Module, *reference: Tensor) -> None:
        super().__init__()
        layers = [m for m in network.modules() if isinstance(m, VirtualBatchNorm)]
        lengths = {len(part) for part in reference}
        if not layers or len(lengths) != 1:
            raise ValueError(
                f"{type(network).__name__} has {len(layers)} VirtualBatchNorm layers and reference "
                f"inputs of {sorted(lengths)} rows: it takes a layer or more, and equal rows"
            )
        self.network = network
        if hasattr(network, "z_dim"):
            self.z_dim = network.z_dim
        self.inputs = len(reference)
        for index, part in enumerate(reference):
            self.register_buffer(f"reference{index}", part.detach().clone())
        (self.rows,) = lengths
        for layer in layers:
            layer.reference = self.rows

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return getattr(self.network, "blocks", [])

    def forward(self, x: Tensor, *conditions: Tensor | None) -> Tensor:
        """As the network; only the rows of `x` come back."""
        given = [x, *(condition for condition in conditions if condition is not None)]
        if len(given) != self.inputs:
            raise ValueError(
                f"the reference batch has {self.inputs} inputs, this call {len(given)}: a network "
                "that sees labels needs those of its reference batch"
            )
        parts = [getattr(self, f"reference{index}") for index in range(self.inputs)]
        joined = [torch.cat([part.to(own.dtype), own]) for part, own in zip(parts, given)]
        return self.network(*joined)[self.rows :]


def with_reference(network: nn.Module) -> nn.Module:
    """`network`, with a reference batch if its layers need one that they do not have.

    Its `reference_inputs(rows)` are that batch: a generator's latents for good, of a discriminator
    a place to be filled with samples of the data when a run begins.
    """
    layers = [m for m in network.modules() if isinstance(m, VirtualBatchNorm) and not m.reference]
    if not layers:
        return network
    make: Any = network.reference_inputs
    return WithReference(network, *make(REFERENCE))


@torch.no_grad()
def fill_references(network: nn.Module, images: Tensor, labels: Tensor | None) -> None:
    """Let `images` and their labels be the reference batch, wherever in `network` there is one.

    Fewer than it takes are repeated; images are averaged down to what a judge of a smaller scale
    sees.
    """
    for part in network.modules():
        if isinstance(part, WithReference):
            chosen = torch.arange(part.rows, device=images.device) % len(images)
            *_, height, width = part.get_buffer("reference0").shape
            part.get_buffer("reference0").copy_(
                F.adaptive_avg_pool2d(images[chosen], (height, width))
            )
            if labels is not None and part.inputs > 1:
                part.get_buffer("reference1").copy_(labels[chosen])
