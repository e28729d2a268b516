"""Convolutions under `double`: PyTorch's values and derivatives, by the library's own kernels."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from dgan import gradient_penalty
from dgan.objectives.convolutions import BilinearConvolutions

ORDINARY = {
    "plain": ({}, 1),
    "strided": ({"stride": 2, "padding": 1}, 1),
    "dilated": ({"padding": 2, "dilation": 2}, 1),
    "grouped": ({"padding": 1}, 2),
    "depthwise": ({"stride": 2}, 4),
    "same": ({"padding": "same"}, 1),
}
TRANSPOSED = {
    "plain": ({}, 1),
    "strided": ({"stride": 2, "padding": 1, "output_padding": 1}, 1),
    "dilated": ({"dilation": 2}, 1),
    "grouped": ({"stride": 2}, 2),
}
ALL = [(False, *case) for case in ORDINARY.items()] + [(True, *case) for case in TRANSPOSED.items()]
CALLS = [
    pytest.param(axes, transposed, *case, id=f"{'transposed' * transposed}{axes}-{name}")
    for axes in (1, 2, 3)
    for transposed, name, case in ALL
]


def numbers(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("axes", "transposed", "options", "groups"), CALLS)
def test_three_orders_equal_the_operator(
    axes: int, transposed: bool, options: dict[str, Any], groups: int
) -> None:
    operator = getattr(torch, f"conv{'_transpose' * transposed}{axes}d")
    inside = (4, 8 // groups) if transposed else (8, 4 // groups)
    results = []
    for replaced in (False, True):
        x = numbers(2, 4, *(7, 6, 5)[:axes], seed=0).requires_grad_()
        weight = nn.Parameter(numbers(*inside, *(3,) * axes, seed=1) / 3**axes)
        bias = nn.Parameter(numbers(8, seed=2))
        with BilinearConvolutions(x) if replaced else nullcontext():
            y = operator(x, weight, bias, groups=groups, **options)
        ours = replaced and options.get("padding") != "same"
        assert ours == ("_Convolution" in str(y.grad_fn.next_functions))
        (slope,) = torch.autograd.grad(y.tanh().sum(), x, create_graph=True)
        second = torch.autograd.grad(slope.square().sum(), (x, weight, bias), create_graph=True)
        results.append([y, slope, *second])
        if "output_padding" not in options:  # there PyTorch raises
            value = torch.stack([part.square().mean() for part in second]).sum()
            results[-1] += torch.autograd.grad(value, (x, weight, bias))
    for found, wanted in zip(*reversed(results), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


class Kernels(TorchDispatchMode):
    """Which gradients of convolutions are computed: (input's, weights') of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.forward, self.masks = 0, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.forward += func is torch.ops.aten.convolution.default
        if func is torch.ops.aten.convolution_backward.default:
            self.masks.append(tuple(args[-1][:2]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("computed", [False, True], ids=["parameters", "computed weights"])
def test_a_penalty_computes_no_more_than_it_has_to(computed: bool) -> None:
    """Of two layers: values, then inputs' gradients alone, then what both have to do with both."""
    first, last = nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 1, 3)
    if computed:
        first, last = (torch.nn.utils.parametrizations.weight_norm(each) for each in (first, last))
    discriminator = nn.Sequential(first, nn.SiLU(), last, nn.Flatten(1)).double()
    with Kernels() as kernels:
        output = gradient_penalty(discriminator, numbers(2, 4, 5, 5, seed=0), method="double")
        assert kernels.forward == 2
        assert kernels.masks == [(True, False)] * 2
        output.loss.backward()
    # One more than in the network, and no group has one of its own: the slope is linear in what
    # comes down to the first layer, and what comes down to the second is constant.
    assert kernels.forward == 3
    weights = sum(weight for _, weight in kernels.masks)
    assert weights == 3, "both layers' share in the slope, the first's in what is curved"


@pytest.mark.parametrize(
    "weight_of", [lambda x: x, lambda x: x[:1].square() + 1], ids=["x", "of x"]
)
@pytest.mark.parametrize("method", ["double", "forward"])
def test_weights_that_depend_on_the_input(method: Any, weight_of: Any) -> None:
    """Their share in the input's gradient is not lost."""

    def correlation(x: Tensor) -> Tensor:
        return torch.conv2d(x, weight_of(x), padding=1).tanh()

    x = numbers(2, 3, 4, 4, seed=0)
    found = gradient_penalty(correlation, x, method=method).norms
    x.requires_grad_()
    (slope,) = torch.autograd.grad(correlation(x).sum(), x)
    torch.testing.assert_close(found, slope.flatten(1).norm(dim=1))


def test_memory_order_is_kept() -> None:
    x = numbers(2, 4, 6, 6, seed=0).to(memory_format=torch.channels_last).requires_grad_()
    weight = nn.Parameter(numbers(8, 4, 3, 3, seed=1))
    with BilinearConvolutions(x):
        y = torch.conv2d(x, weight)
    (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(slope.square().sum(), x)
    for tensor in (y, slope, second):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_autocast_is_followed() -> None:
    x, weight = (
        numbers(2, 4, 6, 6, seed=0).float(),
        nn.Parameter(numbers(8, 4, 3, 3, seed=1).float()),
    )
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), BilinearConvolutions(x):
        y = torch.conv2d(x, weight)
    assert y.dtype == torch.bfloat16
    (slope,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(slope.square().sum(), weight)
    assert slope.dtype == second.dtype == torch.float32


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_blocks_that_a_network_recomputes_itself(dtype: torch.dtype, tolerance: float) -> None:
    """They are recomputed outside of the penalty's forward pass, by PyTorch's operator."""
    block = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3, groups=2), nn.SiLU())
    weights = [layer.weight for layer in block if isinstance(layer, nn.Conv2d)]
    x = numbers(2, 3, 7, 7, seed=0).float()
    gradients = []
    for discriminator in (block, partial(checkpoint, block, use_reentrant=False)):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = gradient_penalty(discriminator, x, method="double").loss
        gradients.append(torch.autograd.grad(loss, weights))
    for wanted, found in zip(*gradients, strict=True):
        assert wanted.norm() > 0
        assert (found - wanted).norm() <= tolerance * wanted.norm()
