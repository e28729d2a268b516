"""norm_act: a norm, its scale and shift, and an activation in one, differentiable twice."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgan_kernels import reference_norm_act
from dgan_kernels.checks import (
    TRITON,
    check_choice,
    check_input,
    check_like,
    check_number,
    check_tensor,
    runs_triton,
)
from dgan_kernels.native_norm_act import native_norm_act, serves
from dgan_kernels.reference import ACTIVATIONS

if TRITON:
    from dgan_kernels.triton_norm_act import WIDEST, launch
else:
    WIDEST, launch = 4096, None

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# For each norm, what its statistics are over (see `reference_norm_act`), and whether it subtracts
# the mean.
NORMS = {
    "layer": ("channels", True),
    "instance": ("group", True),
    "group": ("group", True),
    "rms": ("channels", False),
    "pixel": ("channels", False),
    "batch": ("batch", True),
}


def norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    norm: str,
    groups: int | None = None,
    act: str = "linear",
    eps: float = 1e-5,
    dim: int | None = None,
    process_group: "ProcessGroup | None" = None,
    backend: str | None = None,
) -> Tensor:
    """Return ``act(weight * normalise(x) + bias)``, differentiable twice.

    A norm followed by an activation costs a gradient penalty more memory traffic than anything
    else in a discriminator: the double backward pass of InstanceNorm and leaky ReLU moves 112
    activation-sized tensors step by step, and 5 here (8 where a group does not fit on the chip).

    Args:
        x: [N, C] or [N, C, *spatial], [N, T, C] with dim=-1; float16, bfloat16, float32 or float64.
        weight: the scale, [C]; or [N, C], one for each sample: AdaIN, AdaLN and FiLM (pass
            ``1 + scale`` for a DiT's modulate). Of x's dtype and device; None for 1.
        bias: the shift, [C] or [N, C], or None for 0.
        norm: over which elements the statistics are taken:
            instance (Ulyanov et al. 2016): each channel of each sample;
            group (Wu and He 2018): each of ``groups`` sets of channels of each sample;
            layer (Ba et al. 2016): the channels at each position, as `torch.nn.LayerNorm(C)`;
            rms (Zhang and Sennrich 2019): as layer, the root mean square, no mean subtracted;
            pixel (Karras et al. 2018): the same as rms, by the name it has in GANs, on dim=1;
            batch (Ioffe and Szegedy 2015): each channel over the batch, biased variance.
        groups: for norm="group", a divisor of C; None elsewhere.
        act: linear, relu, leaky_relu (slope 0.2), silu, gelu, gelu_tanh, tanh, sigmoid, softplus
            or elu.
        eps: added to the variance (or the mean square) before the root.
        dim: which dimension of x is C; None for the last in layer and rms, 1 in the others.
        process_group: for norm="batch", the ranks whose batches are one; of equal size on each.
        backend: "triton", "reference" (plain PyTorch), or None to choose: Triton for 16-bit and
            32-bit tensors on a GPU, the reference for everything else.

    Returns:
        Of x's shape and dtype. Statistics and arithmetic are float32 inside, float64 for float64.

    Derivatives:
        Triton: first and second, reverse over reverse, reverse over forward, forward over reverse,
        through torch.autograd, torch.func and torch.compile. The reference: any order.

    Limits:
        In Triton a third derivative, and forward over forward, raise NotImplementedError. vmap, and
        torch.func or forward_ad inside torch.compile, run in plain PyTorch.
        instance, group and batch norm read contiguous memory with dim=1: channels_last is copied,
        and their result is contiguous. layer, rms and pixel read channels_last in place.
        More than 4,096 channels in layer, rms or pixel: the gradients of weight and bias take
        memory for 2 float32 tensors of x's size.
        Batch norm keeps no running statistics. A weight of another dtype than x is refused rather
        than promoted.
    """
    check_choice("norm", norm, NORMS)
    check_choice("act", act, ACTIVATIONS)
    check_input("x", x)
    over, centred = NORMS[norm]
    dim = _dimension(x, dim, -1 if norm in ("layer", "rms") else 1)
    groups = _group_count(norm, groups, x.shape[dim])
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None:
            _check_affine(name, vector, x, dim)
    check_number("eps", eps)
    if eps < 0:
        raise ValueError(f"eps={eps}; accepted: a finite number of at least 0")
    if process_group is not None and norm != "batch":
        raise ValueError(f"process_group with norm={norm!r}; accepted: only with norm='batch'")
    ranks = None
    # One rank has nothing to exchange, and gloo takes a millisecond to find that out.
    if process_group is not None and process_group.size() > 1:
        ranks = process_group.group_name
    run = launch if runs_triton(x, backend, "norm_act") and launch is not None else None
    if run is None and serves(x, ranks):
        return native_norm_act(x, weight, bias, over, centred, groups, act, float(eps), dim)

    per_sample = any(vector is not None and vector.ndim == 2 for vector in (weight, bias))
    moved, at = _channel_moved(x, over, dim)
    view, over = _view(moved, at, over, groups, per_sample)
    arguments = (
        view,
        _affine(weight, view, over),
        _affine(bias, view, over),
        *(over, centred, act, float(eps), ranks),
    )
    y = reference_norm_act.norm_act(*arguments) if run is None else run(*arguments)
    return y.reshape(moved.shape).movedim(at, dim)


def _channel_moved(x: Tensor, over: str, dim: int) -> tuple[Tensor, int]:
    """Return x, dimensions permuted to suit ``over``, and where C is then."""
    if over != "channels":
        return x.movedim(dim, 1), 1
    last = x.movedim(dim, -1)
    # Statistics of one position are read in place where C is last in memory, whatever the shape
    # says (channels_last); too many for the chip are read as one group, which has C last.
    if last.is_contiguous() or x.shape[dim] > WIDEST:
        return last, x.ndim - 1
    return x, dim


def _view(x: Tensor, at: int, over: str, groups: int, per_sample: bool) -> tuple[Tensor, str]:
    """Return x as [N, G, D, S] of `reference_norm_act`, and over what its statistics are."""
    channels, inner = x.shape[at], math.prod(x.shape[at + 1 :])
    outer = math.prod(x.shape[:at])
    if over != "channels":
        return x.reshape(outer, groups, channels // groups, inner), over
    if channels > WIDEST:
        return x.reshape(outer, 1, channels, 1), "group"
    samples = x.shape[0] if per_sample else 1
    return x.reshape(samples, outer // max(samples, 1), channels, inner), over


def _affine(vector: Tensor | None, x: Tensor, over: str) -> Tensor | None:
    """Return ``vector``, in at least float32, as a view [N, G, D, 1] that broadcasts against x.

    Expanded over samples, so that autograd sums its gradient over them only if it is asked for.
    """
    if vector is None:
        return None
    n, g, d, _ = x.shape
    g = 1 if over == "channels" else g
    wide = vector if vector.dtype == torch.float64 else vector.float()
    samples = vector.shape[0] if vector.ndim == 2 else 1
    # N of the view is one, or samples, or where positions became rows, rows.
    repeats = n // max(samples, 1)
    wide = wide.reshape(samples, 1, g, d, 1).expand(samples, repeats, g, d, 1)
    return wide.reshape(n, g, d, 1)


def _dimension(x: Tensor, dim: int | None, default: int) -> int:
    """Return ``dim``, or its default, counted from the front."""
    chosen = default if dim is None else dim
    if not -x.ndim <= chosen < x.ndim:
        raise ValueError(
            f"dim={dim}; accepted: {-x.ndim} to {x.ndim - 1}, x has {x.ndim} dimensions"
        )
    return chosen % x.ndim


def _group_count(norm: str, groups: int | None, channels: int) -> int:
    """Return how many sets of channels share statistics."""
    if norm == "group":
        if groups is None or groups < 1 or channels % groups:
            raise ValueError(
                f"groups={groups}; accepted for norm='group': a divisor of x's {channels} channels"
            )
        return groups
    if groups is not None:
        raise ValueError(f"groups={groups} with norm={norm!r}; accepted: only with norm='group'")
    return max(channels, 1) if norm == "instance" else 1


def _check_affine(name: str, vector: Tensor, x: Tensor, dim: int) -> None:
    """Raise unless ``vector`` is [C] or, where x has samples beside C, [N, C]."""
    check_tensor(name, vector)
    channels, shape = x.shape[dim], vector.shape
    if shape != (channels,) and (dim == 0 or shape != (x.shape[0], channels)):
        accepted = [(channels,)] if dim == 0 else [(channels,), (x.shape[0], channels)]
        shapes = " or ".join(str(list(shape)) for shape in accepted)
        raise ValueError(
            f"{name} has shape {tuple(shape)}; accepted: {shapes}, for dim={dim} of x, "
            f"which has shape {tuple(x.shape)}"
        )
    check_like(name, vector, x)
