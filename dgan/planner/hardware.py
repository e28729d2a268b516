"""GPUs as their makers' data sheets have them, and what the plan assumes beyond these."""

import difflib
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class GPU:
    """One GPU in a node of its kind.

    Attributes:
        memory: bytes, as PyTorch reports them: less than the name says.
        bfloat16: FLOP/s of products of matrices, dense, float32 accumulation.
        float32: FLOP/s outside of tensor cores: how PyTorch multiplies float32 by default.
        bandwidth: of its memory, bytes/s.
        node: bytes/s that it sends to GPUs of its node, in one direction.
        network: bytes/s that it sends to other nodes; of a usual cluster, the data sheet has none.
    """

    memory: float
    bfloat16: float
    float32: float
    bandwidth: float
    node: float
    network: float


GPUS = {
    "a100-40": GPU(
        memory=39.4 * GIB, bfloat16=312e12, float32=19.5e12,
        bandwidth=1.55e12, node=300e9, network=25e9,
    ),
    "a100-80": GPU(
        memory=79.2 * GIB, bfloat16=312e12, float32=19.5e12,
        bandwidth=2.0e12, node=300e9, network=25e9,
    ),
    "b200": GPU(
        memory=178 * GIB, bfloat16=2250e12, float32=75e12,
        bandwidth=8.0e12, node=900e9, network=50e9,
    ),
    "h100": GPU(
        memory=79.2 * GIB, bfloat16=989e12, float32=67e12,
        bandwidth=3.35e12, node=450e9, network=50e9,
    ),
    "h200": GPU(
        memory=139.8 * GIB, bfloat16=989e12, float32=67e12,
        bandwidth=4.8e12, node=450e9, network=50e9,
    ),
    "l40s": GPU(
        memory=44.4 * GIB, bfloat16=362e12, float32=91.6e12,
        bandwidth=0.864e12, node=32e9, network=12.5e9,
    ),
}  # fmt: skip
"""By name. L40S have no NVLink: PCIe 4.0 ×16."""

OF_PEAK_FLOPS = 0.4
"""Assumed: the part of a GPU's FLOP/s that training reaches while it computes."""
OF_PEAK_LINK = 0.8
"""Assumed: the part of a link's bandwidth that collectives reach."""
LATENCY_S = 20e-6
"""Assumed: what an exchange takes besides its bytes."""
BESIDES_TENSORS = 2 * GIB
"""Assumed: CUDA's context, NCCL's buffers, workspaces of cuDNN and cuBLAS."""
FRAGMENTATION = 0.08
"""Assumed: what PyTorch's allocator holds beyond the peak of its tensors, relative to that."""
ADAM_BYTES = 28
"""That Adam moves through memory for a float32 weight: reads four numbers and writes three."""


def find_gpu(name: str) -> GPU:
    """By name; `ValueError` names the choices."""
    if name in GPUS:
        return GPUS[name]
    close = difflib.get_close_matches(name, GPUS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"--gpu {name!r} is not known; {hint}choose from {', '.join(GPUS)}")
