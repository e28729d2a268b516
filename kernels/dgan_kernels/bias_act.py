"""bias_act: bias, activation, gain and clamp in one pass over memory, differentiable twice."""

import math

import torch
from torch import Tensor

from dgan_kernels import reference
from dgan_kernels.checks import (
    TRITON,
    check_choice,
    check_input,
    check_vector,
    runs_triton,
)

if TRITON:
    from dgan_kernels.triton_bias_act import FORWARD
else:
    FORWARD = None


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    act: str = "linear",
    gain: float = 1.0,
    clamp: float | None = None,
    dim: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Return ``clamp(gain * act(x + bias))``, differentiable twice.

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
        backend: "triton", "reference" (plain PyTorch), or None to choose: Triton for 16-bit and
            32-bit tensors on a GPU, the reference for everything else.

    Returns:
        Of x's shape, dtype and, where x is dense, strides. Triton computes in float32 inside.

    Derivatives:
        Triton: first and second, reverse over reverse, reverse over forward, forward over reverse,
        through torch.autograd, torch.func and torch.compile. The reference: any order.

    Limits:
        In Triton a third derivative through a curved activation raises NotImplementedError.
        vmap, and torch.func or forward_ad inside torch.compile, run in plain PyTorch. gain and
        clamp are numbers, without a gradient. A bias of another dtype than x is refused rather
        than promoted.
    """
    check_choice("act", act, reference.ACTIVATIONS)
    check_input("x", x)
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(
            f"dim={dim}; accepted: {-x.ndim} to {x.ndim - 1}, x has {x.ndim} dimensions"
        )
    if bias is not None:
        check_vector("bias", bias, x, dim)
    if not -math.inf < gain < math.inf:  # math.isfinite breaks a compiler's graph
        raise ValueError(f"gain={gain}; accepted: a finite number")
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"clamp={clamp}; accepted: None, or a number of at least 0")
    if not runs_triton(x, backend) or FORWARD is None:
        return reference.bias_act(x, bias, act, gain, clamp, dim)
    dim %= x.ndim
    if bias is not None:
        bias = reference.along(bias, x, dim)
        if not torch.compiler.is_compiling():
            # autograd then sums the bias's gradient only if it is asked for, which a Function
            # cannot know; a compiler drops an unused sum itself, and would write the expansion out.
            bias = bias.expand_as(x)
    return FORWARD(x, bias, act, float(gain), None if clamp is None else float(clamp), dim)
