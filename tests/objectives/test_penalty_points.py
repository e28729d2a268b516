"""Where penalties are taken: formulas, and the same points at every world size."""

import pytest
import torch
from torch import Tensor

import dgan
from dgan.objectives.points import around, between, spread_of


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


REAL, FAKE = numbers(4, 2, 3, 3), numbers(4, 2, 3, 3, seed=1)
MIX = torch.tensor([0.0, 0.25, 0.5, 1.0])


def test_between() -> None:
    points = between(REAL.requires_grad_(), FAKE, MIX)
    expected = torch.stack([m * r + (1 - m) * f for m, r, f in zip(MIX, REAL, FAKE)])
    torch.testing.assert_close(points, expected.detach())
    assert not points.requires_grad
    halves = [between(REAL[i : i + 2], FAKE[i : i + 2], MIX[i : i + 2]) for i in (0, 2)]
    assert torch.equal(torch.cat(halves), points)


def test_around() -> None:
    uniform = torch.rand(REAL.shape, generator=torch.Generator().manual_seed(2))
    spread = spread_of(REAL)
    assert spread.item() == pytest.approx(REAL.std(correction=0).item(), rel=1e-12)
    points = around(REAL, uniform, spread)
    torch.testing.assert_close(points, (REAL + spread * uniform / 2).detach())
    assert not points.requires_grad


def test_the_spread_is_that_of_the_global_batch() -> None:
    """Each half with the other's numbers for its exchange, as two ranks would meet."""
    halves = (REAL[:2] + 100).detach(), REAL[2:].detach()
    centre = torch.cat(halves).mean()
    squares = [(half - centre).square().mean() for half in halves]
    for mine in (0, 1):
        met = iter([centre, (squares[0] + squares[1]) / 2])
        asked: list[Tensor] = []

        def over_ranks(x: Tensor, asked: list[Tensor] = asked, met=met) -> Tensor:
            asked.append(x)
            return next(met)

        found = spread_of(halves[mine], over_ranks)
        torch.testing.assert_close(found, torch.cat(halves).std(correction=0))
        torch.testing.assert_close(
            torch.stack(asked), torch.stack([halves[mine].mean(), squares[mine]])
        )


@pytest.mark.parametrize("one_sided", [False, True])
def test_penalties_there_by_pencil(one_sided: bool) -> None:
    """D = ½ Σ x²: ‖∇D‖ is the point's own norm."""
    points = between(REAL, FAKE, MIX)
    penalty = dgan.gradient_penalty(
        lambda x: 0.5 * x.square().sum((1, 2, 3)), points, kind="one_centered", one_sided=one_sided
    )
    excess = points.flatten(1).norm(dim=1) - 1
    excess = excess.clamp(min=0) if one_sided else excess
    torch.testing.assert_close(penalty.loss, excess.square().mean())
