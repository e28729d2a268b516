"""Kinds of penalty, precisions, the difference method, and the points where penalties are taken."""

import copy
import functools
from typing import Any

import pytest
import torch
from critics import X, critic, gradient
from exactness import numbers, relative
from torch import Tensor, nn

from dgan.objectives.penalties import gradient_penalty, interpolate, neighbourhood


class Dead(nn.Module):
    """‖x‖²-like in the first half of the batch, flat in the second."""

    def __init__(self) -> None:
        super().__init__()
        self.network = critic()

    def forward(self, x: Tensor) -> Tensor:
        alive = (torch.arange(len(x)) < len(x) // 2).double()
        return alive * self.network(alive[:, None] * x)


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("scale", [0.3, 30.0])
def test_one_centered(scale: float, one_sided: bool) -> None:
    """Gradients below 1, above 1 and 0."""
    network = Dead()
    with torch.no_grad():
        network.network[4].weight.mul_(scale)
    options = {"kind": "one_centered", "one_sided": one_sided}
    one = gradient_penalty(network, X.clone(), method="double", **options)
    two = gradient_penalty(network, X.clone(), method="forward", **options)
    torch.testing.assert_close(two.loss, one.loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(two.norms, one.norms, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(two.logits, one.logits, rtol=1e-12, atol=1e-12)
    assert (one.norms == 0).any()
    assert one.exact
    assert two.exact
    wanted = gradient(network, network, "double", **options)
    found = gradient(network, network, "forward", **options)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert (wanted.norm() == 0) == (one_sided and scale < 1)


def test_autocast_costs_no_more_than_in_double_backward() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv1d(2, 16, 3, padding=1),
        nn.GELU(),
        nn.Flatten(1, -1),
        nn.LayerNorm(80),
        nn.Linear(80, 64),
        nn.SiLU(),
        nn.Linear(64, 1),
        nn.Flatten(0),
    )
    x = numbers(32, 2, 5, seed=4)

    def found(method: Any, network: nn.Module, x: Tensor) -> Tensor:
        loss = gradient_penalty(network, x, method=method).loss
        network.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    wanted = found("double", copy.deepcopy(network).double(), x)
    with torch.autocast("cpu", torch.bfloat16):
        # The double route leaves the last bias without gradient, as the penalty does.
        double, forward = (
            found(m, copy.deepcopy(network), x.float()) for m in ("double", "forward")
        )
    error, reference = (relative(g.double()[: len(double)], wanted) for g in (forward, double))
    assert 1e-4 < reference < 5e-2, "is autocast on?"
    assert error < 1.5 * reference


def test_the_difference_is_close_for_a_smooth_network_and_says_so() -> None:
    network = critic()
    output = gradient_penalty(network, X.clone(), method="difference")
    exact = gradient_penalty(network, X.clone(), method="double")
    assert output.exact is False
    torch.testing.assert_close(output.loss, exact.loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(output.logits, exact.logits, rtol=1e-12, atol=1e-12)
    wanted = gradient(network, network, "double")
    coarse, fine = (
        relative(gradient(network, network, "difference", step=h), wanted) for h in (1e-2, 1e-3)
    )
    assert fine < 1e-4
    # Central: the error falls with the square of the step.
    assert 50 < coarse / fine < 200


def test_interpolates_lie_between_their_ends() -> None:
    real, fake = numbers(64, 3, 4).requires_grad_(), numbers(64, 3, 4, seed=1).requires_grad_()
    draw = functools.partial(torch.Generator().manual_seed, 5)
    points = interpolate(real, fake, draw())
    assert torch.equal(points, interpolate(real, fake, draw()))
    assert not torch.equal(points, interpolate(real, fake, torch.Generator().manual_seed(6)))
    assert not points.requires_grad
    assert (points <= torch.maximum(real, fake)).all()
    assert (points >= torch.minimum(real, fake)).all()
    share = (points - fake) / (real - fake)
    # One share for each sample, spread over (0, 1).
    torch.testing.assert_close(share, share[:, :1, :1].expand_as(share), rtol=1e-6, atol=1e-6)
    assert share.min() < 0.1
    assert share.max() > 0.9


def test_the_neighbourhood_is_half_a_spread_wide() -> None:
    real = 3 * numbers(64, 3, 4).requires_grad_() + 1
    draw = functools.partial(torch.Generator().manual_seed, 5)
    points = neighbourhood(real, draw())
    assert torch.equal(points, neighbourhood(real, draw()))
    assert not torch.equal(points, neighbourhood(real, torch.Generator().manual_seed(6)))
    assert not points.requires_grad
    offset = (points - real) / real.std()
    assert offset.min() >= 0
    assert 0.45 < offset.max() <= 0.5
    torch.testing.assert_close(offset.mean().item(), 0.25, rtol=0, atol=0.02)
