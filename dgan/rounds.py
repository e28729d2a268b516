"""The batches in which samples are generated for a score, and each rank's rows of them."""

from collections.abc import Iterator
from dataclasses import dataclass

from dgan.draws import Draws
from dgan.parallel.world import World


@dataclass(frozen=True)
class Round:
    """One batch.

    Attributes:
        index: its number.
        rows: of it, that this rank makes: at least one, for a sharded network needs every rank.
        first: the number of the sample that the first of them is.
        wanted: how many of them count.
        draws: their random numbers.
    """

    index: int
    rows: range
    first: int
    wanted: int
    draws: Draws


def rounds(samples: int, batch_size: int, *, seed: int, world: World) -> Iterator[Round]:
    """As many as `samples` take, of `batch_size` over all ranks."""
    begin, end = (batch_size * rank // world.size for rank in (world.rank, world.rank + 1))
    rows = range(begin, max(end, begin + 1))
    for index in range(-(-samples // batch_size)):
        first = index * batch_size + begin
        wanted = max(0, min(end - begin, samples - first))
        yield Round(index, rows, first, wanted, draws_of(index, rows, seed=seed, world=world))


def draws_of(index: int, rows: range, *, seed: int, world: World) -> Draws:
    """The random numbers of rows of a batch."""
    return Draws(
        seed=seed,
        purpose="evaluation",
        step=index,
        rows=rows,
        device=world.device,
        dtype=world.dtype,
    )
