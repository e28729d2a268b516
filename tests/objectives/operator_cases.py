"""Calls of every operator that PyTorch gets wrong: helpers."""

from typing import Any

import torch
import torch.nn.functional as F
from around import Call, Case, Operator
from exactness import numbers
from torch import Tensor


def stats(h: Tensor) -> tuple[Tensor, Tensor]:
    return numbers(h.shape[1], seed=5), numbers(h.shape[1], seed=6).abs() + 0.5


LAYER_NORM = [
    Case("affine", (4, 6), lambda h, w, b: ((h, (6,), w, b), {}), (6,)),
    Case("eps", (4, 3, 6), lambda h, w, b: ((h, (6,), w, b, 1e-2), {}), (6,)),
    Case("no bias", (4, 3, 6), lambda h, w, b: ((h, [6], w), {}), (6,)),
    Case("two dimensions", (4, 3, 6), lambda h, w, b: ((h, (3, 6)), {"weight": w}), (3, 6)),
    Case("plain", (4, 2, 3, 6), lambda h, w, b: ((h, torch.Size([6])), {}), (6,)),
]


def statistics_of_samples(h: Tensor, w: Tensor, b: Tensor) -> Call:
    return (h, *stats(h), w, b, True, 0.3, 1e-3), {}


BATCH_NORM = [
    Case("training", (6, 3), lambda h, w, b: ((h, *stats(h), w, b, True), {}), (3,)),
    Case("momentum", (6, 3, 5), statistics_of_samples, (3,)),
    Case("no statistics", (4, 3, 2, 5), lambda h, w, b: ((h, None, None, w, b, True), {}), (3,)),
    Case("plain", (4, 3, 2, 5), lambda h, w, b: ((h, None, None), {"training": True}), (3,)),
    Case("evaluation", (6, 3, 5), lambda h, w, b: ((h, *stats(h), w, b), {"eps": 1e-3}), (3,)),
]
INSTANCE_NORM = [
    Case("plain", (4, 3, 7), lambda h, w, b: ((h,), {}), (3,)),
    Case("affine", (4, 3, 2, 5), lambda h, w, b: ((h, None, None, w, b), {"eps": 1e-3}), (3,)),
    Case("momentum", (4, 3, 7), statistics_of_samples, (3,)),
    Case(
        "evaluation",
        (4, 3, 7),
        lambda h, w, b: ((h, *stats(h), w, b), {"use_input_stats": False}),
        (3,),
    ),
]


def in_native_order(cases: list[Case]) -> list[Case]:
    """For `torch.batch_norm` and `instance_norm`: weight and bias first, all of it positional."""
    names = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")

    def native(case: Case) -> Case:
        def call(h: Tensor, w: Tensor, b: Tensor) -> Call:
            (_, *rest), extra = case.call(h, w, b)
            extra = (
                {"training": extra.pop("use_input_stats")}
                if len(extra) and ("use_input_stats" in extra)
                else extra
            )
            given = {
                "training": cases is INSTANCE_NORM,
                "momentum": 0.1,
                "eps": 1e-5,
                **dict.fromkeys(names[:4]),
                **dict(zip(names, rest)),
                **extra,
            }
            order = ("weight", "bias", "running_mean", "running_var", *names[4:])
            return (h, *[given[name] for name in order], False), {}

        return Case(case.name, case.shape, call, case.affine)

    return [native(case) for case in cases]


def by_dim(*calls: tuple[str, tuple[int, ...], tuple[Any, ...], dict[str, Any]]) -> list[Case]:
    """Calls that take the input and constants."""

    def case(name: str, shape: tuple[int, ...], args: Any, kwargs: Any) -> Case:
        return Case(name, shape, lambda h, w, b: ((h * w + b, *args), kwargs), shape[1:])

    return [case(*call) for call in calls]


SOFTMAX = by_dim(
    ("last", (4, 6), (-1,), {}),
    ("named", (4, 3, 6), (), {"dim": 1}),
    ("four", (4, 2, 3, 5), (2,), {}),
)
NATIVE_SOFTMAX = SOFTMAX + by_dim(("first", (4, 6), (0,), {}))
FUNCTIONAL_SOFTMAX = SOFTMAX + by_dim(
    ("no dim, matrix", (4, 6), (), {"_stacklevel": 1}),
    ("no dim, three", (4, 3, 6), (), {"_stacklevel": 1}),
    ("no dim, four", (4, 3, 2, 5), (), {"_stacklevel": 1}),
)
GLU = by_dim(("last", (4, 6), (), {}), ("channels", (4, 6, 3), (1,), {}))
# Beyond ±3 in places, so that all three pieces are met.
HARDSIGMOID = [Case("plain", (4, 60), lambda h, w, b: ((4 * h * w + b,), {}), (60,))]

MASK = torch.ones(5, 5, dtype=torch.bool).tril(1)


def attention_case(name: str, shape: tuple[int, ...], **kwargs: Any) -> Case:
    def call(h: Tensor, w: Tensor, b: Tensor) -> Call:
        key, value = h.roll(1, -2) * w, h.roll(2, -1) + b
        if kwargs.get("enable_gqa"):
            key, value = key[:, :2], value[:, :2]
        return (h, key, value), kwargs

    return Case(name, shape, call, shape[-1:])


ATTENTION = [
    attention_case("plain", (3, 2, 5, 4)),
    attention_case("three dimensions", (3, 5, 4), dropout_p=0.0),
    attention_case("boolean mask", (3, 2, 5, 4), attn_mask=MASK),
    attention_case("added mask", (3, 2, 5, 4), attn_mask=numbers(3, 1, 5, 5, seed=8)),
    attention_case("causal", (3, 2, 5, 4), is_causal=True),
    attention_case("scale", (3, 2, 5, 4), scale=0.7),
    attention_case("grouped", (3, 4, 5, 4), enable_gqa=True),
]


def multi_head_case(name: str, **kwargs: Any) -> Case:
    def call(h: Tensor, w: Tensor, b: Tensor) -> Call:
        sequence = h.transpose(0, 1)
        project, out = numbers(24, 8, seed=3) * w / 2, numbers(8, 8, seed=4) + b
        fixed = (8, 2, project, numbers(24, seed=5), None, None, False, 0.0, out, b)
        return (sequence, sequence, sequence, *fixed), kwargs

    return Case(name, (3, 5, 8), call, (8,))


MULTI_HEAD = [
    multi_head_case("weights"),
    multi_head_case("no weights", need_weights=False),
    multi_head_case("masked", need_weights=False, attn_mask=~MASK),
    multi_head_case("padding", key_padding_mask=torch.arange(5).expand(3, 5) > 3),
]
GUMBEL = by_dim(("warm", (4, 6), (), {"tau": 2.0}), ("dim", (4, 3, 6), (), {"dim": 1}))

CASES: dict[Operator, list[Case]] = {
    F.layer_norm: LAYER_NORM,
    torch.layer_norm: LAYER_NORM,
    F.instance_norm: INSTANCE_NORM,
    torch.instance_norm: in_native_order(INSTANCE_NORM),
    F.batch_norm: BATCH_NORM,
    torch.batch_norm: in_native_order(BATCH_NORM),
    torch.softmax: NATIVE_SOFTMAX,
    torch.special.softmax: SOFTMAX,
    Tensor.softmax: NATIVE_SOFTMAX,
    F.softmax: FUNCTIONAL_SOFTMAX,
    F.softmin: FUNCTIONAL_SOFTMAX,
    torch.log_softmax: NATIVE_SOFTMAX,
    torch.special.log_softmax: SOFTMAX,
    Tensor.log_softmax: NATIVE_SOFTMAX,
    F.log_softmax: FUNCTIONAL_SOFTMAX,
    F.glu: GLU,
    F.hardsigmoid: HARDSIGMOID,
    F.scaled_dot_product_attention: ATTENTION,
    F.multi_head_attention_forward: MULTI_HEAD,
    F.gumbel_softmax: GUMBEL,
}
SILENTLY_WRONG = (
    *(F.layer_norm, torch.layer_norm, F.instance_norm, torch.instance_norm),
    *(F.batch_norm, torch.batch_norm),
)
"""The others raise."""
# PyTorch computes hardsigmoid's first derivative with a 1/6 of float32, in float64 too.
TOLERANCE = {F.hardsigmoid: 1e-7}
