"""The exponential moving average of a network's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from dgan.parallel.replicas import Replica, State, local


class Average:
    """Averages of what this rank holds of a network; to be used, they change places with it.

    Updated shard by shard: no weight is ever gathered for it, and there is no second network.

    Args:
        source: whose weights it follows, and begins with.
    """

    def __init__(self, source: Replica) -> None:
        self.source = source
        self.weights = {name: weight.clone() for name, weight in source.weights().items()}
        self.buffers = {name: b.clone() for name, b in source.module.named_buffers()}

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """average ← decay · average + (1 − decay) · source; buffers are copied."""
        mine = [local(weight) for weight in self.weights.values()]
        theirs = [local(weight) for weight in self.source.weights().values()]
        torch._foreach_lerp_(mine, theirs, 1.0 - decay)
        for name, buffer in self.source.module.named_buffers():
            self.buffers[name].copy_(buffer)

    @contextmanager
    def network(self) -> Iterator[nn.Module]:
        """The averaged network, for evaluation, without gradients; all ranks enter it together."""
        module = self.source.module
        training = [part for part in module.modules() if part.training]
        self._exchange()
        module.eval()
        try:
            with torch.no_grad():
                yield module
        finally:
            for part in training:
                part.training = True
            self._exchange()

    def state(self) -> State:
        """Weights and buffers by name; a checkpoint is read into them."""
        return self.source.network_state(self.weights, self.buffers)

    @torch.no_grad()
    def _exchange(self) -> None:
        theirs = {**self.source.weights(), **dict(self.source.module.named_buffers())}
        for name, mine in {**self.weights, **self.buffers}.items():
            a, b = local(mine), local(theirs[name])
            kept = a.clone()
            a.copy_(b)
            b.copy_(kept)
        self.source.written()
