"""norm_act and AdaLN: their cases and byte model."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import dgan_kernels
from dgan_kernels.reference import ACTIVATIONS
from kernels.harness import Case, Operator
from kernels.shapes import FEW, discriminator

BF16, F32, LAST = torch.bfloat16, torch.float32, "channels_last"


def channels_of(case: Case) -> int:
    return case.shape[-1] if case.options.get("norm") in ("layer", "rms") else case.shape[1]


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
    # As in `triton_norm_launch`: what statistics take one sweep of, and what takes two.
    fits = group_size(case) <= (8192 if case.dtype.itemsize == 2 else 4096)
    fits = fits and case.options["norm"] != "batch"
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
            for shape in (*discriminator(), *FEW)
            for dtype in (BF16, F32)
            for norm, act, groups in (("group", "silu", 32), ("instance", "leaky_relu", None))
        ),
        *(
            Case((32, 512, 64, 64), BF16, {"norm": norm, "act": act, "groups": groups}, LAST)
            for norm, act, groups in (("group", "silu", 32), ("pixel", "leaky_relu", None))
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


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """As a transformer with adaptive layer norm writes it."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-5) * scale[:, None] + shift[:, None]


ADALN = Operator(
    name="norm_act_adaln",
    call=dgan_kernels.norm_act,
    parameters=lambda case, draw: [
        draw(case.shape[0], case.shape[-1]).requires_grad_() for _ in range(2)
    ],
    sweeps=norm_act_sweeps,
    eager=lambda case: modulated,
    cases=tuple(
        Case(shape, dtype, {"norm": "layer"})
        for shape in ((256, 256, 1024), (4, 64, 384))
        for dtype in (BF16, F32)
    ),
    small=(Case((2, 5, 24), F32, {"norm": "layer"}),),
)
