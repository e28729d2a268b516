"""Arguments for every custom operator that dgan_kernels registers, by the names of its schema."""

import torch


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def _alike(names, *shape):
    """Return tensors of one shape by their names, some of them not contiguous."""
    return {
        name: draw(*shape).movedim(1, -1).contiguous().movedim(-1, 1) if i % 2 else draw(*shape)
        for i, name in enumerate(names.split())
    }


_BIAS_ACT = {"act": "silu", "gain": 1.5, "clamp": 2.0, "dim": 1}
_FIR = {"up": [2, 1], "down": [1, 2], "padding": [2, 1, 2, 1], "flip": False, "gain": 1.5}
_FIR |= {"act": "silu", "act_gain": 1.5, "clamp": 2.0, "bias": draw(1, 3, 1, 1)}
_LAST = draw(2, 3, 4, 2).to(memory_format=torch.channels_last)
_NORM = _alike("x dy v tx", 2, 1, 3, 4) | {"centred": True, "act": "silu", "eps": 0.1}
_AFFINE = {"weight": draw(2, 1, 3, 1), "bias": draw(2, 1, 3, 1), "shift": draw(2, 2, 1, 3)}
_ROWS = _alike("x y real fake gradient", 3, 5) | {"factor": 2.0, "one_sided": True}
_ROWS |= {name: torch.rand(3) for name in ("weight", "squares", "mix")}
_STDDEV = _alike("x v", 2, 3, 2, 5) | {"ds": draw(3, 2), "eps": 1e-8}

SAMPLES = {
    "bias_act": [_BIAS_ACT | _alike("x dy v", 2, 3, 4, 2) | {"bias": draw(1, 3, 1, 1)}],
    "bias_act_scaled": [
        _BIAS_ACT
        | _alike("x dy v t", 2, 3, 4)
        | {f"{kind}{name}": draw(*shape) for kind in ("", "v", "t")
           for name, shape in (("scale", (2, 3, 1)), ("noise", (1, 1, 4)), ("bias", (1, 3, 1)))}
    ],
    "upfirdn2d": [
        _FIR | {"x": draw(2, 3, 4, 2), "filter": draw(3)},
        _FIR | {"x": _LAST, "filter": draw(1, 2, 3), "bias": None},
    ],
    "norm_act": [
        _NORM | _AFFINE | {"over": "group"},
        _NORM | {"over": "channels"},
        _NORM | _AFFINE | {"over": "batch", "stats": torch.rand(2, 3)},
    ],
    **{name: [_ROWS] for name in
       ("squared_norm", "sample_dot", "sample_scale", "interpolate", "penalty_direction")},
    "group_stddev": [_STDDEV],
}  # fmt: skip
"""For an operator and those named after it, one or more sets of arguments."""


def samples(schema):
    """Return each set of arguments for the operator of this schema, in order; None if absent."""
    name = schema.name.removeprefix("dgan_kernels::")
    family = max((f for f in SAMPLES if f"{name}_".startswith(f"{f}_")), key=len)
    for values in SAMPLES[family]:
        optional = [a.name for a in schema.arguments if "Optional" in str(a.type)]
        yield [values.get(a.name) if a.name in optional else values[a.name]
               for a in schema.arguments]  # fmt: skip
