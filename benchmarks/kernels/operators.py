"""The registry: every operator's cases and byte model."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import dgan_kernels
from dgan_kernels.reference import ACTIVATIONS
from kernels.harness import Case, Operator
from kernels.norms import ADALN, NORM_ACT
from kernels.shapes import FEW, discriminator

BF16, F32 = torch.bfloat16, torch.float32


def bias_act_sweeps(case: Case) -> dict[str, float]:
    second = 3 if ACTIVATIONS[case.options["act"]].second is None else 5
    return {"forward": 2, "backward": 3, "dx": 3, "second": second, "tangent": 4}


def bias_act_options(act: str) -> dict[str, Any]:
    return {"act": act, "gain": 2**0.5, "clamp": 256.0 if act == "leaky_relu" else None}


BIAS_ACT = Operator(
    name="bias_act",
    call=dgan_kernels.bias_act,
    parameters=lambda case, draw: [draw(case.shape[1]).requires_grad_()],
    sweeps=bias_act_sweeps,
    cases=tuple(
        Case(shape, dtype, bias_act_options(act), layout)
        for shape in (*discriminator(), *FEW)
        for act, dtype, layout in (
            ("leaky_relu", BF16, "contiguous"),
            ("leaky_relu", BF16, "channels_last"),
            ("silu", BF16, "contiguous"),
            ("silu", F32, "contiguous"),
        )
    ),
    small=(Case((2, 8, 16, 16), F32, bias_act_options("silu"), "channels_last"),),
)


def demodulated(x: Tensor, scale: Tensor, noise: Tensor, bias: Tensor, **options: Any) -> Tensor:
    """What StyleGAN2 does after a convolution: demodulate, add noise and bias, activate."""
    return dgan_kernels.bias_act(x, bias, scale=scale, noise=noise, **options)


def demodulated_parameters(case: Case, draw: Callable[..., Tensor]) -> list[Tensor]:
    samples, channels, *sides = case.shape
    shapes = ((samples, channels), (samples, 1, *sides), (channels,))
    return [draw(*shape).requires_grad_() for shape in shapes]


def demodulated_sweeps(case: Case) -> dict[str, float]:
    """What the kernels move, which is more than the least, unlike the other operators' sweeps.

    The gradients of scale, noise and bias come from float32 sums of tiles of 32 by 64, which are
    written and read: one for each 32 elements, two for each 64. The double backward's share of x
    is written, though it is 0 where, as here, nothing curves and dx alone is differentiated again.
    Forward mode takes y, and then its tangent.
    """
    sums = 2 * 4 * (1 / 32 + 2 / 64) / case.dtype.itemsize
    return {"forward": 2, "backward": 3 + sums, "dx": 3 + sums, "second": 5 + sums, "tangent": 5}


BIAS_ACT_SCALE_NOISE = Operator(
    name="bias_act_scale_noise",
    call=demodulated,
    parameters=demodulated_parameters,
    sweeps=demodulated_sweeps,
    cases=tuple(
        Case(shape, BF16, bias_act_options("leaky_relu")) for shape in (*discriminator(), FEW[0])
    ),
    small=(
        Case((2, 8, 16, 16), F32, bias_act_options("leaky_relu")),
        Case((2, 8, 16, 16), F32, bias_act_options("silu"), "channels_last"),
    ),
)


FILTER = (1.0, 3.0, 3.0, 1.0)


def resampled(x: Tensor, *, backend: str | None, **options: Any) -> Tensor:
    taps = torch.tensor(FILTER, device=x.device) / 8
    return dgan_kernels.upfirdn2d(x, taps, backend=backend, **options)


def upfirdn2d_sweeps(case: Case) -> dict[str, float]:
    ratio = (case.options.get("up", 1) / case.options.get("down", 1)) ** 2
    once = 1 + ratio  # x read, y written, or the other way round
    once_each = dict.fromkeys(("forward", "backward", "dx", "second"), once)
    return {**once_each, "tangent": 2 * once}


UPFIRDN2D = Operator(
    name="upfirdn2d",
    call=resampled,
    parameters=lambda case, draw: [],
    sweeps=upfirdn2d_sweeps,
    cases=tuple(
        Case(shape, dtype, options, layout)
        # Half of a discriminator's layers: the result of scaling up is four times as large.
        for shape in (*((max(1, n // 4), *rest) for n, *rest in discriminator()), *FEW)
        for options in (
            {"up": 2, "padding": (2, 1, 2, 1), "gain": 4.0},
            {"down": 2, "padding": (1, 1, 1, 1)},
        )
        for dtype, layout in ((BF16, "contiguous"), (BF16, "channels_last"), (F32, "contiguous"))
    ),
    small=(Case((1, 3, 9, 7), F32, {"up": 2, "padding": (2, 1, 2, 1), "gain": 4.0}),),
)

SQUARED_NORM = Operator(
    name="squared_norm",
    call=dgan_kernels.squared_norm,
    parameters=lambda case, draw: [],
    sweeps=lambda case: {"forward": 1, "backward": 2, "dx": 2, "second": 3, "tangent": 2},
    cases=tuple(
        Case(shape, dtype) for shape in ((64, 4, 512, 512), (4, 3, 64, 64)) for dtype in (BF16, F32)
    ),
    small=(Case((4, 3, 9, 11), F32),),
)

MINIBATCH_STDDEV = Operator(
    name="minibatch_stddev",
    call=dgan_kernels.minibatch_stddev,
    parameters=lambda case, draw: [],
    sweeps=lambda case: {"forward": 2, "backward": 3, "dx": 3, "second": 5, "tangent": 4},
    cases=(Case((32, 512, 4, 4), torch.float16), Case((64, 512, 32, 32), BF16)),
    small=(Case((4, 3, 9, 11), F32),),
)


def constant(function: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    """An operator without derivatives, of x and of numbers and tensors that go with it."""

    def call(x: Tensor, *, backend: str | None) -> Tensor:
        numbers = torch.linspace(0.1, 1, len(x), device=x.device)
        x = x.detach()
        others = (x.flip(0),) if function is dgan_kernels.interpolate else ()
        return function(x, *others, numbers, backend=backend, **options)

    return call


PENALTY_DIRECTION = Operator(
    name="penalty_direction",
    call=constant(dgan_kernels.penalty_direction, kind="one_centered"),
    parameters=lambda case, draw: [],
    sweeps=lambda case: {"forward": 2},
    cases=(Case((64, 4, 512, 512), F32),),
    small=(Case((4, 3, 9, 11), F32),),
)

INTERPOLATE = Operator(
    name="interpolate",
    call=constant(dgan_kernels.interpolate),
    parameters=lambda case, draw: [],
    sweeps=lambda case: {"forward": 3},
    cases=(Case((64, 4, 512, 512), F32),),
    small=(Case((4, 3, 9, 11), F32),),
)


def modulated(x: Tensor, weight: Tensor, styles: Tensor, *, backend: str | None) -> Tensor:
    return dgan_kernels.modulated_conv2d(x, weight, styles, padding=1, backend=backend)


def with_weights_of_its_own(x: Tensor, weight: Tensor, styles: Tensor) -> Tensor:
    """What StyleGAN2 publishes: each sample's weights are built, and the batch is one of groups."""
    own = weight * styles[:, None, :, None, None]
    own = own * (own.float().square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt().to(x.dtype)
    samples, outputs = own.shape[:2]
    y = F.conv2d(x.flatten(0, 1)[None], own.flatten(0, 1), padding=1, groups=samples)
    return y.view(samples, outputs, *y.shape[2:])


MODULATED_CONV2D = Operator(
    name="modulated_conv2d",
    call=modulated,
    parameters=lambda case, draw: [
        draw(case.shape[1], case.shape[1], 3, 3).requires_grad_(),
        draw(*case.shape[:2]).requires_grad_(),
    ],
    # As if its products took no time; they take most of it, so that times are to be compared.
    sweeps=lambda case: {"forward": 2, "backward": 3, "dx": 3, "second": 5},
    eager=lambda case: with_weights_of_its_own,
    cases=tuple(Case(shape, BF16) for shape in ((16, 512, 32, 32), (16, 128, 128, 128))),
    small=(Case((2, 4, 6, 6), F32),),
)

OPERATORS = {
    operator.name: operator
    for operator in (
        *(NORM_ACT, ADALN, BIAS_ACT, BIAS_ACT_SCALE_NOISE, UPFIRDN2D, MODULATED_CONV2D),
        *(SQUARED_NORM, PENALTY_DIRECTION, INTERPOLATE, MINIBATCH_STDDEV),
    )
}
"""By name, the most telling first: time on a GPU may be short."""
