"""Every operator of dgan_kernels inside a small network, for the matrix of routes.

A case is a function of (x, weight, bias, backend): x [N, C, H, W], weight and bias [C].
"""

import torch
import torch.distributed as dist
from torch import nn

import dgan_kernels as k

TAPS = torch.tensor([1.0, 3.0]) / 4
TILTED = torch.tensor([[0.5, -0.1], [0.2, 0.8]])  # not an outer product


def _norm(norm, act, **options):
    return lambda x, w, b, how: k.norm_act(
        x, w, b, norm=norm, act=act, eps=0.1, dim=1, backend=how, **options
    )


def _adaptive_layer_norm(x, w, b, how):
    scale, shift = w + x.mean((2, 3)), b - x.square().mean((2, 3))
    return k.norm_act(x, scale, shift, norm="layer", act="gelu", eps=0.1, dim=1, backend=how)


def _norm_over_ranks(x, w, b, how):
    group = dist.group.WORLD
    return k.norm_act(x, w, b, norm="batch", act="silu", eps=0.1, process_group=group, backend=how)


def _interpolate(x, w, b, how):
    here = x.detach()
    return x * k.interpolate(here, 2 * here, torch.linspace(0, 1, len(x)).to(x), backend=how)


def _penalty_direction(x, w, b, how):
    g = x.detach()
    squares = k.squared_norm(g, backend=how)
    return x * k.penalty_direction(g, squares, "one_centered", backend=how)


def _attention_jvp(x, w, b, how):
    q, u, v = (t.flatten(1, 2) for t in (x, x * w[:, None, None], x + b[:, None, None]))
    return torch.stack(k.attention_jvp(q, u, v, v, q, u, backend=how)).movedim(1, 0)


def _modulated_conv2d(x, w, b, how):
    styles = x.mean((2, 3)) + w
    kernel = torch.outer(w, b)[:, :, None, None] * TILTED.to(x)
    return k.modulated_conv2d(x, kernel, styles, up=2, resample_filter=TAPS, backend=how)


def _spectral_norm(x, w, b, how):  # in PyTorch alone
    matrix = torch.outer(w, b) + torch.diag(w)
    (sigma,) = k.spectral_norm_power_iteration([matrix], [torch.ones_like(w).detach()], 0)
    return torch.einsum("nchw,dc->ndhw", x, (matrix / sigma).to(x.dtype))


CASES = {
    "bias_act leaky_relu": lambda x, w, b, how: k.bias_act(
        x, b, act="leaky_relu", gain=1.5, clamp=2.0, backend=how
    ),
    "bias_act silu": lambda x, w, b, how: k.bias_act(x, b, act="silu", clamp=2.0, backend=how),
    "bias_act channels_last": lambda x, w, b, how: k.bias_act(x, b, act="silu", backend=how),
    "bias_act scale, noise": lambda x, w, b, how: k.bias_act(
        x, b, act="silu", clamp=2.0, backend=how, scale=x.mean((2, 3)) + w, noise=x.sum(1, True)
    ),
    "norm_act group": _norm("group", "silu", groups=2),
    "norm_act instance": _norm("instance", "leaky_relu"),
    "norm_act layer": _norm("layer", "gelu"),
    "norm_act rms": _norm("rms", "linear"),
    "norm_act pixel": _norm("pixel", "leaky_relu"),
    "norm_act batch": _norm("batch", "silu"),
    "norm_act batch over ranks": _norm_over_ranks,
    "norm_act AdaLN": _adaptive_layer_norm,
    "norm_act group in two sweeps": _norm("group", "silu", groups=1),
    "upsample2d": lambda x, w, b, how: k.upsample2d(x, TAPS, bias=b, act="silu", backend=how),
    "downsample2d": lambda x, w, b, how: k.downsample2d(x, TAPS, down=(2, 1), bias=b, backend=how),
    "filter2d": lambda x, w, b, how: k.filter2d(x, TILTED, backend=how),
    "upfirdn2d": lambda x, w, b, how: k.upfirdn2d(
        x, TAPS, up=(2, 1), down=(1, 2), padding=1, bias=b, act="softplus", clamp=4.0, backend=how
    ),
    "squared_norm": lambda x, w, b, how: (
        x * k.squared_norm(x / 4, backend=how).to(x.dtype)[:, None, None, None]
    ),
    "minibatch_stddev": lambda x, w, b, how: k.minibatch_stddev(x, 4, 2, backend=how)[:, -2:],
    "interpolate": _interpolate,
    "penalty_direction": _penalty_direction,
    "attention_jvp": _attention_jvp,
    "modulated_conv2d": _modulated_conv2d,
    "spectral_norm_power_iteration": _spectral_norm,
}


class Network(nn.Module):
    """An operator between layers that bend what passes, so that curvature crosses it."""

    def __init__(self, case, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draw = lambda *s: nn.Parameter(torch.randn(s, generator=generator))  # noqa: E731
        self.mix, self.slope = draw(4, 2, 1, 1), draw(4, 1, 1)
        self.weight, self.bias, self.head = draw(4), draw(4), draw(1)
        self.case, self.backend = case, "reference" if dtype == torch.float64 else "triton"
        self.to(dtype)

    def forward(self, x):
        x = torch.nn.functional.conv2d(x, self.mix)
        x = 2 * (x * self.slope.to(x.dtype)).tanh()
        # A kernel takes one dtype: under autocast the convolution's.
        y = CASES[self.case](x, self.weight.to(x.dtype), self.bias.to(x.dtype), self.backend)
        return (y.to(self.head.dtype) + self.head).square().flatten(1).mean(1)


def images(case):
    """Return few enough that a kernel is a program or two: the interpreter takes long for each."""
    filtered = case in ("upsample2d", "downsample2d", "filter2d", "upfirdn2d", "modulated_conv2d")
    coupled = case in ("minibatch_stddev", "norm_act batch", "norm_act batch over ranks")
    samples, height, width = (4, 1, 2) if coupled else (2, 1 if filtered else 2, 2)
    if case.endswith("two sweeps"):
        height, width = 1, 1025  # which counts as 2048, and of four channels a chip holds 4096
    x = torch.randn(samples, 2, height, width, generator=torch.Generator().manual_seed(1))
    last = filtered or case.endswith("channels_last")
    return x.to(memory_format=torch.channels_last) if last else x
