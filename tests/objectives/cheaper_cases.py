"""Calls of every operator that PyTorch gets right but wasteful: helpers."""

import torch
import torch.nn.functional as F
from around import Case, Operator
from exactness import numbers
from torch import Tensor

CONSTANT = numbers(4, 6, seed=7)
LINEAR = [
    Case("bias", (4, 6), lambda h, w, b: ((h, w, b[:, 0]), {}), (5, 6)),
    Case("no bias", (4, 3, 6), lambda h, w, b: ((h, w), {}), (5, 6)),
    Case("named", (4, 6), lambda h, w, b: ((), {"input": h, "weight": w, "bias": b[:, 0]}), (5, 6)),
    Case("one vector out", (4, 6), lambda h, w, b: ((h, w[0]), {}), (5, 6)),
    Case("weight from the input", (4, 6), lambda h, w, b: ((h, w * h.sum(), b[:, 0]), {}), (5, 6)),
    Case("bias from the input", (4, 6), lambda h, w, b: ((h, w, b[:, 0] * h.sum()), {}), (5, 6)),
    Case("constant input", (4, 6), lambda h, w, b: ((CONSTANT, w * h.sum(), b[:, 0]), {}), (5, 6)),
]


def convolution_cases(dims: int) -> list[Case]:
    """3 → 4 channels, and 4 → 6 in two groups."""
    size, two = (5,) * dims, (2,) * dims
    plain, grouped = (4, 3, *two), (6, 2, *two)
    options = {"stride": 2, "padding": 1, "groups": 2}
    return [
        Case("bias", (4, 3, *size), lambda h, w, b: ((h, w, b.flatten(1)[:, 0]), {}), plain),
        Case("grouped", (4, 4, *size), lambda h, w, b: ((h, w, None), options), grouped),
        Case("positions", (4, 3, *size), lambda h, w, b: ((h, w, None, 1, 1, 2), {}), plain),
        Case(
            "named",
            (4, 3, *size),
            lambda h, w, b: ((), {"input": h, "weight": w, "bias": b.flatten(1)[:, 1]}),
            plain,
        ),
        Case("same", (4, 3, *size), lambda h, w, b: ((h, w), {"padding": "same"}), plain),
        Case("weight from the input", (4, 3, *size), lambda h, w, b: ((h, w * h.sum()), {}), plain),
    ]


def transposed_cases(dims: int) -> list[Case]:
    """3 → 4 channels."""
    size, weight = (4,) * dims, (3, 4, *(2,) * dims)

    def bias(b: Tensor) -> Tensor:
        return b[0].flatten(1)[:, 0]

    return [
        Case("bias", (4, 3, *size), lambda h, w, b: ((h, w, bias(b)), {}), weight),
        Case(
            "stride", (4, 3, *size), lambda h, w, b: ((h, w), {"stride": 2, "padding": 1}), weight
        ),
    ]


MATMUL = [
    Case("from the right", (4, 6), lambda h, w, b: ((h, w), {}), (6, 5)),
    Case("from the left", (4, 3, 6), lambda h, w, b: ((w, h), {}), (5, 3)),
    Case("by itself", (4, 3, 6), lambda h, w, b: ((h, h.mT + b.sum()), {}), (5, 3)),
    Case("batches", (4, 2, 3, 6), lambda h, w, b: ((h, w), {}), (2, 6, 5)),
    Case("named", (4, 6), lambda h, w, b: ((h,), {"other": w}), (6, 5)),
]
BROADCAST = [
    Case("parameter", (4, 3, 6), lambda h, w, b: ((h, w), {}), (6,)),
    Case("number", (4, 6), lambda h, w, b: ((h * w, 3.0), {}), (6,)),
    Case("from the left", (4, 3, 6), lambda h, w, b: ((w, h), {}), (3, 1)),
    Case("wider", (4, 1, 6), lambda h, w, b: ((h, w), {}), (3, 6)),
    Case("wider from the left", (4, 1, 6), lambda h, w, b: ((w, h), {}), (2, 4, 3, 6)),
    Case("both", (4, 3, 6), lambda h, w, b: ((h * w, h[:, :1] + b), {}), (6,)),
    Case("named", (4, 6), lambda h, w, b: ((h,), {"other": w}), (6,)),
]
SUM = [*BROADCAST, Case("alpha", (4, 6), lambda h, w, b: ((h, w), {"alpha": 2}), (6,))]
# Wide enough for negative and positive values, and for the tails of smooth ones.
LEAKY_RELU = [
    Case("default", (4, 6), lambda h, w, b: ((3 * h * w + b,), {}), (6,)),
    Case("slope", (4, 6), lambda h, w, b: ((3 * h * w + b, 0.2), {}), (6,)),
    Case("named", (4, 6), lambda h, w, b: ((3 * h * w + b,), {"negative_slope": 0.3}), (6,)),
    Case("in place", (4, 6), lambda h, w, b: ((3 * h * w + b, 0.2, True), {}), (6,)),
]
GELU = [
    Case("plain", (4, 6), lambda h, w, b: ((3 * h * w + b,), {}), (6,)),
    Case("tanh", (4, 6), lambda h, w, b: ((3 * h * w + b,), {"approximate": "tanh"}), (6,)),
    Case("named", (4, 6), lambda h, w, b: ((), {"input": 3 * h * w + b}), (6,)),
]
SILU = [
    Case("plain", (4, 6), lambda h, w, b: ((3 * h * w + b,), {}), (6,)),
    Case("in place", (4, 6), lambda h, w, b: ((3 * h * w + b,), {"inplace": True}), (6,)),
]
GROUP_NORM = [
    Case("affine", (4, 6, 3), lambda h, w, b: ((h, 2, w, b), {}), (6,)),
    Case("plain", (4, 6, 2, 3), lambda h, w, b: ((h, 3), {"eps": 1e-2}), (6,)),
    Case("no space", (4, 6), lambda h, w, b: ((h, 2, w, b, 1e-3), {}), (6,)),
    Case("named", (4, 6, 3), lambda h, w, b: ((h,), {"num_groups": 2, "weight": w}), (6,)),
    Case("weight from the input", (4, 6, 3), lambda h, w, b: ((h, 2, w * h.sum(), b), {}), (6,)),
]
RMS_NORM = [
    Case("affine", (4, 3, 6), lambda h, w, b: ((h, (6,), w), {}), (6,)),
    Case("plain", (4, 6), lambda h, w, b: ((h, [6]), {"eps": 1e-2}), (6,)),
    Case("two dimensions", (4, 3, 6), lambda h, w, b: ((h, (3, 6), w, 1e-3), {}), (3, 6)),
]
CHEAPER_CASES: dict[Operator, list[Case]] = {
    F.linear: LINEAR,
    **{conv: convolution_cases(d) for d, conv in enumerate((F.conv1d, F.conv2d, F.conv3d), 1)},
    F.conv_transpose1d: transposed_cases(1),
    F.conv_transpose2d: transposed_cases(2),
    F.conv_transpose3d: transposed_cases(3),
    torch.matmul: MATMUL,
    Tensor.matmul: MATMUL,
    torch.mul: BROADCAST,
    Tensor.mul: BROADCAST,
    torch.add: SUM,
    Tensor.add: SUM,
    F.leaky_relu: LEAKY_RELU,
    F.gelu: GELU,
    F.silu: SILU,
    F.group_norm: GROUP_NORM,
    torch.group_norm: GROUP_NORM,
    F.rms_norm: RMS_NORM,
    torch.rms_norm: RMS_NORM,
}
