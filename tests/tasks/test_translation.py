"""The losses of pix2pix and CycleGAN against the papers' formulas, written out in float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgan.draws import Draws
from dgan.networks import build
from dgan.networks.both import Both
from dgan.schedule import constant
from dgan.tasks.history import History
from dgan.tasks.paired import Paired
from dgan.tasks.penalty import Penalty
from dgan.tasks.unpaired import Unpaired

EXACT = {"rtol": 1e-10, "atol": 1e-12}
SIZES = {"resolution": 16, "channels": 2, "classes": 0}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(role: Any, family: str, seed: int, **options: Any) -> nn.Module:
    made = build(role, family, seed=seed, **SIZES, **options).double()
    for number, parameter in enumerate(made.parameters()):
        parameter.data = parameter + 0.1 * numbers(*parameter.shape, seed=number + 100 * seed)
    return made


BATCH = {
    "a": numbers(3, 2, 16, 16, seed=5).tanh(),
    "b": numbers(3, 2, 16, 16, seed=6).tanh(),
    "__key__": list("abc"),
}
DRAWS = Draws(
    seed=3,
    purpose="any",
    step=7,
    rows=range(3, 6),
    device=torch.device("cpu"),
    dtype=torch.float64,
)


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    parameters = list(module.parameters())
    return list(torch.autograd.grad(loss, parameters, materialize_grads=True, retain_graph=True))


def assert_alike(loss: Tensor, expected: Tensor, module: nn.Module) -> None:
    torch.testing.assert_close(loss, expected, **EXACT)
    found = gradients(loss, module)
    assert any(bool(gradient.any()) for gradient in found)
    for gradient, wanted in zip(found, gradients(expected, module)):
        torch.testing.assert_close(gradient, wanted, **EXACT)


# --- pix2pix


def paired_networks() -> tuple[nn.Module, nn.Module]:
    generator = network("generator", "unet", 0, width=2, z_dim=4, source_channels=2)
    options = {"width": 2, "receptive_field": 16, "source_channels": 2}
    return generator, network("discriminator", "patch", 1, **options)


def paired(**options: Any) -> Paired:
    settings: dict[str, Any] = {
        "loss": "non_saturating",
        "source": "b",
        "z_dim": 4,
        "l1": 100.0,
        "halving": 0.5,
        "penalty": Penalty(gamma=constant(0.0)),
        "separate": False,
    }
    return Paired(**settings | options)


def test_pix2pix() -> None:
    """log D(y, x) + log(1 − D(G(x), x)), halved; −log D(G(x), x) + 100 E |y − G(x)|."""
    generator, discriminator = paired_networks()
    x, y = BATCH["b"], BATCH["a"]
    fake = generator(x, DRAWS.normal(4))
    real_logits, fake_logits = discriminator(y, x), discriminator(fake.detach(), x)
    assert real_logits.shape == (3, 6, 6)
    expected = -0.5 * (F.logsigmoid(real_logits).mean() + F.logsigmoid(-fake_logits).mean())
    task = paired()
    terms = task.discriminator_loss(discriminator, generator, BATCH, DRAWS, 0)
    assert_alike(terms["loss"], expected, discriminator)
    torch.testing.assert_close(terms["real_logits"], real_logits.mean(), **EXACT)
    torch.testing.assert_close(terms["fake_logits"], fake_logits.mean(), **EXACT)

    adversarial = -F.logsigmoid(discriminator(fake, x)).mean()
    distance = (y - fake).abs().mean()
    terms = task.generator_loss(generator, discriminator, BATCH, DRAWS, 0)
    assert_alike(terms["loss"], adversarial + 100 * distance, generator)
    torch.testing.assert_close(terms["l1"], distance, **EXACT)
    alone = paired(adversarial=0.0).generator_loss(generator, discriminator, BATCH, DRAWS, 0)
    assert_alike(alone["loss"], 100 * distance, generator)


def test_pix2pix_with_other_losses_and_a_penalty() -> None:
    """Relativistic pairs, and R1 of the image that is judged, not of its source."""
    generator, discriminator = paired_networks()
    x, y = BATCH["b"], BATCH["a"]
    fake = generator(x, DRAWS.normal(4))
    penalty = Penalty(gamma=constant(3.0), points="real", method="double")
    task = paired(loss="relativistic", halving=1.0, l1=0.0, penalty=penalty)
    point = y.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(point, x).sum(), point, create_graph=True)
    r1 = gradient.square().sum((1, 2, 3)).mean()
    margin = discriminator(y, x) - discriminator(fake.detach(), x)
    terms = task.discriminator_loss(discriminator, generator, BATCH, DRAWS, 0)
    assert_alike(terms["loss"], F.softplus(-margin).mean() + 1.5 * r1, discriminator)
    assert task.differentiates_twice
    terms = task.generator_loss(generator, discriminator, BATCH, DRAWS, 0)
    margin = discriminator(y, x).detach() - discriminator(fake, x)
    assert_alike(terms["loss"], F.softplus(margin).mean(), generator)
    assert task.check(discriminator, BATCH) < 1e-5  # type: ignore[reportOptionalOperand]


# --- CycleGAN


def history(name: str, size: int = 0, **options: Any) -> History:
    return History(name, size=size, shape=(2, 16, 16), dtype=torch.float64, **options)


def test_cyclegan() -> None:
    """Least squares; E |F(G(a)) − a| + E |G(F(b)) − b|; E |G(b) − b| + E |F(a) − a|."""
    options = {"width": 2, "residual_blocks": 1}
    forth, back = (network("generator", "resnet", seed, **options) for seed in (0, 1))
    options = {"width": 2, "receptive_field": 16}
    of_a, of_b = (network("discriminator", "patch", seed, **options) for seed in (2, 3))
    generator, discriminator = Both(forth, back), Both(of_a, of_b)
    assert len(generator.blocks) == len(forth.blocks) + len(back.blocks)
    a, b = BATCH["a"], BATCH["b"]
    to_b, to_a = forth(a), back(b)

    task = Unpaired(
        loss="least_squares", cycle=10.0, identity=0.5, adversarial=2.0,
        histories=(history("a"), history("b")),
    )  # fmt: skip
    terms = task.discriminator_loss(discriminator, generator, BATCH, DRAWS, 0)
    expected = sum(
        0.5 * ((judge(x) - 1).square().mean() + judge(y.detach()).square().mean())
        for judge, x, y in ((of_a, a, to_a), (of_b, b, to_b))
    )
    assert_alike(terms["loss"], expected, discriminator)

    adversarial = (of_a(to_a) - 1).square().mean() + (of_b(to_b) - 1).square().mean()
    cycle = (back(to_b) - a).abs().mean() + (forth(to_a) - b).abs().mean()
    identity = (back(a) - a).abs().mean() + (forth(b) - b).abs().mean()
    terms = task.generator_loss(generator, discriminator, BATCH, DRAWS, 0)
    assert_alike(terms["loss"], adversarial + 10 * cycle + 5 * identity, generator)
    torch.testing.assert_close(terms["cycle"], cycle, **EXACT)
    assert task.memory == {}


# --- the history


def image(value: int) -> Tensor:
    return torch.full((1, 2, 16, 16), float(value), dtype=torch.float64)


def test_the_history_of_one_image_an_update_is_the_published_pool() -> None:
    """Fills; then, half of the time, gives one it holds away for the new one."""
    pool, held, given = history("a", size=5), [], []
    for step in range(200):
        draws = replace(DRAWS, step=step, rows=range(1))
        out = int(pool.exchange(image(step), draws)[0, 0, 0, 0])
        pool.follow()
        if len(held) < 5:
            held.append(step)
            assert out == step
        elif out != step:
            held[held.index(out)] = step  # fails if it gave what it did not hold
            given.append(out)
        assert sorted(pool.memory["images"][: len(held), 0, 0, 0].int().tolist()) == sorted(held)
        assert int(pool.memory["held"]) == min(step + 1, 5)
    assert len(given) == pytest.approx(97, abs=25)
    assert len(set(given)) == len(given)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_history_does_not_depend_on_micro_batches(parts: int) -> None:
    whole, parted = history("b", size=6), history("b", size=6)
    exchanged = 0
    for step in range(20):
        new = torch.cat([image(100 * step + row) for row in range(4)])
        draws = replace(DRAWS, step=step, rows=range(4))
        wanted = whole.exchange(new, draws)
        pieces = [
            parted.exchange(part, draws.part(index, parts))
            for index, part in enumerate(new.chunk(parts))
        ]
        torch.testing.assert_close(torch.cat(pieces), wanted, rtol=0, atol=0)
        exchanged += int((wanted != new).flatten(1).any(1).sum())
        whole.follow()
        parted.follow()
        assert torch.equal(whole.memory["images"], parted.memory["images"])
    assert exchanged > 20


def test_an_update_that_failed_leaves_nothing_in_the_history() -> None:
    pool = history("a", size=3)
    pool.exchange(image(1), replace(DRAWS, step=1, rows=range(1)))  # and no `follow`
    pool.exchange(image(2), replace(DRAWS, step=2, rows=range(1)))
    pool.follow()
    assert pool.memory["images"][:, 0, 0, 0].tolist() == [2, 0, 0]
