"""bias_act: scale, noise, bias, activation, gain and clamp in one pass, differentiable twice."""

import math

import torch
from torch import Tensor

from dgan_kernels import reference
from dgan_kernels.checks import (
    TRITON,
    check_choice,
    check_clamp,
    check_input,
    check_like,
    check_number,
    check_tensor,
    check_vector,
    runs_triton,
)

if TRITON:
    from dgan_kernels.triton_bias_act import FORWARD
    from dgan_kernels.triton_bias_act_scaled import FORWARD as SCALED
else:
    FORWARD = SCALED = None


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    act: str = "linear",
    gain: float = 1.0,
    clamp: float | None = None,
    dim: int = 1,
    scale: Tensor | None = None,
    noise: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Return ``clamp(gain * act(scale * x + noise + bias))``, differentiable twice.

    The operator that StyleGAN2 and 3 build every layer from (Karras et al. 2020, 2021), with the
    activations that other families use. The double backward pass is a kernel too: a gradient
    penalty costs two more sweeps over memory, not one for each arithmetic step.

    Args:
        x: [N, C] or [N, C, *spatial]; float16, bfloat16, float32 or float64. Any strides; dense
            memory (contiguous, channels_last, permuted) is read in place and its order kept.
        bias: [C], of x's dtype and device, or None.
        act: linear, relu, leaky_relu (slope 0.2), silu, gelu, gelu_tanh, tanh, sigmoid, softplus
            or elu.
        gain: a factor after the activation.
        clamp: a bound on the absolute value of the result, or None. As in `torch.clamp`, the
            gradient passes where the result equals the bound.
        dim: which dimension of x is C.
        scale: [N, C], of x's dtype and device, or None for 1; not with dim=0. A factor for each
            sample and channel, such as StyleGAN2's demodulation.
        noise: of x's shape, but size 1 in dimension ``dim`` and x's size or 1 in dimension 0; of
            x's dtype and device, or None. The same for all channels, as in StyleGAN.
        backend: "triton", "reference" (plain PyTorch), or None to choose: Triton for 16-bit and
            32-bit tensors on a GPU, the reference for everything else.

    Returns:
        Of x's shape, dtype and, where x is dense, strides. Triton computes in float32 inside.

    Derivatives:
        Triton: first and second, reverse over reverse, reverse over forward, forward over reverse,
        through torch.autograd, torch.func and torch.compile. The reference: any order.

    Limits:
        In Triton a third derivative through a curved activation raises NotImplementedError; with
        scale or noise, so do every third derivative and forward over forward. With them, too,
        dimensions beside 0 and ``dim`` that do not follow one another in memory are copied, as in
        [N, H, C, W], and then in the result's memory come in the order of its shape.
        vmap, and torch.func or forward_ad inside torch.compile, run in plain PyTorch. gain and
        clamp are numbers, without a gradient. A scale, noise or bias of another dtype than x is
        refused rather than promoted.
    """
    check_choice("act", act, reference.ACTIVATIONS)
    check_input("x", x)
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(
            f"dim={dim}; accepted: {-x.ndim} to {x.ndim - 1}, x has {x.ndim} dimensions"
        )
    if bias is not None:
        check_vector("bias", bias, x, dim)
    if scale is not None:
        _check_scale(scale, x, dim)
    if noise is not None:
        _check_noise(noise, x, dim)
    check_number("gain", gain)
    check_clamp(clamp)
    if not runs_triton(x, backend, "bias_act") or FORWARD is None:
        return reference.bias_act(x, bias, act, gain, clamp, dim, scale, noise)
    dim %= x.ndim
    constants = (act, float(gain), None if clamp is None else float(clamp))
    if scale is not None or noise is not None:
        return _scaled(x, scale, noise, bias, dim, *constants)
    if bias is not None:
        bias = reference.along(bias, x, dim)
        if not torch.compiler.is_compiling():
            # autograd then sums the bias's gradient only if it is asked for, which a Function
            # cannot know; a compiler drops an unused sum itself, and would write the expansion out.
            bias = bias.expand_as(x)
    return FORWARD(x, bias, *constants, dim)


def _scaled(
    x: Tensor, scale: Tensor | None, noise: Tensor | None, bias: Tensor | None, dim: int,
    *constants: object,
) -> Tensor:  # fmt: skip
    """Run the kernels that have scale and noise, on views [N, C, positions]."""
    assert SCALED is not None
    moved = x.movedim(dim, 1)
    positions = math.prod(moved.shape[2:])
    if noise is not None:
        noise = noise.movedim(dim, 1)
        noise = noise.reshape(noise.shape[0], 1, positions)
    y = SCALED(
        moved.reshape(*moved.shape[:2], positions),
        None if scale is None else scale[:, :, None],
        noise,
        None if bias is None else bias[None, :, None],
        *constants,
    )
    return y.reshape(moved.shape).movedim(1, dim)


def _check_scale(scale: Tensor, x: Tensor, dim: int) -> None:
    """Raise unless ``scale`` is [N, C], of x's dtype and device."""
    check_tensor("scale", scale)
    if dim % x.ndim == 0:
        raise ValueError(
            f"scale with dim={dim}; accepted: a dim beside 0, which is that of the samples"
        )
    if scale.shape != (x.shape[0], x.shape[dim]):
        raise ValueError(
            f"scale has shape {tuple(scale.shape)}; accepted: [{x.shape[0]}, {x.shape[dim]}], the "
            f"sizes of dimensions 0 and {dim} of x, which has shape {tuple(x.shape)}"
        )
    check_like("scale", scale, x)


def _check_noise(noise: Tensor, x: Tensor, dim: int) -> None:
    """Raise unless ``noise`` is [N or 1, 1, *spatial] for C in ``dim``, of x's dtype and device."""
    check_tensor("noise", noise)
    sizes = [1 if d == dim % x.ndim else size for d, size in enumerate(x.shape)]
    fits = noise.ndim == x.ndim and all(
        given == size or (d == 0 and given == 1)
        for d, (given, size) in enumerate(zip(noise.shape, sizes))
    )
    if not fits:
        accepted = ", ".join(map(str, sizes[1:]))
        raise ValueError(
            f"noise has shape {tuple(noise.shape)}; accepted: [{sizes[0]} or 1, {accepted}], for "
            f"dim={dim} of x, which has shape {tuple(x.shape)}"
        )
    check_like("noise", noise, x)
