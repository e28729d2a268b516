"""attention_jvp: scaled dot-product attention and its tangent, without an N×N matrix."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from dgan_kernels import reference_attention_jvp as reference
from dgan_kernels.checks import DTYPES, TRITON, check_number, check_tensor, runs_triton

if TRITON:
    from dgan_kernels import triton_attention_jvp_launch as kernels
else:
    kernels = None

WIDEST_HEAD = {2: 256, 4: 64}
"""By the bytes of an element; float32 of more channels would not fit in registers."""
NAMES = ("query", "key", "value", "query_tangent", "key_tangent", "value_tangent")


def attention_jvp(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_tangent: Tensor | None,
    key_tangent: Tensor | None,
    value_tangent: Tensor | None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return scaled dot-product attention and its tangent, differentiable once.

    With P = softmax(scale · QKᵀ), Ṡ = scale · (Q̇Kᵀ + QK̇ᵀ) and μ = rowsum(P∘Ṡ):

        output = PV        output_tangent = (P∘(Ṡ − μ))V + PV̇

    as two plain tensors, for a pass that carries tangents beside values; an ordinary backward pass
    through both then gives, for example, the gradient of a gradient penalty. FlashAttention-2
    (Dao 2023) with the tangent of Lu and Song (2024), and a backward pass for both outputs.
    Memory is linear in both lengths, forward and backward, in either backend.

    Why not a maintained package: their tangents are made for consistency models, which hold them
    constant. rCM's kernel detaches the tangents; jvp_flash_attention's backward pass ignores the
    cotangent of output_tangent. All of the gradient of a penalty in forward mode comes through
    output_tangent: with either it would be missing.

    Args:
        query: [*, L, d], by custom [N, heads, L, d]; float16, bfloat16, float32 or float64. Any
            strides; rows that are contiguous are read in place.
        key: [*, S, d], of the same leading dimensions, dtype and device.
        value: [*, S, d].
        query_tangent: of query's shape and dtype, or None where it is zero.
        key_tangent: the same for key. None costs less than zeros.
        value_tangent: the same for value.
        scale: what the logits are multiplied with; None for 1/√d.
        is_causal: whether query i sees only keys 0 to i.
        backend: "triton", "reference" (plain PyTorch in blocks of queries), or None to choose:
            Triton for 16-bit tensors with d up to 256 and 32-bit with d up to 64 on a GPU, else the
            reference.

    Returns:
        output and output_tangent, both of query's shape and dtype, and where query is dense of its
        order of dimensions. Sums are in float32 (float64 for float64). Triton multiplies float32
        in TF32, three times for the digits of float32 where
        torch.get_float32_matmul_precision() is "highest".

    Derivatives:
        The first, of both outputs, by torch.autograd, with respect to all six tensors, the same
        bit for bit each time. A further one raises; so do torch.func and dual numbers as inputs.

    Limits:
        No mask, no dropout, no grouped heads, and values as wide as queries: the caller uses
        softmax and products for those. torch.compile breaks its graph here. Autocast does not cast
        the inputs: pass one dtype. In float16, gradients of logits below 6e-8 vanish and tangents
        of logits beyond 65504 overflow: scale the loss, or use bfloat16.
    """
    inputs = (query, key, value, query_tangent, key_tangent, value_tangent)
    _check(inputs)
    if scale is not None:
        check_number("scale", scale)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    widest = WIDEST_HEAD.get(query.element_size(), query.shape[-1])
    wide = query.shape[-1] > widest
    if wide and backend == "triton":
        raise ValueError(
            f"backend='triton': query has {query.shape[-1]} channels a head; accepted: up to "
            f"{widest} in {query.dtype}, or backend=None or 'reference'"
        )
    backend = "reference" if wide and backend is None else backend
    triton = runs_triton(query, backend, "attention_jvp")
    four = [None if x is None else _four_dimensional(x) for x in inputs]
    outputs = _differentiable(*four, scale, is_causal, triton and kernels is not None)
    return outputs[0].reshape(query.shape), outputs[1].reshape(query.shape)


def _check(inputs: tuple[Tensor | None, ...]) -> None:
    for i, (name, x) in enumerate(zip(NAMES, inputs)):
        if i < 3 or x is not None:
            check_tensor(name, x)
    query, key = inputs[:2]
    assert query is not None
    assert key is not None
    if query.dtype not in DTYPES:
        accepted = ", ".join(str(d) for d in DTYPES)
        raise ValueError(f"query has dtype {query.dtype}; accepted: {accepted}")
    if query.ndim < 2 or query.shape[-1] == 0:
        raise ValueError(f"query has shape {tuple(query.shape)}; accepted: [*, L, d]")
    if key.ndim < 2 or key.shape[-2] == 0:
        raise ValueError(f"key has shape {tuple(key.shape)}; accepted: [*, S, d], S at least 1")
    keys = (*query.shape[:-2], key.shape[-2], query.shape[-1])
    for i, (name, x) in enumerate(zip(NAMES, inputs)):
        if x is None:
            continue
        shape = tuple(query.shape) if i % 3 == 0 else keys
        if tuple(x.shape) != shape:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}; accepted: {shape}; for grouped heads or "
                f"values of another width use softmax and products"
            )
        if (x.dtype, x.device) != (query.dtype, query.device):
            raise ValueError(
                f"{name} is {x.dtype} on {x.device}; accepted: {query.dtype} on {query.device}, "
                f"as query is"
            )
    if all(x is None for x in inputs[3:]):
        raise ValueError(
            "query_tangent, key_tangent and value_tangent are None; accepted: at least one tensor; "
            "without, call torch.nn.functional.scaled_dot_product_attention"
        )


def _four_dimensional(x: Tensor) -> Tensor:
    """[*, length, d] as [N, heads, length, d]."""
    return x.flatten(0, -4) if x.ndim > 4 else x[(None,) * (4 - x.ndim)]


def _run(inputs: Any, scale: float, is_causal: bool, triton: bool) -> tuple[Any, ...]:
    """Return O and Ȯ, and what else the backward pass takes; from Triton the rows' lse and μ."""
    if triton and kernels is not None:
        return kernels.forward(inputs, scale, is_causal)
    return reference.forward(inputs, scale, is_causal)


def _run_backward(
    g: Tensor, h: Tensor, inputs: Any, kept: Any, scale: float, is_causal: bool, triton: bool
) -> list[Tensor | None]:
    if triton and kernels is not None:
        return kernels.backward(g, h, inputs, kept, scale, is_causal)
    return reference.backward(g, h, inputs, kept, scale, is_causal)


class AttentionJvp(Function):
    """Both outputs; keeps the inputs, and of what `_run` gave what the backward pass takes."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        """Six tensors, scale, is_causal and triton to O and Ȯ."""
        inputs, ctx.constants = args[:6], args[6:]
        results = _run(inputs, *ctx.constants)
        triton = ctx.constants[-1]
        ctx.save_for_backward(
            *inputs, *(results if triton and kernels is not None else results[2:])
        )
        return results[0], results[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        """G and H to six gradients."""
        # Checkpointing lets saved tensors be unpacked once.
        saved = ctx.saved_tensors
        return *_Backward.apply(ctx.constants, *grads, *saved), None, None, None


class _Backward(Function):
    """The backward pass, which knows that it depends on the inputs, and refuses to be derived.

    `once_differentiable` would not do: where G and H are constants it returns constants, and a
    gradient penalty of a network around it would lack terms without a word.
    """

    @staticmethod
    def forward(
        ctx: Any, constants: Any, g: Tensor, h: Tensor, *saved: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """G, H, six tensors and what forward kept to six gradients."""
        return tuple(_run_backward(g, h, saved[:6], saved[6:], *constants))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:  # pyright: ignore
        """Raise."""
        raise NotImplementedError(
            "attention_jvp can be differentiated once; for higher derivatives write attention out "
            "as softmax and products"
        )


# Outside of compiled graphs: traced, a Function would lose its second derivative silently.
_differentiable: Any = torch.compiler.disable(AttentionJvp.apply)
