"""minibatch_stddev: tell a discriminator how much the samples of a batch differ."""

import torch
from torch import Tensor

from dgan_kernels import reference_minibatch_stddev as reference
from dgan_kernels.checks import TRITON, check_input, check_number, runs_triton
from dgan_kernels.rows import memory_order

if TRITON:
    from dgan_kernels import triton_minibatch_stddev as kernels
else:
    kernels = None


def minibatch_stddev(
    x: Tensor,
    group_size: int = 4,
    num_channels: int = 1,
    eps: float = 1e-8,
    *,
    backend: str | None = None,
) -> Tensor:
    """Append channels that hold the standard deviation over a group of samples.

    Karras et al. 2018, section 3, in the form of StyleGAN2's discriminator (Karras et al. 2020):
    the standard deviation over the group of every feature at every position, averaged over
    features and positions, as one constant channel. Sample n is in group n mod N/G.

    Args:
        x: [N, C] or [N, C, *spatial]; float16, bfloat16, float32 or float64.
        group_size: G, how many samples are compared. Where it does not divide N, the largest
            divisor of N below it is taken; 1 gives the constant √eps.
        num_channels: F, how many channels are appended: one for each of F equal sets of
            successive channels. A divisor of C.
        eps: added to the (biased) variance before the root; above 0.
        backend: "triton", "reference" (plain PyTorch), or None to choose: Triton for 16-bit and
            32-bit tensors on a GPU, the reference for everything else.

    Returns:
        [N, C + F, *spatial], of x's dtype and memory order (contiguous or channels_last). The
        deviation is computed in float32, in float64 for a float64 x.

    Derivatives:
        Triton: first and second, reverse over reverse, reverse over forward, forward over reverse,
        through torch.autograd, torch.func and torch.compile. The reference: any order.

    Limits:
        StyleGAN2 uses it at 4×4 pixels, where the time is that of starting kernels: some 4 in
        place of 10 forward, so that 1-2× against torch.compile is all to expect, in a layer that
        is nowhere near the longest. Appending the channels copies x, in PyTorch.
        In Triton a third derivative, and forward over forward, raise NotImplementedError. vmap,
        torch.func or forward_ad inside torch.compile, and groups of more than 64 samples run in
        plain PyTorch. With num_channels above 1, channels_last memory is copied.
        A batch spread over ranks is compared within each rank.
    """
    check_input("x", x)
    for name, value in (("group_size", group_size), ("num_channels", num_channels)):
        if not (isinstance(value, int) and value >= 1):
            raise ValueError(f"{name}={value!r}; accepted: an integer of at least 1")
    if x.shape[1] % num_channels:
        raise ValueError(
            f"num_channels={num_channels}; accepted: a divisor of x's {x.shape[1]} channels"
        )
    check_number("eps", eps)
    if eps <= 0:
        raise ValueError(f"eps={eps}; accepted: a finite number above 0")
    triton = runs_triton(x, backend, "minibatch_stddev")
    if x.numel() == 0:
        return torch.cat([x, x.new_zeros(x.shape[0], num_channels, *x.shape[2:])], 1)
    group = group_size_for(x.shape[0], group_size)
    order = memory_order(x) if num_channels == 1 else list(range(x.ndim))
    grouped = x.permute(*order).reshape(group, x.shape[0] // group, num_channels, -1)
    if triton and kernels is not None and group <= kernels.MAX_GROUP:
        deviation = kernels.FORWARD(grouped, eps)
    else:
        deviation = reference.group_stddev(grouped, eps)
    channels = deviation.to(x.dtype).repeat(group, 1)  # [N, F]
    channels = channels.view(*channels.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
    return torch.cat([x, _in_order_of(x, channels)], 1)


def group_size_for(samples: int, wanted: int) -> int:
    """Return the largest divisor of ``samples`` that is not above ``wanted``."""
    return next(size for size in range(min(samples, wanted), 0, -1) if samples % size == 0)


def _in_order_of(x: Tensor, channels: Tensor) -> Tensor:
    """Return ``channels`` such that appending them to x keeps x's memory order."""
    last = torch.channels_last
    if x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=last):
        return channels.contiguous(memory_format=last)
    return channels
