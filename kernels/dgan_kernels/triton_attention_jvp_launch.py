"""Launches of attention_jvp's kernels: block sizes, strides, and memory for the results."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dgan_kernels.reference_attention_jvp import Inputs
from dgan_kernels.triton_activations import OPTIONS
from dgan_kernels.triton_attention_jvp import forward_kernel, key_kernel, query_kernel

NARROWEST = 16
"""Channels of a tile at the least, which a matrix instruction takes."""
FARTHEST = 2**24
"""Elements from one row to the next at the most: within a tile, 32 bits then reach every row."""


class Config(NamedTuple):
    """Block sizes, warps and stages of a kernel, the same on every rank: nothing is tuned."""

    queries: int
    keys: int
    warps: int
    stages: int


Table = dict[int, tuple[Config, Config, Config]]
"""For padded head dimensions up to the key: the forward, the query and the key kernel's."""

# Chosen by compiling for sm_80, sm_90 and sm_100, not by timing. In 16 bits nothing spills to 128
# channels, but for 8 bytes of the causal query kernel on sm_80; in float32 that kernel spills 24.
# With more channels all of float32's would spill, up to 6 KB a thread: it has none.
AMPERE: Table = {
    64: (Config(64, 32, 4, 2), Config(64, 32, 4, 2), Config(32, 32, 4, 1)),
    128: (Config(32, 32, 4, 2), Config(16, 32, 4, 1), Config(32, 32, 8, 1)),
    256: (Config(16, 16, 4, 1), Config(16, 16, 8, 1), Config(16, 16, 8, 1)),
}
HOPPER: Table = AMPERE | {
    64: (Config(64, 64, 4, 2), Config(64, 32, 4, 2), Config(16, 64, 4, 1)),
    128: (Config(64, 16, 4, 2), Config(16, 32, 4, 1), Config(32, 32, 8, 1)),
}
BLACKWELL: Table = AMPERE | {
    64: (Config(64, 64, 8, 2), Config(64, 64, 8, 2), Config(32, 64, 4, 2)),
    128: (Config(64, 64, 8, 1), Config(64, 32, 8, 1), Config(32, 64, 4, 1)),
}
BY_CAPABILITY = {9: HOPPER, 10: BLACKWELL}
"""Anything else, consumer GPUs of later generations too, has Ampere's matrix instructions."""
FLOAT32: Table = {
    64: (Config(16, 16, 8, 1), Config(16, 16, 8, 1), Config(16, 16, 8, 1)),
}
WIDEST_WHOLE = 64
"""The widest head whose four gradients of keys and values one program adds up."""


def table(x: Tensor) -> Table:
    """Return the block sizes for x's dtype and GPU."""
    if x.dtype == torch.float32:
        return FLOAT32
    if not x.is_cuda or torch.version.hip is not None:
        return AMPERE
    return BY_CAPABILITY.get(torch.cuda.get_device_capability(x.device)[0], AMPERE)


def configs(query: Tensor) -> tuple[Config, Config, Config]:
    """Return the block sizes of the forward, the query and the key kernel."""
    return next(c for widest, c in table(query).items() if padded(query) <= widest)


def padded(query: Tensor) -> int:
    """Return the power of two that the channels are padded to."""
    return max(NARROWEST, 1 << (query.shape[-1] - 1).bit_length())


def forward(inputs: Inputs, scale: float, is_causal: bool) -> tuple[Tensor, ...]:
    """Return O, Ȯ, lse and μ."""
    query = inputs[0]
    output = _rows(torch.empty_like(query))
    moved = torch.empty_like(output)
    lse = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
    mu = torch.empty_like(lse)
    blocks = configs(query)[0]
    launch = _Launch(inputs, output, scale, is_causal)
    count = math.ceil(query.shape[2] / blocks.queries)
    launch(forward_kernel, count, blocks, (), (output, moved, lse, mu))
    return output, moved, lse, mu


def backward(
    grad: Tensor,
    grad_moved: Tensor,
    inputs: Inputs,
    kept: tuple[Tensor, ...],
    scale: float,
    is_causal: bool,
) -> list[Tensor | None]:
    """Return dQ, dK, dV, dQ̇, dK̇, dV̇, from the cotangents of O and Ȯ and what `forward` gave."""
    query, key = inputs[:2]
    output, moved, lse, mu = kept
    grads = tuple(_like(d, output) for d in (grad, grad_moved))
    launch = _Launch(inputs, output, scale, is_causal)
    # Absent gradients are never written: any pointer will do for them.
    dq, eps, delta = torch.empty_like(output), torch.empty_like(lse), torch.empty_like(lse)
    dqt = dq if inputs[3] is None else torch.empty_like(dq)
    blocks = configs(query)[1]
    count = math.ceil(query.shape[2] / blocks.queries)
    launch(query_kernel, count, blocks, grads, (output, moved, lse, mu, eps, delta, dq, dqt))
    dk = _rows(torch.empty_like(key))
    dv = torch.empty_like(dk)
    dkt, dvt = (dk if x is None else torch.empty_like(dk) for x in inputs[4:])
    blocks = configs(query)[2]
    count = math.ceil(key.shape[2] / blocks.keys)
    last = (lse, mu, eps, delta, dk, dv, dkt, dvt)
    halves = ((True, True),) if padded(query) <= WIDEST_WHOLE else ((True, False), (False, True))
    for to_key, to_value in halves:
        launch.constants |= {"TO_KEY": to_key, "TO_VALUE": to_value}
        launch(key_kernel, count, blocks, grads, last, dk.stride()[:3])
    there = zip((dq, dk, dv, dqt, dkt, dvt), inputs)
    return [None if x is None else d for d, x in there]


class _Launch:
    """What the three kernels are given alike."""

    def __init__(self, inputs: Inputs, output: Tensor, scale: float, is_causal: bool) -> None:
        query = inputs[0]
        pairs = [_pair(inputs[i], inputs[i + 3]) for i in range(3)]
        tangents = [x if t is None else t for x, t in pairs]
        self.tensors = (*[x for x, _ in pairs], *tangents)
        strides = [s for x in (*self.tensors[:3], output) for s in x.stride()[:3]]
        lengths = (query.shape[2], self.tensors[1].shape[2], query.shape[1])
        self.numbers = (*lengths, scale, *strides)
        self.heads = query.shape[0] * query.shape[1]
        exact = torch.get_float32_matmul_precision() == "highest"
        self.constants = {
            "HAS_QT": inputs[3] is not None, "HAS_KT": inputs[4] is not None,
            "HAS_VT": inputs[5] is not None, "CAUSAL": is_causal,
            # Three products in TF32 give float32's digits; exact ones would use no tensor core.
            "DOT": "tf32x3" if exact and query.dtype == torch.float32 else "tf32",
            "D": query.shape[-1], "BD": padded(query),
        }  # fmt: skip

    def __call__(
        self,
        kernel: Any,
        count: int,
        blocks: Config,
        before: tuple[Tensor, ...],
        after: tuple[Tensor, ...],
        strides: tuple[int, ...] = (),
    ) -> None:
        """Run ``count`` programs a head."""
        if count * self.heads == 0:
            return
        with torch.cuda.device_of(self.tensors[0]):
            kernel[(count * self.heads,)](
                *before, *self.tensors, *after, *self.numbers, *strides, **self.constants,
                BM=blocks.queries, BN=blocks.keys,
                num_warps=blocks.warps, num_stages=blocks.stages, **OPTIONS,
            )  # fmt: skip


def _pair(x: Tensor | None, tangent: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return both with suitable and equal strides: as they are, or copied."""
    assert x is not None
    if _suits(x) and (tangent is None or tangent.stride() == x.stride()):
        return x, tangent
    return x.contiguous(), None if tangent is None else tangent.contiguous()


def _rows(x: Tensor) -> Tensor:
    """Return memory of x's shape with suitable strides: x's, or new."""
    return x if _suits(x) else torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _suits(x: Tensor) -> bool:
    """Return whether channels are adjacent, and rows near enough."""
    return x.stride(-1) == 1 and x.stride(-2) <= FARTHEST


def _like(x: Tensor, other: Tensor) -> Tensor:
    """Return x with the strides of ``other``, which is dense."""
    return x if x.stride() == other.stride() else torch.empty_like(other).copy_(x)
