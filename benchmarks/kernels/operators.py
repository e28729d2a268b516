"""The registry: every operator's cases and byte model."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import dgan_kernels
from dgan_kernels.reference import ACTIVATIONS
from kernels.harness import Case, Operator

BF16, F32 = torch.bfloat16, torch.float32
ON_CHIP = 8192
"""Elements of a group whose statistics take one sweep; larger ones take two."""


def discriminator() -> Iterator[tuple[int, ...]]:
    """The layers of a discriminator, 134 MB each in 16 bits: beyond every cache."""
    for channels, side in ((1024, 8), (512, 32), (256, 64), (128, 128), (64, 256), (32, 512)):
        yield 2**26 // (channels * side**2), channels, side, side


def channels_of(case: Case) -> int:
    return case.shape[-1] if case.options.get("norm") in ("layer", "rms") else case.shape[1]


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
        for shape in list(discriminator())[1::2]
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
        Case(shape, BF16, bias_act_options("leaky_relu")) for shape in list(discriminator())[1::2]
    ),
    small=(
        Case((2, 8, 16, 16), F32, bias_act_options("leaky_relu")),
        Case((2, 8, 16, 16), F32, bias_act_options("silu"), "channels_last"),
    ),
)


def group_size(case: Case) -> int:
    """How many elements share statistics."""
    plane = torch.Size(case.shape[2:]).numel()
    sizes = {
        "instance": plane,
        "group": channels_of(case) // (case.options.get("groups") or 1) * plane,
        "batch": case.shape[0] * plane,
    }
    return sizes.get(case.options["norm"], channels_of(case))


def norm_act_sweeps(case: Case) -> dict[str, float]:
    fits = group_size(case) <= ON_CHIP and case.options["norm"] != "batch"
    forward, backward, second = (2, 3, 5) if fits else (3, 5, 8)
    tangent = 4 if fits else 6
    return {
        **{"forward": forward, "backward": backward, "dx": backward},
        **{"second": second, "tangent": tangent},
    }


def stock_norm(case: Case) -> Callable[..., Tensor]:
    """torch.nn's norm followed by the activation; plain formulas where torch.nn has none."""
    options, width = case.options, (channels_of(case),)
    act = ACTIVATIONS[options["act"]].value
    if options["norm"] in ("pixel", "rms"):
        return lambda x, w, b: dgan_kernels.norm_act(x, w, b, backend="reference", **options)
    norms = {
        "instance": lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
        "group": lambda x, w, b: F.group_norm(x, options["groups"], w, b),
        "layer": lambda x, w, b: F.layer_norm(x, width, w, b),
        "batch": lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
    }
    norm = norms[options["norm"]]
    return lambda x, w, b: act(norm(x, w, b))


NORM_ACT = Operator(
    name="norm_act",
    call=dgan_kernels.norm_act,
    parameters=lambda case, draw: [draw(channels_of(case)).requires_grad_() for _ in range(2)],
    sweeps=norm_act_sweeps,
    eager=stock_norm,
    cases=(
        *(
            Case(shape, dtype, {"norm": norm, "act": act, "groups": groups})
            for shape in discriminator()
            for dtype in (BF16, F32)
            for norm, act, groups in (("group", "silu", 32), ("instance", "leaky_relu", None))
        ),
        Case((256, 256, 1024), BF16, {"norm": "layer", "act": "linear"}),
        Case((256, 256, 1024), BF16, {"norm": "rms", "act": "linear"}),
        Case((32, 512, 64, 64), BF16, {"norm": "pixel", "act": "leaky_relu"}),
        Case((32, 256, 64, 128), BF16, {"norm": "batch", "act": "relu"}),
    ),
    small=(
        Case((2, 8, 8, 8), F32, {"norm": "group", "act": "silu", "groups": 2}),
        Case((1, 2, 96, 96), F32, {"norm": "instance", "act": "leaky_relu"}),
        Case((2, 5, 24), F32, {"norm": "layer", "act": "silu"}),
    ),
)

FILTER = (1.0, 3.0, 3.0, 1.0)


def resampled(x: Tensor, *, backend: str | None, **options: Any) -> Tensor:
    taps = torch.tensor(FILTER, device=x.device) / 8
    return dgan_kernels.upfirdn2d(x, taps, backend=backend, **options)


def upfirdn2d_sweeps(case: Case) -> dict[str, float]:
    ratio = (case.options.get("up", 1) / case.options.get("down", 1)) ** 2
    once = 1 + ratio  # x read, y written, or the other way round
    return {"forward": once, "backward": once, "dx": once, "second": once}


UPFIRDN2D = Operator(
    name="upfirdn2d",
    call=resampled,
    parameters=lambda case, draw: [],
    sweeps=upfirdn2d_sweeps,
    cases=tuple(
        Case(shape, dtype, options, layout)
        for shape in ((16, 512, 64, 64), (16, 128, 256, 256))
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
    sweeps=lambda case: {"forward": 1, "backward": 2, "dx": 2, "second": 3},
    cases=tuple(Case((64, 4, 512, 512), dtype) for dtype in (BF16, F32)),
    small=(Case((4, 3, 9, 11), F32),),
)

MINIBATCH_STDDEV = Operator(
    name="minibatch_stddev",
    call=dgan_kernels.minibatch_stddev,
    parameters=lambda case, draw: [],
    sweeps=lambda case: {"forward": 2, "backward": 3, "dx": 3, "second": 5},
    cases=(Case((32, 512, 4, 4), torch.float16), Case((64, 512, 32, 32), BF16)),
    small=(Case((4, 3, 9, 11), F32),),
)


def constant(function: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    """An operator without derivatives, of x and of numbers and tensors that go with it."""

    def call(x: Tensor, *, backend: str | None) -> Tensor:
        numbers = torch.linspace(0.1, 1, len(x), device=x.device)
        others = (x.detach().flip(0),) if function is dgan_kernels.interpolate else ()
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

OPERATORS = {
    operator.name: operator
    for operator in (
        *(NORM_ACT, BIAS_ACT, BIAS_ACT_SCALE_NOISE, UPFIRDN2D),
        *(SQUARED_NORM, PENALTY_DIRECTION, INTERPOLATE, MINIBATCH_STDDEV),
    )
}
"""By name, the most telling first: time on a GPU may be short."""
