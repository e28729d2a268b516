"""What `on_cpu.py` compares: operators of `dgan_kernels`, and the plain PyTorch for the same layer.

Each layer is what a careful user would write with torch.nn.functional; it takes the tensors of its
case, of which the first is x.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import dgan_kernels

TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
IMAGES = ((16, 64, 32, 32), (16, 256, 8, 8))
TOKENS = ((16, 128, 256), (16, 64, 128))
HEADS = ((4, 4, 256, 32), (16, 4, 64, 32))
ALL = ("forward", "backward", "penalty")

Layer = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """A layer in two forms, on the same tensors."""

    name: str
    tensors: tuple[Tensor, ...]
    ours: Layer
    plain: Layer
    orders: tuple[str, ...] = ALL


def cases() -> Iterator[Case]:
    """Every row of the table."""
    for shape in IMAGES:
        yield from pointwise(shape)
        yield from norms_of_images(shape)
        yield from others(shape)
    for shape in TOKENS:
        yield from norms_of_tokens(shape)
    for shape in HEADS:
        tensors = draw(*[shape] * 6)
        yield Case(
            "attention, tangent", tensors, lambda *t: dgan_kernels.attention_jvp(*t), attention,
            orders=("forward", "backward"),
        )  # fmt: skip


def pointwise(shape: tuple[int, ...]) -> Iterator[Case]:
    n, c, *spatial = shape
    act = {"act": "leaky_relu", "gain": 2**0.5}
    x, b, s, noise = draw(shape, c, (n, c), (n, 1, *spatial))
    yield Case(
        "bias, leaky ReLU, gain",
        (x, b),
        lambda x, b: dgan_kernels.bias_act(x, b, **act),
        lambda x, b: F.leaky_relu(x + wide(b), 0.2) * 2**0.5,
    )
    yield Case(
        "the same, channels last",
        (x.to(memory_format=torch.channels_last), b),
        lambda x, b: dgan_kernels.bias_act(x, b, **act),
        lambda x, b: F.leaky_relu(x + wide(b), 0.2) * 2**0.5,
    )
    yield Case(
        "scale, noise, bias, leaky ReLU, gain",
        (x, b, s, noise),
        lambda x, b, s, noise: dgan_kernels.bias_act(x, b, scale=s, noise=noise, **act),
        lambda x, b, s, noise: F.leaky_relu(x * wide(s) + noise + wide(b), 0.2) * 2**0.5,
    )


def norms_of_images(shape: tuple[int, ...]) -> Iterator[Case]:
    n, c = shape[:2]
    x, w, b, ws, bs = draw(shape, c, c, (n, c), (n, c))

    def group_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, 16, w, b))

    by_groups = normed("group", "silu", groups=16)
    yield Case("GroupNorm, SiLU", (x, w, b), by_groups, group_norm)
    narrow = tuple(t.bfloat16() for t in (x, w, b))
    yield Case("the same, bfloat16", narrow, by_groups, group_norm)
    last = x.to(memory_format=torch.channels_last)
    yield Case("the same, channels last", (last, w, b), by_groups, group_norm)
    yield Case(
        "InstanceNorm, leaky ReLU",
        (x, w, b),
        normed("instance", "leaky_relu"),
        lambda x, w, b: F.leaky_relu(F.instance_norm(x, weight=w, bias=b), 0.2),
    )
    yield Case(
        "AdaIN, leaky ReLU",
        (x, ws, bs),
        normed("instance", "leaky_relu"),
        lambda x, w, b: F.leaky_relu(F.instance_norm(x) * wide(w) + wide(b), 0.2),
    )
    yield Case(
        "BatchNorm, ReLU",
        (x, w, b),
        normed("batch", "relu"),
        lambda x, w, b: F.relu(F.batch_norm(x, None, None, w, b, training=True)),
    )
    yield Case(
        "LayerNorm over channels",
        (x, w, b),
        normed("layer", "linear", dim=1),
        lambda x, w, b: F.layer_norm(x.movedim(1, -1), w.shape, w, b).movedim(-1, 1),
    )
    yield Case(
        "PixelNorm",
        (x,),
        normed("pixel", "linear"),
        lambda x: x * (x.square().mean(1, keepdim=True) + 1e-5).rsqrt(),
    )


def norms_of_tokens(shape: tuple[int, ...]) -> Iterator[Case]:
    n, _, c = shape
    x, w, b, ws, bs = draw(shape, c, c, (n, c), (n, c))
    yield Case(
        "LayerNorm",
        (x, w, b),
        normed("layer", "linear"),
        lambda x, w, b: F.layer_norm(x, w.shape, w, b),
    )
    yield Case(
        "AdaLN",
        (x, ws, bs),
        normed("layer", "linear"),
        lambda x, w, b: F.layer_norm(x, x.shape[-1:]) * w[:, None] + b[:, None],
    )
    yield Case(
        "RMSNorm", (x, w), normed("rms", "linear"), lambda x, w: F.rms_norm(x, w.shape, w, 1e-5)
    )


def others(shape: tuple[int, ...]) -> Iterator[Case]:
    n, c, *spatial = shape
    (x,) = draw(shape)
    last = x.to(memory_format=torch.channels_last)
    for name, image in (("", x), (", channels last", last)):
        yield Case(
            f"upsampling{name}",
            (image,),
            lambda x: dgan_kernels.upsample2d(x, TAPS),
            lambda x: depthwise(x, up=True),
        )
        yield Case(
            f"downsampling{name}",
            (image,),
            lambda x: dgan_kernels.downsample2d(x, TAPS),
            lambda x: depthwise(x, up=False),
        )
    yield Case("minibatch deviation", (x,), dgan_kernels.minibatch_stddev, deviation)
    yield Case("squared norm", (x,), dgan_kernels.squared_norm, lambda x: x.square().sum((1, 2, 3)))
    weight, styles, bias, noise = draw((c, c, 3, 3), (n, c), c, (n, 1, *spatial))
    yield Case(
        "modulated convolution",
        (x, weight / 3 / c**0.5, styles, bias, noise),
        lambda x, w, s, b, noise: dgan_kernels.modulated_conv2d(
            x, w, s, noise=noise, bias=b, padding=1, act="leaky_relu", gain=2**0.5
        ),
        modulated,
    )


def draw(*sizes: Any) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(size, generator=generator) for size in sizes)


def wide(vector: Tensor) -> Tensor:
    """[C] or [N, C] as it broadcasts against images."""
    return vector[..., None, None]


def normed(norm: str, act: str, **options: Any) -> Layer:
    return lambda *t: dgan_kernels.norm_act(*t, norm=norm, act=act, **options)


def depthwise(x: Tensor, up: bool) -> Tensor:
    kernel = (TAPS[:, None] * TAPS).expand(x.shape[1], 1, 4, 4)
    if up:
        return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=1, groups=x.shape[1])
    return F.conv2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


def deviation(x: Tensor) -> Tensor:
    groups = x.unflatten(0, (4, -1))
    std = (groups.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
    extra = std.repeat(4)[:, None, None, None].expand(-1, 1, *x.shape[2:])
    return torch.cat([x, extra], 1)


def modulated(x: Tensor, weight: Tensor, styles: Tensor, bias: Tensor, noise: Tensor) -> Tensor:
    """As StyleGAN2 has it: one group of a grouped convolution for each sample."""
    n, c, *spatial = x.shape
    w = weight[None] * styles[:, None, :, None, None]
    w = w * (w.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    y = F.conv2d(x.reshape(1, n * c, *spatial), w.flatten(0, 1), padding=1, groups=n)
    return F.leaky_relu(y.view(x.shape) + noise + wide(bias), 0.2) * 2**0.5


def attention(
    q: Tensor, k: Tensor, v: Tensor, qt: Tensor, kt: Tensor, vt: Tensor
) -> tuple[Tensor, Tensor]:
    """Softmax and products, with the tangent written out."""
    scale = 1 / math.sqrt(q.shape[-1])
    p = (scale * (q @ k.mT)).softmax(-1)
    moved = scale * (qt @ k.mT + q @ kt.mT)
    moved = p * (moved - (p * moved).sum(-1, keepdim=True))
    return p @ v, moved @ v + p @ vt
