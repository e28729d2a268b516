"""Several judges as one discriminator: the stated rule, in values and in gradients."""

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from ranks import run_ranks
from torch import Tensor, nn

import dgan
from dgan.networks import build
from dgan.networks.judges import Judges, Shadowed, follow_shadows
from dgan.objectives.losses import LOSSES
from dgan.parallel.layout import Layout
from dgan.parallel.replicas import FSDPReplica, Replica
from dgan.parallel.world import World, launch

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def judge(resolution: int, seed: int) -> nn.Module:
    sizes = {"resolution": resolution, "channels": 1, "classes": 3}
    return build("discriminator", "mlp", seed=seed, widths=(9, 8), **sizes).double()


REAL, FAKE, LABELS = numbers(4, 1, 8, 8), numbers(4, 1, 8, 8, seed=1), torch.tensor([0, 2, 1, 1])


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "relativistic_average"])
def test_a_loss_of_several_judges_is_the_mean_of_their_losses(name: str) -> None:
    parts = judge(8, 0), judge(8, 1)
    panel = Judges(parts)
    for player in (LOSSES[name].discriminator, LOSSES[name].generator):
        loss = player(panel(REAL, LABELS), panel(FAKE, LABELS))
        each = [player(part(REAL, LABELS), part(FAKE, LABELS)) for part in parts]
        torch.testing.assert_close(loss, (each[0] + each[1]) / 2, **EXACT)
    assert panel(REAL, LABELS).shape == (4, 2)
    assert not panel.couples_samples
    assert len(panel.blocks) == 4


def test_scales_halve() -> None:
    parts = judge(8, 0), judge(4, 1), judge(2, 2)
    logits = Judges(parts, (0, 1, 2))(REAL, LABELS)
    small = REAL.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    smaller = REAL.unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5))
    for column, (part, x) in enumerate(zip(parts, (REAL, small, smaller))):
        torch.testing.assert_close(logits[:, column], part(x, LABELS), **EXACT)
    # A penalty is that of the logits' sum, in both methods.
    panel = Judges(parts, (0, 1, 2))
    both = [
        dgan.gradient_penalty(panel, REAL, LABELS, method=method).loss
        for method in ("double", "forward")
    ]
    torch.testing.assert_close(*both, **EXACT)


def test_judges_of_other_shapes_each_give_their_mean() -> None:
    patches = nn.Conv2d(1, 1, 3).double()
    single = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0)).double()
    logits = Judges([patches, single])(REAL)
    expected = torch.stack([patches(REAL).mean((1, 2, 3)), single(REAL)], 1)
    torch.testing.assert_close(logits, expected, **EXACT)


def test_a_shadow_judges_where_the_judge_is_frozen() -> None:
    own = judge(8, 0)
    panel = Shadowed(own, 0.9)
    first = own(REAL, LABELS)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(panel(REAL, LABELS), own(REAL, LABELS), **EXACT)
    own.requires_grad_(False)
    logits = panel(REAL, LABELS)
    torch.testing.assert_close(logits, torch.stack([own(REAL, LABELS), first], 1), **EXACT)
    expected = [
        0.9 * old + 0.1 * new for old, new in zip(panel.shadow.parameters(), own.parameters())
    ]
    panel.follow()
    for parameter, wanted in zip(panel.shadow.parameters(), expected):
        torch.testing.assert_close(parameter, wanted, **EXACT)
        assert not parameter.requires_grad
    own.requires_grad_(True)
    assert len([p for p in panel.parameters() if p.requires_grad]) == len(list(own.parameters()))
    loss = F.softplus(-panel(REAL, LABELS)).mean()
    assert all(g is not None for g in torch.autograd.grad(loss, list(own.parameters())))


def sharded_shadow() -> list[Tensor]:
    with launch(precision="float64") as world:
        panel = Shadowed(judge(8, 0), 0.7)
        replica = FSDPReplica(panel, world, Layout(strategy="fsdp"), double_backward=False)
        return moved_shadow(panel, replica, slice(2 * world.rank, 2 * world.rank + 2))


def moved_shadow(panel: Shadowed, replica: Any, rows: slice) -> list[Tensor]:
    """After a step of the judge and its shadow: what the generator's phase sees, twice."""
    results = []
    for _ in range(2):
        replica(REAL[rows], LABELS[rows]).square().mean().backward()
        replica.finish_backward()
        with torch.no_grad():
            for parameter in replica.trainable:
                parameter.sub_(0.1 * parameter.grad)
                parameter.grad = None
        follow_shadows(panel)
        with replica.frozen() as fixed:
            results.append(fixed(REAL[rows], LABELS[rows]).detach())
    return results


def test_a_sharded_shadow() -> None:
    panel = Shadowed(judge(8, 0), 0.7)
    replica = Replica(panel, cast(World, None))
    expected = moved_shadow(panel, replica, slice(0, 4))
    assert expected[0].shape == (4, 2)
    for found in zip(expected, *run_ranks(2, sharded_shadow)):
        torch.testing.assert_close(torch.cat(found[1:]), found[0], **EXACT)
