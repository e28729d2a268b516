"""The operators where there is no GPU: `dgan_kernels` beside the stock layers that do the same.

    python benchmarks/kernels/on_cpu.py [--out FOLDER]

Forward, forward and backward, and a gradient penalty (differentiated twice), float32, in turns;
medians. What counts is the ratio: 1 is as fast as plain PyTorch, less is faster.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
import dgan_kernels
from report import store

ROUNDS = 15
SHAPES = ((16, 64, 32, 32), (16, 256, 8, 8))
TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8

Layer = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of x `[N, C, H, W]`, a scale and a shift `[C]`."""


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


def normed(norm: str, act: str, **options: Any) -> Layer:
    return lambda x, w, b: dgan_kernels.norm_act(x, w, b, norm=norm, act=act, **options)


PAIRS: dict[str, tuple[Layer, Layer]] = {
    "bias, leaky ReLU, gain": (
        lambda x, w, b: dgan_kernels.bias_act(x, b, act="leaky_relu", gain=2**0.5),
        lambda x, w, b: F.leaky_relu(x + b[:, None, None], 0.2) * 2**0.5,
    ),
    "GroupNorm, SiLU": (
        normed("group", "silu", groups=16),
        lambda x, w, b: F.silu(F.group_norm(x, 16, w, b)),
    ),
    "InstanceNorm, leaky ReLU": (
        normed("instance", "leaky_relu"),
        lambda x, w, b: F.leaky_relu(F.instance_norm(x, weight=w, bias=b), 0.2),
    ),
    "BatchNorm, ReLU": (
        normed("batch", "relu"),
        lambda x, w, b: F.relu(F.batch_norm(x, None, None, w, b, training=True)),
    ),
    "LayerNorm over channels": (
        normed("layer", "linear", dim=1),
        lambda x, w, b: F.layer_norm(x.movedim(1, -1), w.shape, w, b).movedim(-1, 1),
    ),
    "upsampling": (
        lambda x, w, b: dgan_kernels.upsample2d(x, TAPS),
        lambda x, w, b: depthwise(x, up=True),
    ),
    "downsampling": (
        lambda x, w, b: dgan_kernels.downsample2d(x, TAPS),
        lambda x, w, b: depthwise(x, up=False),
    ),
    "minibatch deviation": (
        lambda x, w, b: dgan_kernels.minibatch_stddev(x),
        lambda x, w, b: deviation(x),
    ),
}


def orders(layer: Layer, x: Tensor, w: Tensor, b: Tensor) -> dict[str, Callable[[], Any]]:
    """What is timed: each computes from the inputs on."""

    def forward() -> Tensor:
        with torch.no_grad():
            return layer(x, w, b)

    def backward() -> tuple[Tensor | None, ...]:
        y = layer(x, w, b)
        return torch.autograd.grad(y, (x, w, b), torch.ones_like(y), allow_unused=True)

    def penalty() -> tuple[Tensor | None, ...]:
        # A curved function of the result, so that the second derivative is not zero.
        (dx,) = torch.autograd.grad(layer(x, w, b).square().sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), (x, w, b), allow_unused=True)

    return {"forward": forward, "backward": backward, "penalty": penalty}


def milliseconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the operators' CPU paths.")
    parser.add_argument("--out", type=Path, help="folder for the results")
    options = parser.parse_args()
    rows = []
    for shape in SHAPES:
        generator = torch.Generator().manual_seed(0)
        x, w, b = (torch.randn(s, generator=generator) for s in (shape, shape[1:2], shape[1:2]))
        inputs = tuple(t.requires_grad_() for t in (x, w, b))
        for name, pair in PAIRS.items():
            ours, plain = (orders(layer, *inputs) for layer in pair)
            for order in ours:
                torch.testing.assert_close(ours[order](), plain[order](), rtol=1e-3, atol=1e-3)
                turns = [
                    (milliseconds(ours[order]), milliseconds(plain[order])) for _ in range(ROUNDS)
                ]
                mine, theirs = (statistics.median(times) for times in zip(*turns))
                ratio = statistics.median(m / t for m, t in turns)
                rows.append(
                    {"layer": name, "shape": list(shape), "order": order}
                    | {"ours_ms": mine, "plain_ms": theirs, "ratio": ratio}
                )
                size = "×".join(map(str, shape))
                print(f"{name:26s}{size:14s}{order:9s}{mine:8.2f}{theirs:8.2f} ms {ratio:6.2f}")
    store("kernels-on-cpu", rows, out=options.out)


if __name__ == "__main__":
    main()
