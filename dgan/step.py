"""One adversarial step: the discriminator's updates, the generator's, the average."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgan.draws import Draws, seed_of
from dgan.networks.judges import follow_shadows
from dgan.networks.spectral import advance_spectral_norms
from dgan.objectives.regularizers import clip_weights_
from dgan.parallel.average import Average
from dgan.parallel.on_weights import OnWeights
from dgan.parallel.replicas import Replica, State, local
from dgan.parallel.world import World
from dgan.schedule import Averaging, Cosine
from dgan.tasks.statistics import scalars
from dgan.tasks.task import Task

Batch = dict[str, Any]
Objective = Callable[..., dict[str, Tensor]]
"""(player's network, opponent's network, batch, draws, images seen) → scalars and vectors, each a
mean over the batch; `loss` is what is minimised."""


class NonFinite(ArithmeticError):
    """A loss or a gradient is NaN or infinite; the weights were not updated.

    `player`, whose it is, still holds the gradients.
    """

    def __init__(self, message: str, player: "Player") -> None:
        super().__init__(message)
        self.player = player


class Player:
    """A network and its optimizer.

    Args:
        name: `generator` or `discriminator`; prefixes what is logged.
        replica: the network, as the strategy holds it.
        learning_rate: over images seen; `beta2` likewise.
        beta1: Adam's first moment decay.
        epsilon: Adam's.
        clip: every weight is put into [−clip, clip] after an update (Arjovsky et al. 2017); 0: not.
        orthogonal: weight of orthogonal regularisation; see `OnWeights`, as for `historical`.
        historical: weight of historical averaging.
    """

    def __init__(
        self,
        name: str,
        replica: Replica,
        *,
        learning_rate: Cosine,
        beta1: float,
        beta2: Cosine,
        epsilon: float,
        clip: float = 0.0,
        orthogonal: float = 0.0,
        historical: float = 0.0,
    ) -> None:
        self.name = name
        self.replica = replica
        self.learning_rate, self.beta1, self.beta2 = learning_rate, beta1, beta2
        self.clip = clip
        replica.drive(
            torch.optim.Adam(
                replica.trainable, lr=0.0, betas=(beta1, beta2.at(0)), eps=epsilon, fused=True
            )
        )
        self.on_weights = OnWeights(replica, orthogonal=orthogonal, historical=historical)

    def step(self, images_seen: int, rate: float = 1.0) -> None:
        """Move the weights along the accumulated gradients, and forget these.

        `rate` multiplies the learning rate.
        """
        self.replica.step(
            lr=rate * self.learning_rate.at(images_seen),
            betas=(self.beta1, self.beta2.at(images_seen)),
        )
        if self.clip:
            clip_weights_(map(local, self.replica.weights().values()), self.clip)
            self.replica.written()
        self.on_weights.follow()
        advance_spectral_norms(self.replica.module, whole=self.replica.whole)
        follow_shadows(self.replica.module)

    def state(self) -> State:
        """Weights, buffers, moments and history by name; loading writes into them."""
        history = {f"history.{key}": value for key, value in self.on_weights.state().items()}
        state = self.replica.state() | history
        return {f"{self.name}.{key}": value for key, value in state.items()}


@dataclass(frozen=True, kw_only=True)
class Players:
    """Both players, the average of the generator's weights, and the task that they play."""

    generator: Player
    discriminator: Player
    average: Average
    averaging: Averaging
    task: Task

    @property
    def z_dim(self) -> int:
        """The size of the latents that the generator takes."""
        return self.generator.replica.module.z_dim  # pyright: ignore[reportReturnType]

    def state(self) -> State:
        """Every tensor of the run by name; a checkpoint is read into them."""
        return {
            **self.generator.state(),
            **self.discriminator.state(),
            **{f"average.{name}": tensor for name, tensor in self.average.state().items()},
            **{f"task.{name}": tensor for name, tensor in self.task.memory.items()},
        }

    def loaded(self) -> None:
        """Called after a checkpoint was read into `state`."""
        self.generator.replica.written()
        self.discriminator.replica.written()


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What a step consists of."""

    batch_size: int
    """Images of one update, over all ranks."""
    accumulation: int
    """Equal micro-batches of an update."""
    discriminator_updates: int
    generator_updates: int
    seed: int
    learning_rate: float = 1.0
    """Multiplies both players'."""

    @property
    def images_per_step(self) -> int:
        """Real images that the discriminator sees in a step, at the ratio that is set here.

        Where the ratio adapts, schedules go on counting so many.
        """
        return self.batch_size * self.discriminator_updates


def adversarial_step(
    players: Players, stream: Iterator[Batch], step: int, pace: Pace, world: World
) -> dict[str, float]:
    """Step `step` (from 1): each discriminator update takes a batch, the generator's the last one.

    Returns:
        What `update` returns, named `player/key`; of several updates, of the last.

    Raises:
        NonFinite: on every rank; the weights are those before the update that failed.
    """
    discriminator, generator, task = players.discriminator, players.generator, players.task
    images_seen = (step - 1) * pace.images_per_step
    # Networks may draw by themselves (dropout): the same at this step after a resume.
    world.seed(seed_of(pace.seed, "networks", step, world.rank))
    metrics: dict[str, float] = {}
    batch: Batch = {}
    found: dict[str, float] = {}
    updates, replies = task.balance.updates(pace.discriminator_updates, pace.generator_updates)
    for index in range(updates):
        batch = prepare(next(stream), world)
        turn = Turn(task.discriminator_loss, batch, step, index, images_seen)
        found = update(discriminator, generator, turn, pace, world)
        task.after_discriminator(found, pace.batch_size)
        metrics |= named(discriminator, found)
    task.balance.follow(found)
    for index in range(replies):
        turn = Turn(task.generator_loss, batch, step, index, images_seen)
        found = update(generator, discriminator, turn, pace, world)
        task.after_generator(found)
        metrics |= named(generator, found)
    if task.balance.adapts:
        metrics |= {"discriminator/updates": float(updates), "generator/updates": float(replies)}
    players.average.update(players.averaging.decay(images_seen, pace.images_per_step))
    return metrics


def named(player: Player, metrics: dict[str, float]) -> dict[str, float]:
    """The metrics of a player's update, named `player/key`."""
    return {f"{player.name}/{key}": value for key, value in metrics.items()}


@dataclass(frozen=True)
class Turn:
    """What one update is about."""

    objective: Objective
    batch: Batch
    """This rank's rows of the global batch, of `prepare`."""
    step: int
    index: int
    """Counts the player's updates in this step."""
    images_seen: int


def update(
    player: Player, opponent: Player, turn: Turn, pace: Pace, world: World
) -> dict[str, float]:
    """One optimizer step of `player` on the global batch.

    Returns:
        The objective's scalars, what `scalars` makes of its vectors, and `gradient_norm`, over the
        global batch.

    Raises:
        NonFinite: on every rank, before any weight has changed.
    """
    world.at(f"{player.name} update")
    rows = pace.batch_size // world.size
    draws = Draws(
        seed=pace.seed,
        purpose=player.name,
        step=turn.step,
        update=turn.index,
        rows=range(world.rank * rows, (world.rank + 1) * rows),
        device=world.device,
        dtype=world.dtype,
    )
    sums: dict[str, Tensor] = {}
    with opponent.replica.frozen() as fixed:
        for index, micro_batch in enumerate(split(turn.batch, pace.accumulation)):
            part = draws.part(index, pace.accumulation)
            with player.replica.accumulate(last=index == pace.accumulation - 1):
                with world.autocast():
                    terms = turn.objective(
                        player.replica, fixed, micro_batch, part, turn.images_seen
                    )
                player.replica.backward(terms["loss"] / pace.accumulation)
            for key, value in terms.items():
                sums[key] = sums.get(key, 0.0) + value.detach().double() / pace.accumulation
    player.replica.finish_backward()
    parts = {key: value / world.size for key, value in sums.items()}
    parts |= player.on_weights.add_gradients()
    try:
        means = _over_ranks(player, parts, turn.batch, world)
    except NonFinite as error:
        raise NonFinite(f"step {turn.step}: {error}", player) from None
    player.step(turn.images_seen, pace.learning_rate)
    return means


def _over_ranks(
    player: Player, parts: dict[str, Tensor], batch: Batch, world: World
) -> dict[str, float]:
    """What is logged, the sum of all ranks' parts, in one exchange that also finds bad numbers."""
    parts["gradient"] = player.replica.squared_gradient_norm()
    flat = torch.cat([part.flatten() for part in parts.values()])
    total = world.total(flat).cpu()
    if not bool(total.isfinite().all()):
        raise _non_finite(player, parts, batch, world)
    pieces = total.split([part.numel() for part in parts.values()])
    means = {key: piece.view(parts[key].shape) for key, piece in zip(parts, pieces)}
    norm = means.pop("gradient").sqrt()
    return {**scalars(means), "gradient_norm": norm.item()}


def _non_finite(player: Player, parts: dict[str, Tensor], batch: Batch, world: World) -> NonFinite:
    bad = [name for name, part in parts.items() if not bool(part.isfinite().all())]
    reports = world.gather({"terms": bad, "keys": batch["__key__"]})
    lines = [
        f"rank {rank}: {', '.join(report['terms'])}; samples {', '.join(report['keys'])}"
        for rank, report in enumerate(reports)
        if report["terms"]
    ]
    return NonFinite(f"the {player.name}'s update is not finite\n" + "\n".join(lines), player)


def prepare(batch: Batch, world: World) -> Batch:
    """A batch of the stream on the device, in the run's dtype; pixels (uint8) in [−1, 1]."""
    return {key: _prepared(value, world) for key, value in batch.items()}


def _prepared(value: Any, world: World) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.to(world.device, non_blocking=True)
    if value.is_floating_point():
        return value.to(world.dtype)
    if value.dtype != torch.uint8:
        return value
    # Decoders write channels last; generated images, which they will meet, mostly are contiguous.
    return value.to(world.dtype, memory_format=torch.contiguous_format) / 127.5 - 1.0


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """Equal consecutive parts of a batch, in order."""
    size = len(batch["__key__"]) // parts
    for start in range(0, parts * size, size):
        yield {key: value[start : start + size] for key, value in batch.items()}
