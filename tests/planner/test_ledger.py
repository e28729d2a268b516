"""The ledger of allocations, exchanges and FLOPs, on tensors that hold something."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dgan.planner.ledger import REST, WEIGHTS, Ledger
from dgan.planner.moments import composition


def test_memory_is_counted_from_birth_to_death() -> None:
    with Ledger() as ledger:
        x = torch.zeros(1000)
        y = x + 1
        view = y[:10]
        del y
        ledger.mark("second")
        z = view.clone()
        del view
        ledger.mark("third")
        w = torch.zeros(500, dtype=torch.float64)
    first, second, third = ledger.segments
    assert (first.peak, second.peak, third.peak) == (8000, 8040, 8040)
    assert ledger.live == 4000 + 40 + 4000
    del x, z, w
    assert ledger.live == 0


def test_a_label_holds_from_the_birth_of_what_it_labels() -> None:
    with Ledger() as ledger:
        weight = torch.zeros(8, 8)
        other = torch.zeros(4)
        ledger.label(WEIGHTS, [weight])
    assert composition(ledger.allocations, ledger.events) == {WEIGHTS: 256, REST: 16}
    assert other.shape == (4,)


def test_a_storage_that_is_freed_in_place_is_no_longer_counted() -> None:
    with Ledger() as ledger:
        x = torch.zeros(100)
        x.untyped_storage().resize_(0)
        assert ledger.live == 0
        x.untyped_storage().resize_(400)
        assert ledger.live == 400
    assert ledger.segments[0].if_kept == 400
    # Outside of it PyTorch is as it was.
    x.untyped_storage().resize_(0)
    assert ledger.live == 400


def step() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(288, 4))
    h = network(torch.zeros(2, 3, 8, 8, requires_grad=True))
    h.sum().backward()


@pytest.mark.parametrize("fake", [False, True])
def test_flops_of_grouped_convolutions_and_attention_are_those_of_the_formulas(fake: bool) -> None:
    with FakeTensorMode() if fake else nullcontext():
        grouped = nn.Conv2d(8, 16, 3, padding=1, groups=4)
        up = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)
        with Ledger() as ledger:
            x = torch.zeros(2, 8, 5, 5, requires_grad=True)
            y, z = grouped(x), up(x)
            ledger.mark("backward")
            (y.sum() + z.sum()).backward()
            ledger.mark("attention")
            q = torch.zeros(2, 3, 7, 4, requires_grad=True)
            h = F.scaled_dot_product_attention(q, q, q)
            ledger.mark("backward")
            h.sum().backward()
    forward, backward, attention, of_attention = (each.flops for each in ledger.segments)
    # Each number of y sees 9 × 2 of x; each of x is seen by 4 × 2 of z.
    assert forward == 2 * (2 * 16 * 25) * (9 * 2) + 2 * (2 * 8 * 25) * (4 * 2)
    assert backward == 2 * forward
    # Two products of 7 × 7 × 4 for each head; the backward pass has four, and one again.
    assert attention == 2 * (2 * 3) * 2 * (7 * 7 * 4)
    assert of_attention == attention * 5 // 2


@pytest.mark.parametrize("fake", [False, True])
def test_flops_are_those_of_pytorchs_counter(fake: bool) -> None:
    with FlopCounterMode(display=False) as counter:
        step()
    with FakeTensorMode(), Ledger() as ledger:
        if fake:
            step()
    if not fake:
        with Ledger() as ledger:
            step()
    assert ledger.segments[0].flops == counter.get_total_flops() > 0


def test_fake_tensors_take_the_memory_of_real_ones() -> None:
    peaks = []
    with Ledger() as real:
        step()
    peaks.append(real.segments[0].peak)
    with FakeTensorMode(), Ledger() as fake:
        step()
    peaks.append(fake.segments[0].peak)
    assert peaks[0] == peaks[1] > 4 * 288 * 4


def test_a_number_that_nobody_knows_is_one() -> None:
    with FakeTensorMode(), Ledger():
        assert torch.zeros(3).sum().item() == 1.0
        assert bool(torch.zeros(3).isfinite().all())
