"""One step of training as a rank of a large job would compute it, with tensors that hold nothing.

The networks, the task, FSDP2 and the optimizer are the real ones, and the code is that of
`dgan.step`: what they allocate, exchange and compute is noted, not modelled. Only the numbers are
missing.
"""

import importlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.distributed.device_mesh import init_device_mesh

from dgan.parallel.world import World
from dgan.planner.ledger import (
    AVERAGE,
    GRADIENTS,
    OPTIMIZER,
    STEPPING,
    WEIGHTS,
    Ledger,
)
from dgan.planner.moments import worst_moments
from dgan.schedule import constant
from dgan.step import Objective, Pace, Player, Players, Turn, update
from dgan.tasks.penalty import Penalty

Build = Callable[[World], Players]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is rehearsed besides the players.

    Attributes:
        ranks: that the job is pretended to have.
        rows: real samples of a rank's micro-batch.
        accumulation: micro-batches of an update.
        batch: of each entry of a batch, what one sample is: its shape and dtype.
        compute_dtype: of autocast regions; weights are float32.
        compare: take the discriminator's update without its penalty too.
    """

    ranks: int
    rows: int
    accumulation: int
    batch: dict[str, tuple[tuple[int, ...], torch.dtype]]
    compute_dtype: torch.dtype
    compare: bool = True


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one update of a player takes on one rank.

    Attributes:
        passes: bytes by label at moments of the forward and backward passes, one of which is the
            worst (`worst_moments`).
        stepping: likewise of the optimizer's step.
        flops: of all micro-batches.
        exchanged: bytes by collective, as in `ledger.Segment`; `exchanges` counts them.
        if_kept: bytes, as there.
    """

    passes: list[Counter[str]]
    stepping: list[Counter[str]]
    flops: int
    exchanged: Counter[str]
    exchanges: Counter[str]
    if_kept: int


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What one step takes on one rank.

    Attributes:
        updates: `discriminator`, `generator` and, where it is asked for and there is a penalty,
            `discriminator without penalty`.
        penalised: whether there is a penalty.
        shapes: of each network's parameters that are trained.
        parameters: of each network, also those that are not.
        forward_flops: of each network for one sample: of the call that took least.
        units: in how many pieces each network is gathered.
    """

    setting: Setting
    updates: dict[str, Update]
    penalised: bool
    shapes: dict[str, list[tuple[int, ...]]]
    parameters: dict[str, int]
    forward_flops: dict[str, float]
    units: dict[str, int]


WITHOUT = "discriminator without penalty"


def rehearse(build: Build, setting: Setting) -> Rehearsal:
    """Take one update of each kind with the players that `build` makes in a world of fakes.

    Raises:
        ValueError: something in them depends on numbers, or cannot run on fake tensors.
        RuntimeError: this process takes part in a real job.
    """
    with _pretended(setting) as world, fakes(), Ledger() as ledger:
        return _rehearsed(build(world), ledger, setting, world)


@contextmanager
def _pretended(setting: Setting) -> Iterator[World]:
    """The first rank of a job whose other ranks are not there."""
    # PyTorch's own tests use it; it registers the backend `fake`.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    # Registers the form of collectives' results.
    importlib.import_module("torch.distributed._tools.fake_collectives")

    if dist.is_initialized():
        raise RuntimeError("a plan is made in a process of its own, not in one of a running job")
    dist.init_process_group("fake", rank=0, world_size=setting.ranks, store=FakeStore())
    try:
        assert dist.group.WORLD is not None
        yield World(
            rank=0,
            size=setting.ranks,
            device=torch.device("cpu"),
            mesh=init_device_mesh("cpu", (setting.ranks,), mesh_dim_names=("data",)),
            control=dist.group.WORLD,
            dtype=torch.float32,
            compute_dtype=setting.compute_dtype,
        )
    finally:
        dist.destroy_process_group()


@contextmanager
def fakes() -> Iterator[None]:
    """Tensors made meanwhile hold nothing.

    Raises:
        ValueError: something depends on numbers, or cannot run on fake tensors.
    """
    state = torch.get_rng_state()
    try:
        with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
            warnings.simplefilter("ignore")  # of numbers that are not there
            yield
    except (
        DataDependentOutputException,
        DynamicOutputShapeException,
        UnsupportedOperatorException,
    ) as error:
        raise ValueError(
            f"this recipe cannot be planned: {error} needs numbers, and a plan has none"
        ) from error
    finally:
        torch.set_rng_state(state)


def units_of(network: nn.Module) -> int:
    """In how many pieces it is gathered: its blocks one by one, and what is left."""
    return 1 + len(list(getattr(network, "blocks", ())))


def _rehearsed(players: Players, ledger: Ledger, setting: Setting, world: World) -> Rehearsal:
    generator, discriminator = players.generator, players.discriminator
    task: Any = players.task  # some have a penalty
    modules = {each.name: each.replica.module for each in (generator, discriminator)}
    forward_flops = {name: _watch_calls(module, ledger) for name, module in modules.items()}
    for player in (generator, discriminator):
        _step_once(player)
        ledger.label(WEIGHTS, player.replica.parameters)
        moments = player.replica.moments().values()
        ledger.label(OPTIMIZER, [value for each in moments for value in each.values()])
    ledger.label(AVERAGE, players.average.weights.values())
    penalty: Penalty | None = getattr(task, "penalty", None)
    if penalty is not None and not penalty.is_taken:
        penalty = None
    # Where its weight grows from nothing, what is rehearsed is the end of that.
    images = 0 if penalty is None or penalty.gamma.start else int(1000 * penalty.gamma.kimg)

    def measured(player: Player, opponent: Player, loss: Objective) -> Update:
        turn = Turn(loss, _batch(setting), 1, 0, images)
        return _measured(ledger, player, opponent, turn, setting, world)

    found = {"discriminator": measured(discriminator, generator, task.discriminator_loss)}
    if penalty is not None and setting.compare:
        task.penalty = replace(penalty, gamma=constant(0.0))
        found[WITHOUT] = measured(discriminator, generator, task.discriminator_loss)
    found["generator"] = measured(generator, discriminator, task.generator_loss)
    return Rehearsal(
        setting=setting,
        updates=found,
        penalised=penalty is not None,
        shapes={
            each.name: [tuple(p.shape) for p in each.replica.trainable]
            for each in (generator, discriminator)
        },
        parameters={n: sum(p.numel() for p in m.parameters()) for n, m in modules.items()},
        forward_flops={name: min(calls) for name, calls in forward_flops.items()},
        units={name: units_of(module) for name, module in modules.items()},
    )


def _watch_calls(module: nn.Module, ledger: Ledger) -> list[float]:
    """FLOPs for a sample of each call of `module` from now on."""
    calls: list[float] = []
    begun: list[int] = []

    def before(*_: Any) -> None:
        begun.append(ledger.flops)

    def after(_: nn.Module, inputs: tuple[Tensor, ...], __: Any) -> None:
        calls.append((ledger.flops - begun.pop()) / len(inputs[0]))

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)
    return calls


def _step_once(player: Player) -> None:
    """DTensor tries every operation once on a fake of the whole weights: not while it counts."""
    for parameter in player.replica.trainable:
        parameter.grad = torch.zeros_like(parameter)
    player.replica.step(lr=0.0, betas=(0.0, 0.5))


def _measured(
    ledger: Ledger, player: Player, opponent: Player, turn: Turn, setting: Setting, world: World
) -> Update:
    """One update; of many micro-batches the first and the last are taken."""
    taken = min(setting.accumulation, 2)
    pace = Pace(
        batch_size=setting.rows * setting.ranks * taken, accumulation=taken,
        discriminator_updates=1, generator_updates=1, seed=0,
    )  # fmt: skip

    def objective(*arguments: Any) -> Any:
        ledger.mark("passes")
        return turn.objective(*arguments)

    def stepping(*_: Any) -> None:
        ledger.mark("stepping", STEPPING)
        ledger.label(GRADIENTS, [p.grad for p in player.replica.trainable])

    ledger.mark("opening")
    ledger.kept.clear()
    first = len(ledger.segments)
    hook = player.replica.optimizer.register_step_pre_hook(stepping)
    try:
        update(player, opponent, replace(turn, objective=objective), pace, world)
    finally:
        hook.remove()
        ledger.mark("closed")
    *passes, step, closed = ledger.segments[first:]
    # All micro-batches but the last are alike.
    times = [setting.accumulation - 1, 1] if taken == 2 else [1]
    exchanged: Counter[str] = Counter()
    exchanges: Counter[str] = Counter()
    for segment, count in zip(passes, times, strict=True):
        for kind, size in segment.exchanged.items():
            exchanged[kind] += count * size
            exchanges[kind] += count * segment.exchanges[kind]
    return Update(
        passes=worst_moments(ledger.allocations, passes[0].start, step.start),
        stepping=worst_moments(ledger.allocations, step.start, closed.start),
        flops=sum(count * segment.flops for segment, count in zip(passes, times)),
        exchanged=exchanged + step.exchanged,
        exchanges=exchanges + step.exchanges,
        if_kept=sum(count * segment.if_kept for segment, count in zip(passes, times)),
    )


def _batch(setting: Setting) -> dict[str, Any]:
    rows = setting.rows * min(setting.accumulation, 2)
    tensors = {
        name: torch.zeros(rows, *shape, dtype=dtype)
        for name, (shape, dtype) in setting.batch.items()
    }
    return {**tensors, "__key__": [""] * rows}
