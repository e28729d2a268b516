"""bias_act with scale and noise as launches that differentiate into each other.

    FORWARD   --vjp--> BACKWARD               --jvp--> TANGENT
    TANGENT   --vjp--> BACKWARD and SECOND
    BACKWARD  --vjp--> SECOND                 --jvp--> BACKWARD and SECOND

SECOND serves three of them because the second derivative of ⟨dy, y⟩ in (x, scale, noise, bias) is
symmetric. All take views: x [N, C, P], scale [N, C, 1], noise [N or 1, 1, P], bias [1, C, 1].
"""

from typing import Any

import torch
from torch import Tensor

from dgan_kernels import reference_bias_act_scaled as reference
from dgan_kernels import triton_bias_act_tiles as kernels
from dgan_kernels.autograd import Gradients, Launch, Via
from dgan_kernels.reference import ACTIVATIONS
from dgan_kernels.reference_bias_act_scaled import MaybeTensor
from dgan_kernels.triton_activations import OPTIONS
from dgan_kernels.triton_bias_act import in_memory_order_of

TILE = 2048  # eight elements a thread: one 16-byte load of a 16-bit dtype, two of float32
WIDTH = 64  # of a tile along the innermost dimension; the higher a tile, the fewer sums to store
WARPS = 8

Vectors = tuple[MaybeTensor, MaybeTensor, MaybeTensor]


def tile(channels: int, positions: int, channels_inside: bool) -> dict[str, int]:
    """Return a tile's size, in powers of 2: no more of one dimension than there is of it."""
    sizes = [1 << (max(n, 1) - 1).bit_length() for n in (channels, positions)]
    inside = 0 if channels_inside else 1
    width = min(WIDTH, sizes[inside])
    sizes[1 - inside] = min(TILE // width, sizes[1 - inside])
    sizes[inside] = min(TILE // sizes[1 - inside], sizes[inside])
    return {"BC": sizes[0], "BP": sizes[1]}


def _tile_of(x: Tensor) -> dict[str, int]:
    _, channels, positions = x.shape
    inside = channels > 1 and (positions == 1 or x.stride(1) < x.stride(2))
    return tile(channels, positions, inside)


def _blocks(x: Tensor, size: dict[str, int]) -> tuple[int, int]:
    """Return how many tiles there are along the channels, and along the positions."""
    return -(-x.shape[1] // size["BC"]), -(-x.shape[2] // size["BP"])


def _launch(
    kernel: Any,
    inputs: tuple[Tensor, ...],
    vectors: tuple[Vectors, ...],
    outputs: tuple[Tensor, ...],
    sums: tuple[Tensor, ...],
    act: str,
    gain: float,
    clamp: float | None,
    **flags: bool,
) -> None:
    """Run ``kernel``; ``outputs`` are dense; ``vectors`` are scale, noise, bias, or like them."""
    out = outputs[0]
    if out.numel() == 0:
        return
    batch, channels, positions = out.shape
    size = _tile_of(out)
    blocks_c, blocks_p = _blocks(out, size)
    scale, noise, bias = vectors[0]
    with torch.cuda.device_of(out):
        kernel[(batch * blocks_c * blocks_p,)](
            *(in_memory_order_of(t, out) for t in inputs),
            *(out if t is None else t.contiguous() for three in vectors for t in three),
            *outputs, *sums, *out.stride(), channels, positions,
            positions if noise is not None and noise.shape[0] > 1 else 0,
            gain, 0.0 if clamp is None else clamp,
            ACT=act, HAS_CLAMP=clamp is not None, HAS_SCALE=scale is not None,
            HAS_NOISE=noise is not None, HAS_BIAS=bias is not None, **flags, **size,
            num_warps=WARPS, **OPTIONS,
        )  # fmt: skip


def _partial_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return memory for each tile's sums: over positions, for scale and bias; over channels."""
    batch, channels, positions = x.shape
    blocks_c, blocks_p = _blocks(x, _tile_of(x))
    return (
        x.new_empty((batch, blocks_p, 2, channels), dtype=torch.float32),
        x.new_empty((batch, blocks_c, positions), dtype=torch.float32),
    )


def _gradients(
    x: Tensor, vectors: Vectors, by_channel: Tensor, by_position: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients of ``vectors`` from the tiles' sums; of None, one without elements."""
    scale, noise, bias = gradients = list(_allocate_vectors(x, *vectors))
    if vectors[0] is not None:
        scale.copy_(by_channel[:, :, 0].sum(1).unsqueeze(2))
    if vectors[1] is not None:
        over = (0, 1) if noise.shape[0] == 1 else 1
        noise.copy_(by_position.sum(over).view(noise.shape))
    if vectors[2] is not None:
        bias.copy_(by_channel[:, :, 1].sum((0, 1)).view(bias.shape))
    return tuple(gradients)


def _allocate_vectors(x: Tensor, *vectors: MaybeTensor) -> tuple[Tensor, ...]:
    return tuple(x.new_empty((x.shape[0], 0, 0) if t is None else t.shape) for t in vectors)


def _allocate_backward(dy: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(x), *_allocate_vectors(x, *args[:3])


def _allocate_second(v: Tensor, vs: Any, vn: Any, vb: Any, *args: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(args[1]), *_allocate_backward(*args)


def _forward(
    x: Tensor, scale: MaybeTensor, noise: MaybeTensor, bias: MaybeTensor, *constants: Any
) -> Tensor:
    y = torch.empty_like(x)
    _launch(kernels.forward_kernel, (x,), ((scale, noise, bias),), (y,), (), *constants)
    return y


def _tangent(
    tx: Tensor, ts: MaybeTensor, tn: MaybeTensor, tb: MaybeTensor,
    x: Tensor, scale: MaybeTensor, noise: MaybeTensor, bias: MaybeTensor, *constants: Any,
) -> Tensor:  # fmt: skip
    ty = torch.empty_like(x)
    vectors = ((scale, noise, bias), (ts, tn, tb))
    _launch(kernels.tangent_kernel, (tx, x), vectors, (ty,), (), *constants)
    return ty


def _backward(
    dy: Tensor, x: Tensor, scale: MaybeTensor, noise: MaybeTensor, bias: MaybeTensor,
    *constants: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    dx, sums, vectors = torch.empty_like(x), _partial_sums(x), (scale, noise, bias)
    _launch(kernels.backward_kernel, (dy, x), (vectors,), (dx,), sums, *constants)
    return dx, *_gradients(x, vectors, *sums)


def _second(
    v: Tensor, vs: MaybeTensor, vn: MaybeTensor, vb: MaybeTensor, dy: Tensor,
    x: Tensor, scale: MaybeTensor, noise: MaybeTensor, bias: MaybeTensor, *constants: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    ddy, dx, sums = torch.empty_like(x), torch.empty_like(x), _partial_sums(x)
    vectors = (scale, noise, bias)
    _launch(
        kernels.second_kernel, (v, dy, x), (vectors, (vs, vn, vb)), (ddy, dx), sums, *constants,
        CURVED=ACTIVATIONS[constants[0]].second is not None,
    )  # fmt: skip
    return ddy, dx, *_gradients(x, vectors, *sums)


def _present(gradients: Any, layer: Any) -> Gradients:
    """Return ``gradients`` of x, scale, noise and bias, without those of what is None."""
    return tuple(None if t is None else g for g, t in zip(gradients, layer[:4]))


def _filled(tangents: Any, layer: Any) -> Gradients:
    """Return ``tangents`` of x, scale, noise and bias, zeros where only the tangent is None."""
    return tuple(
        None if t is None else torch.zeros_like(t) if tangent is None else tangent
        for tangent, t in zip(tangents, layer[:4])
    )


def _forward_vjp(via: Via, grads: Any, *layer: Any) -> Gradients:
    return _present(via(BACKWARD)(grads[0], *layer), layer)


def _forward_jvp(via: Via, tangents: Any, *layer: Any) -> Tensor:
    return via(TANGENT)(*_filled(tangents, layer), *layer)


def _tangent_vjp(via: Via, grads: Any, *args: Any) -> Gradients:
    tangents, layer = args[:4], args[4:]
    to_tangents = via(BACKWARD)(grads[0], *layer)
    to_layer = via(SECOND)(*tangents, grads[0], *layer)[1:]
    return *_present(to_tangents, layer), *_present(to_layer, layer)


def _backward_vjp(via: Via, grads: Any, dy: Tensor, *layer: Any) -> Gradients:
    to_dy, *to_layer = via(SECOND)(*_filled(grads, layer), dy, *layer)
    return to_dy, *_present(to_layer, layer)


def _backward_jvp(via: Via, tangents: Any, dy: Tensor, *layer: Any) -> tuple[Tensor, ...]:
    terms = []
    if tangents[0] is not None:
        terms.append(via(BACKWARD)(tangents[0], *layer))
    if any(t is not None for t in tangents[1:]):
        terms.append(via(SECOND)(*_filled(tangents[1:], layer), dy, *layer)[1:])
    return terms[0] if len(terms) == 1 else tuple(a + b for a, b in zip(*terms))


_LAYER = "Tensor x, Tensor? scale, Tensor? noise, Tensor? bias, str act, float gain, float? clamp"
_TANGENTS = "Tensor {0}, Tensor? {0}scale, Tensor? {0}noise, Tensor? {0}bias"
_GRADIENTS = "Tensor, Tensor, Tensor, Tensor"

FORWARD = Launch(
    "bias_act_scaled", f"({_LAYER}) -> Tensor",
    tensors=4, outputs=(0,), run=_forward, plain=reference.forward,
    vjp=_forward_vjp, jvp=_forward_jvp,
)  # fmt: skip
TANGENT = Launch(
    "bias_act_scaled_tangent", f"({_TANGENTS.format('t')}, {_LAYER}) -> Tensor",
    tensors=8, outputs=(4,), run=_tangent, plain=reference.tangent, vjp=_tangent_vjp, order=1,
)  # fmt: skip
BACKWARD = Launch(
    "bias_act_scaled_backward", f"(Tensor dy, {_LAYER}) -> ({_GRADIENTS})",
    tensors=5, outputs=_allocate_backward, run=_backward, plain=reference.backward,
    vjp=_backward_vjp, jvp=_backward_jvp, order=1,
)  # fmt: skip
SECOND = Launch(
    "bias_act_scaled_second",
    f"({_TANGENTS.format('v')}, Tensor dy, {_LAYER}) -> (Tensor, {_GRADIENTS})",
    tensors=9, outputs=_allocate_second, run=_second, plain=reference.second, order=2,
)  # fmt: skip
