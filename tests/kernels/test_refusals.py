"""What no operator takes: it says which argument, and what is accepted. (Shapes, dtypes and devices
are in each operator's own tests.)
"""

import inspect

import pytest
import torch

import dgan_kernels as k

X, C, N = torch.randn(2, 4, 3, 3), torch.randn(4), torch.randn(2)
TAPS = torch.ones(3)
STYLED = {"weight": torch.randn(4, 4, 1, 1), "styles": torch.randn(2, 4)}
ATTENTION = dict.fromkeys(
    ["query", "key", "value", "query_tangent", "key_tangent", "value_tangent"], X
)
# For each operator, arguments that it takes.
TAKEN = {
    k.bias_act: {"x": X, "bias": C, "scale": torch.randn(2, 4), "noise": X[:, :1]},
    k.norm_act: {"x": X, "weight": C, "bias": C, "norm": "instance"},
    k.upfirdn2d: {"x": X, "filter": TAPS, "bias": C, "padding": 1},
    k.filter2d: {"x": X, "filter": TAPS},
    k.upsample2d: {"x": X, "filter": TAPS},
    k.downsample2d: {"x": X, "filter": TAPS},
    k.squared_norm: {"x": X},
    k.interpolate: {"real": X, "fake": X, "mix": N},
    k.penalty_direction: {"gradient": X, "squares": N},
    k.minibatch_stddev: {"x": X},
    k.modulated_conv2d: {"x": X, **STYLED, "bias": C, "noise": torch.randn(2, 1, 3, 3)},
    k.attention_jvp: ATTENTION,
    k.spectral_norm_power_iteration: {"weights": [torch.randn(4, 3)], "vectors": [C]},
}
TENSORS = [
    (f, name) for f, taken in TAKEN.items() for name, value in taken.items()
    if isinstance(value, (torch.Tensor, list))
]  # fmt: skip
NUMBERS = [
    (f, name) for f, taken in TAKEN.items() for name in inspect.signature(f).parameters
    if name in ("gain", "act_gain", "clamp", "eps") or (name == "scale" and name not in taken)
]  # fmt: skip


def named(case):
    return " ".join(getattr(part, "__name__", part) for part in case)


def test_every_operator_is_here():
    assert {f.__name__ for f in TAKEN} == set(k.__all__)
    for f, taken in TAKEN.items():
        f(**taken)


@pytest.mark.parametrize("case", TENSORS, ids=named)
@pytest.mark.parametrize("given", [[1.0, 2.0], 1.0, "x"], ids=str)
def test_what_is_no_tensor(case, given):
    f, name = case
    value = TAKEN[f][name]
    listed = isinstance(value, list)
    wrong = {name: [given] if listed else given}
    with pytest.raises(TypeError, match=rf"^{name}.* is a \w+; accepted: a torch.Tensor"):
        f(**TAKEN[f] | wrong)


@pytest.mark.parametrize("name", ["x", "weight", "styles"])
def test_none_for_what_is_needed(name):
    with pytest.raises(TypeError, match=f"^{name} is a NoneType"):
        k.modulated_conv2d(**TAKEN[k.modulated_conv2d] | {name: None})
    with pytest.raises(TypeError, match=r"^x is a NoneType"):
        k.bias_act(None)


@pytest.mark.parametrize("case", NUMBERS, ids=named)
def test_a_number_that_would_lose_its_gradient(case):
    f, name = case
    assert TAKEN[f]
    for value in (torch.tensor(1.0, requires_grad=True), "1"):
        with pytest.raises(TypeError, match=f"^{name} is a (Tensor|str); accepted: "):
            f(**TAKEN[f] | {name: value})
    if name != "clamp":
        with pytest.raises(ValueError, match=f"^{name}="):
            f(**TAKEN[f] | {name: float("nan")})
