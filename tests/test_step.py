"""A step of adversarial training against one worked out by hand, and what stops it."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgan.draws import Draws
from dgan.networks import build
from dgan.parallel.average import Average
from dgan.parallel.distribute import distribute
from dgan.parallel.layout import Layout
from dgan.parallel.world import World, launch
from dgan.schedule import Averaging, Band, Cosine, constant
from dgan.step import (
    Batch,
    NonFinite,
    Pace,
    Player,
    Players,
    Turn,
    adversarial_step,
    prepare,
    split,
    update,
)
from dgan.tasks.balance import Balance
from dgan.tasks.penalty import Penalty
from dgan.tasks.synthesis import Synthesis

EXACT = {"rtol": 1e-9, "atol": 1e-11}
SIZE = 8
PACE = Pace(batch_size=SIZE, accumulation=1, discriminator_updates=1, generator_updates=1, seed=4)
RATES = {
    "learning_rate": Cosine(start=3e-3, end=1e-3, kimg=0.04),
    "beta1": 0.3,
    "beta2": Cosine(start=0.8, end=0.95, kimg=0.04),
    "epsilon": 1e-6,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "mlp": {"widths": (12, 9)},
    "r3gan": {"widths": (8, 6), "blocks": (1, 1), "groups": (4, 3)},
    "dcgan": {"widths": (6,)},
}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with launch(precision="float64") as world:
        yield world


def networks(family: str) -> tuple[nn.Module, nn.Module]:
    sizes = {"resolution": 8, "channels": 1, "classes": 3, **OPTIONS[family]}
    return (
        build("generator", family, seed=0, z_dim=5, **sizes),
        build("discriminator", family, seed=1, **sizes),
    )


def task(
    loss: str = "relativistic", penalty: dict[str, Any] | None = None, **options: Any
) -> Synthesis:
    schedule = Cosine(start=2.0, end=0.5, kimg=0.04)
    return Synthesis(
        **{
            "loss": loss,
            "penalty": Penalty(gamma=schedule, **(penalty or {})),
            "z_dim": 5,
            "condition": "label",
            "separate": False,
            **options,
        }
    )


def players(
    world: World,
    family: str = "mlp",
    half_life: Cosine | None = None,
    objective: Synthesis | None = None,
    pair: tuple[nn.Module, nn.Module] | None = None,
) -> Players:
    generator, discriminator = pair or networks(family)
    single = Layout(strategy="single")
    replica = distribute(generator, world, single)
    return Players(
        generator=Player("generator", replica, **RATES),
        discriminator=Player("discriminator", distribute(discriminator, world, single), **RATES),
        average=Average(replica),
        averaging=Averaging(half_life_kimg=half_life or constant(0.01)),
        task=objective or task(),
    )


def batches() -> Iterator[Batch]:
    """As a stream gives them: uint8 images, labels, keys."""
    source = torch.Generator().manual_seed(0)
    for index in range(100):
        yield {
            "image": torch.randint(256, (SIZE, 1, 8, 8), generator=source).to(torch.uint8),
            "label": torch.randint(3, (SIZE,), generator=source),
            "__key__": [f"{index}-{row}" for row in range(SIZE)],
        }


def snapshot(game: Players) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in game.state().items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, **(tolerance or {"rtol": 0, "atol": 0}), equal_nan=True, msg=name
        )


class ByHand:
    """Adam (Kingma and Ba 2015, algorithm 1), with a step size and β₂ of each step's own."""

    def __init__(self, network: nn.Module) -> None:
        self.parameters = list(network.parameters())
        self.m = [torch.zeros_like(p) for p in self.parameters]
        self.v = [torch.zeros_like(p) for p in self.parameters]
        self.t = 0

    def step(self, loss: Tensor, seen: int) -> float:
        gradients = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
        rate, beta2 = RATES["learning_rate"].at(seen), RATES["beta2"].at(seen)
        self.t += 1
        for p, g, m, v in zip(self.parameters, gradients, self.m, self.v):
            m.copy_(0.3 * m + 0.7 * g)
            v.copy_(beta2 * v + (1 - beta2) * g**2)
            m_hat, v_hat = m / (1 - 0.3**self.t), v / (1 - beta2**self.t)
            p.data -= rate * m_hat / (v_hat.sqrt() + 1e-6)
        return sum(g.square().sum().item() for g in gradients) ** 0.5


DRAWS = Draws(
    seed=4, purpose="", step=1, rows=range(SIZE), device=torch.device("cpu"), dtype=torch.float64
)


def latents(purpose: str, step: int, index: int) -> Tensor:
    return replace(DRAWS, purpose=purpose, step=step, update=index).normal(5)


def squared_gradient(network: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(network(x, labels).sum(), x, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def test_steps_equal_those_worked_out_by_hand(world: World) -> None:
    pace = replace(PACE, discriminator_updates=2, generator_updates=2)
    game = players(world, half_life=Cosine(start=0.0, end=0.05, kimg=0.04))
    generator, discriminator = (network.double() for network in networks("mlp"))
    average = copy.deepcopy(generator)
    adam_g, adam_d = ByHand(generator), ByHand(discriminator)
    stream, again = batches(), batches()
    for step in range(1, 5):
        metrics = adversarial_step(game, stream, step, pace, world)
        seen = (step - 1) * 2 * SIZE
        for index in range(2):
            batch = next(again)
            real, labels = batch["image"].double() / 127.5 - 1, batch["label"]
            fake = generator(latents("discriminator", step, index), labels).detach()
            r1 = squared_gradient(discriminator, real, labels)
            r2 = squared_gradient(discriminator, fake, labels)
            margin = discriminator(real, labels) - discriminator(fake, labels)
            gamma = task().penalty.gamma.at(seen)
            loss = F.softplus(-margin).mean() + gamma / 2 * (r1 + r2)
            norm = adam_d.step(loss, seen)
        assert metrics["discriminator/loss"] == pytest.approx(loss.item(), rel=1e-9)
        assert metrics["discriminator/r1"] == pytest.approx(r1.item(), rel=1e-9)
        assert metrics["discriminator/gradient_norm"] == pytest.approx(norm, rel=1e-9)
        for index in range(2):
            fake = generator(latents("generator", step, index), labels)
            margin = discriminator(real, labels) - discriminator(fake, labels)
            loss = F.softplus(margin).mean()
            norm = adam_g.step(loss, seen)
        assert metrics["generator/loss"] == pytest.approx(loss.item(), rel=1e-9)
        assert metrics["generator/gradient_norm"] == pytest.approx(norm, rel=1e-9)
        half_life = 1000 * game.averaging.half_life_kimg.at(seen)
        decay = 0.5 ** (2 * SIZE / half_life) if half_life else 0.0
        for mine, theirs in zip(average.parameters(), generator.parameters()):
            mine.data = decay * mine.data + (1 - decay) * theirs.data
        state = game.state()
        for prefix, expected in (
            ("generator.network", generator),
            ("discriminator.network", discriminator),
            ("average", average),
        ):
            for name, parameter in expected.named_parameters():
                mine = state[f"{prefix}.{name}"]
                torch.testing.assert_close(mine, parameter.data, **EXACT, msg=name)
    assert next(stream)["__key__"] == next(again)["__key__"]


@pytest.mark.parametrize("loss", ["relativistic", "hinge"])
@pytest.mark.parametrize("family", ["mlp", "r3gan"])
def test_accumulation_equals_the_whole_batch(family: str, loss: str, world: World) -> None:
    results = []
    for accumulation in (1, 2, 8):
        game, stream = players(world, family, objective=task(loss)), batches()
        pace = replace(PACE, accumulation=accumulation)
        for step in range(1, 4):
            metrics = adversarial_step(game, stream, step, pace, world)
        results.append((snapshot(game), metrics))
    for state, metrics in results[1:]:
        assert_same(state, results[0][0], rtol=1e-8, atol=1e-10)
        assert metrics == pytest.approx(results[0][1], rel=1e-8, abs=1e-10)


def test_rates_follow_the_images_seen(world: World) -> None:
    game, stream = players(world), batches()
    pace = replace(PACE, discriminator_updates=2)
    for step, seen in zip(range(1, 6), (0, 16, 32, 48, 64)):
        adversarial_step(game, stream, step, pace, world)
        for player in (game.generator, game.discriminator):
            (group,) = player.replica.optimizer.param_groups
            assert group["lr"] == RATES["learning_rate"].at(seen)
            assert group["betas"] == (0.3, RATES["beta2"].at(seen))
    assert group["lr"] == 1e-3


@pytest.mark.parametrize(
    ("half_life", "decay"),
    [(0.016, 0.5**0.5), (0.004, 0.25), (0.0, 0.0)],  # of 8 images a step
)
def test_the_average_halves_its_memory(half_life: float, decay: float, world: World) -> None:
    game = players(world, "dcgan", constant(half_life), task(separate=True))
    before = snapshot(game)
    adversarial_step(game, batches(), 1, PACE, world)
    after = snapshot(game)
    moved = 0
    for name, tensor in after.items():
        if not name.startswith("average."):
            continue
        source = after[name.replace("average.", "generator.network.")]
        if "running" in name:  # buffers are the network's own
            assert torch.equal(tensor, source)
            assert not torch.equal(tensor, before[name])
        else:
            torch.testing.assert_close(tensor, decay * before[name] + (1 - decay) * source, **EXACT)
            moved += not torch.equal(tensor, before[name])
    assert moved


def test_regularisers_of_weights_are_a_part_of_the_loss(world: World) -> None:
    """λ ‖W Wᵀ ∘ (1 − I)‖² of every layer, and λ ‖θ − mean of all θ so far‖², from step 2 on."""
    game, stream = players(world), batches()
    options = {"orthogonal": 0.3, "historical": 0.7}
    game = replace(game, discriminator=Player("d", game.discriminator.replica, **RATES, **options))
    discriminator = networks("mlp")[1].double()
    adam, past = ByHand(discriminator), [[p.clone() for p in discriminator.parameters()]]
    objective = task("hinge")
    for step in range(1, 4):
        batch = prepare(next(stream), world)
        turn = Turn(objective.discriminator_loss, batch, step, 0, 0)
        metrics = update(game.discriminator, game.generator, turn, PACE, world)
        draws = replace(DRAWS, purpose="d", step=step)
        terms = objective.discriminator_loss(
            discriminator, game.generator.replica.module, batch, draws, 0
        )
        products = [
            w @ w.T for w in discriminator.parameters() if w.ndim == 2 and w.shape != (3, 9)
        ]
        overlaps = sum((p - p.diag().diag()).square().sum() for p in products)
        means = [torch.stack(each).mean(0).detach() for each in zip(*past)]
        pairs = zip(discriminator.parameters(), means)
        distance = sum((weight - mean).square().sum() for weight, mean in pairs)
        assert metrics["orthogonal"] == pytest.approx(0.3 * overlaps.item(), rel=1e-9)
        assert metrics["historical"] == pytest.approx(0.7 * distance.item(), rel=1e-9, abs=1e-30)
        norm = adam.step(terms["loss"] + 0.3 * overlaps + 0.7 * distance, 0)
        assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-9)
        past.append([p.detach().clone() for p in discriminator.parameters()])
    state = game.discriminator.state()
    assert state["d.history.updates"] == 4
    for (name, _), mean in zip(discriminator.named_parameters(), zip(*past)):
        found = state[f"d.history.mean.{name}"]
        torch.testing.assert_close(found, torch.stack(mean).mean(0), **EXACT)


def test_an_adaptive_ratio_follows_the_discriminator(world: World) -> None:
    """Never as good as asked for, it makes an update more in every step, up to three more."""
    band = Band(low=1.5, high=2.0, most=3, decay=0.1)
    game = players(world, objective=task(balance=Balance("accuracy", band)))
    pace, stream = replace(PACE, generator_updates=2), batches()
    ratios, states = [], []
    for step in range(1, 7):
        metrics = adversarial_step(game, stream, step, pace, world)
        ratios.append((metrics["discriminator/updates"], metrics["generator/updates"]))
        states.append(snapshot(game))
    assert ratios == [(1, 2), (1, 1), (2, 1), (3, 1), (3, 1), (3, 1)]
    assert int(next(stream)["__key__"][0].split("-")[0]) == 13
    # The rates go on as if a step had one update, and a resumed run takes up the ratio.
    (group,) = game.generator.replica.optimizer.param_groups
    assert group["lr"] == RATES["learning_rate"].at(5 * SIZE)
    other = players(world, objective=task(balance=Balance("accuracy", band)))
    for name, tensor in other.state().items():
        tensor.data.copy_(states[2][name])
    metrics = adversarial_step(other, iter(list(batches())[4:7]), 4, pace, world)
    assert metrics["discriminator/updates"] == 3
    assert_same(snapshot(other), states[3])


def test_the_opponent_is_left_as_it_was(world: World) -> None:
    game = players(world, "r3gan")
    before = snapshot(game)
    turn = Turn(task().discriminator_loss, prepare(next(batches()), world), 1, 0, 0)
    update(game.discriminator, game.generator, turn, PACE, world)
    after = snapshot(game)
    for name in before:
        if name.startswith(("generator.", "average.")):
            assert torch.equal(before[name], after[name])
    turn = replace(turn, objective=task().generator_loss)
    update(game.generator, game.discriminator, turn, PACE, world)
    final = snapshot(game)
    for name in before:
        if name.startswith("discriminator."):
            assert torch.equal(after[name], final[name])
    for player in (game.generator, game.discriminator):
        for parameter in player.replica.parameters:
            assert parameter.requires_grad
            assert parameter.grad is None


def test_a_checkpoint_has_one_form_and_is_read_in_place(world: World) -> None:
    game, stream = players(world, "dcgan", objective=task(separate=True)), batches()
    start = game.state()
    adversarial_step(game, stream, 1, PACE, world)
    later = game.state()
    assert start.keys() == later.keys()
    for name, tensor in later.items():
        assert tensor.data_ptr() == start[name].data_ptr(), name
        assert tensor.shape == start[name].shape
    assert later["generator.optimizer.stages.0.0.weight.step"] == 1
    assert "average.to_image.bias" in later
    assert "discriminator.network.features.weight" in later


def test_a_resumed_step_is_the_uninterrupted_one(world: World) -> None:
    game, stream = players(world, "r3gan"), batches()
    for step in (1, 2):
        adversarial_step(game, stream, step, PACE, world)
    saved = snapshot(game)
    rest = list(batches())[2:4]
    for step, batch in zip((3, 4), rest):
        adversarial_step(game, iter([batch]), step, PACE, world)
    other = players(world, "r3gan")
    for name, tensor in other.state().items():
        tensor.data.copy_(saved[name])
    for step, batch in zip((3, 4), rest):
        adversarial_step(other, iter([batch]), step, PACE, world)
    assert_same(snapshot(other), snapshot(game))


class Forgetful(nn.Module):
    """A discriminator that draws by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 64))
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        kept = F.dropout(torch.ones_like(x.flatten(1)))
        self.kept.append(kept)
        return (kept * x.flatten(1) * self.weight).tanh().sum(1)


def test_networks_that_draw_repeat_themselves(world: World) -> None:
    """At the same step of a run, whatever was drawn before it, and at no other step or run."""
    states, masks = [], []
    for state, step, seed in ((1, 5, 4), (2, 5, 4), (2, 6, 4), (2, 5, 3)):
        judge = Forgetful()
        game = players(world, pair=(networks("mlp")[0], judge), objective=task("hinge"))
        torch.manual_seed(state)
        adversarial_step(game, batches(), step, replace(PACE, seed=seed), world)
        states.append(snapshot(game))
        masks.append(judge.kept)
    assert_same(states[1], states[0])
    first, same, *others = masks
    assert all(torch.equal(a, b) for a, b in zip(first, same))
    for other in others:
        assert not any(torch.equal(a, b) for a, b in zip(first, other))


def with_bad_weight(game: Players, batch: Batch) -> Batch:
    next(iter(game.discriminator.replica.parameters)).data.view(-1)[3] = float("nan")
    return batch


def with_bad_generator(game: Players, batch: Batch) -> Batch:
    next(iter(game.generator.replica.parameters)).data.view(-1)[3] = float("nan")
    return batch


def with_bad_image(game: Players, batch: Batch) -> Batch:
    batch["image"] = batch["image"].double()
    batch["image"][-1, 0, 2, 2] = float("inf")  # in the last micro-batch alone
    return batch


@pytest.mark.parametrize("damage", [with_bad_weight, with_bad_generator, with_bad_image])
def test_bad_numbers_stop_the_step_before_any_weight_moves(
    damage: Callable[[Players, Batch], Batch], world: World
) -> None:
    game = players(world, "r3gan")
    adversarial_step(game, batches(), 1, PACE, world)
    batch = damage(game, next(batches()))
    before = snapshot(game)
    message = r"^step 17: the discriminator's update is not finite\nrank 0: loss, .*; samples 0-0, "
    with pytest.raises(NonFinite, match=message) as caught:
        adversarial_step(game, iter([batch]), 17, replace(PACE, accumulation=4), world)
    assert "0-7" in str(caught.value)
    assert_same(snapshot(game), before)


def test_a_bad_gradient_alone_is_found(world: World) -> None:
    game = players(world)
    before = snapshot(game)

    def objective(network: Any, fixed: Any, batch: Batch, draws: Draws, seen: int) -> Any:
        z = draws.normal(5)
        image = network(z, batch["label"]).sum()
        return {"loss": (image - image.detach()).sqrt(), "other": image.detach()}

    turn = Turn(objective, prepare(next(batches()), world), 3, 0, 0)
    with pytest.raises(NonFinite, match=r"the generator's .*\nrank 0: gradient; samples 0-0"):
        update(game.generator, game.discriminator, turn, PACE, world)
    assert_same(snapshot(game), before)


def test_images_are_scaled_on_the_device(world: World) -> None:
    batch = {
        "image": torch.tensor([[0, 255], [51, 204]], dtype=torch.uint8).view(2, 1, 1, 2),
        "label": torch.tensor([1, 2]),
        "__key__": ["a", "b"],
    }
    prepared = prepare(batch, world)
    assert prepared["image"].dtype == torch.float64
    assert prepared["image"].flatten().tolist() == pytest.approx([-1.0, 1.0, -0.6, 0.6])
    assert prepared["label"].tolist() == [1, 2]
    assert prepared["__key__"] == ["a", "b"]
    assert batch["image"].dtype == torch.uint8


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_micro_batches_are_consecutive_and_equal(parts: int) -> None:
    batch = next(batches())
    pieces = list(split(batch, parts))
    assert len(pieces) == parts
    assert all(len(piece["__key__"]) == SIZE // parts for piece in pieces)
    for key in ("image", "label"):
        assert torch.equal(torch.cat([piece[key] for piece in pieces]), batch[key])
    assert [key for piece in pieces for key in piece["__key__"]] == batch["__key__"]
