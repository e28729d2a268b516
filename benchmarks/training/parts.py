"""What each part of the step's economy saves: a step without it beside the step as it is.

    python benchmarks/training/parts.py [--rounds 12] [--only NAME] [--out FOLDER]

Measured as `against.py` does, with its networks, where the part has something to do; `ratio` is the
median over rounds of the time without the part over that with it: above 1, it saves time. `frozen`:
the discriminator's weights get no gradients while the generator learns. `one call`: it judges real
and generated samples together. `fused Adam`: beside PyTorch's loop over parameters. `channels
last`: the discriminator's memory. `convolutions`: differentiated twice by the library's gradient
kernels, beside PyTorch's own second derivative.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from against import CASES, batch_of, compare, ours, recipe_of, two_beside
from dgan.parallel.replicas import Replica
from dgan.parallel.world import World
from dgan.step import Players
from dgan.tasks.synthesis import Synthesis

Without = AbstractContextManager[object]
"""What every step without the part runs in."""


def unfrozen(players: Players) -> Without:
    @contextmanager
    def frozen(self: Replica) -> Iterator[torch.nn.Module]:
        # The generator's own are never asked for: it runs without gradients.
        yield self.module
        if self is players.discriminator.replica:
            self.optimizer.zero_grad(set_to_none=True)

    return patch.object(Replica, "frozen", frozen)


def two_calls(players: Players) -> Without:
    assert isinstance(players.task, Synthesis)
    players.task.separate = True
    return nullcontext()


def loop_of_adam(players: Players) -> Without:
    for player in (players.generator, players.discriminator):
        for group in player.replica.optimizer.param_groups:
            group.update(fused=False, foreach=False)
    return nullcontext()


def contiguous(players: Players) -> Without:
    module = sys.modules[type(players.discriminator.replica.module).__module__]
    return patch.object(module, "channels_last", lambda x: x)


def pytorchs_convolutions(players: Players) -> Without:
    return patch("dgan.objectives.convolutions._PARSERS", {})


WITHOUT: dict[str, tuple[Callable[[Players], Without], tuple[str, ...]]] = {
    "frozen": (unfrozen, tuple(CASES)),
    "one call": (two_calls, ("mlp", "sngan", "biggan", "r3gan", "transformer")),
    "fused Adam": (loop_of_adam, tuple(CASES)),
    "channels last": (contiguous, ("sngan", "biggan", "stylegan2", "r3gan")),
    "convolutions": (pytorchs_convolutions, ("stylegan2", "r3gan")),
}
"""How to do without each part, and which families have it."""


def rows_of(name: str, world: World, rounds: int) -> Iterator[dict[str, Any]]:
    case = CASES[name]
    recipe, batch = recipe_of(case), batch_of(case)
    for part, (undo, families) in WITHOUT.items():
        if name not in families:
            continue
        without, as_it_is = ours(recipe, batch, world, undo), ours(recipe, batch, world)
        times = two_beside(rounds, without=without, ours=as_it_is)
        yield {"family": name, "part": part, **times}


if __name__ == "__main__":
    compare(
        "dgan's step without one of its parts, beside the step as it is.",
        rows_of,
        "{family:12} {part:14} {without_ms:8.1f} {ours_ms:8.1f} ms  {ratio:.3f}",
        result="training-parts",
        notes=(__doc__ or "").partition("\n\n")[2],
    )
