"""Regularisers of the weights alone: no pass through the network, whole weights or shards of them.

What they add to the gradients is not averaged over ranks: every rank adds the same, or its part.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import parametrize

from dgan.networks.layers import Fused, stored_weight
from dgan.objectives.regularizers import (
    advance_history_,
    historical_average,
    orthogonal,
    orthogonal_gradient,
)
from dgan.parallel.replicas import Replica, State, copies_of, local

LAYERS = (nn.Linear, nn.modules.conv._ConvNd, Fused)
"""Whose weights, of two dimensions or more, hold one filter for each output."""


class OnWeights:
    """Orthogonal regularisation and historical averaging of one player's weights.

    Args:
        replica: holds them; of any strategy but DeepSpeed's, which keeps gradients elsewhere.
        orthogonal: weight of `regularizers.orthogonal` (Brock et al. 2019), over the weights of
            linear layers and convolutions; embeddings are left out, as in BigGAN.
        historical: weight of `regularizers.historical_average` (Salimans et al. 2016), over all
            parameters. Their history begins with the weights that this is constructed with.

    Raises:
        ValueError: there is no weight that could be orthogonal.
    """

    def __init__(self, replica: Replica, *, orthogonal: float, historical: float) -> None:
        self.replica, self.orthogonal, self.historical = replica, orthogonal, historical
        self.averages: dict[str, Tensor] = {}
        self.updates = torch.ones((), dtype=torch.float64)
        if historical:
            self.averages = {name: w.clone() for name, w in replica.weights().items()}
        if orthogonal and not any(True for _ in _filters(replica.module)):
            name = type(replica.module).__name__
            raise ValueError(f"{name} has no linear layer or convolution to make orthogonal")

    @torch.no_grad()
    def add_gradients(self) -> dict[str, Tensor]:
        """Add to the gradients, once the backward passes are through and before the step.

        Returns:
            What is added to the loss, by name: of each rank a part, which add up to it.
        """
        parts = {}
        if self.orthogonal:
            parts["orthogonal"] = self._add_orthogonal()
        if self.historical:
            parts["historical"] = self._add_historical()
        return parts

    def follow(self) -> None:
        """Take the weights after an update into their history."""
        if self.historical:
            self.updates += 1
            now = [local(weight) for weight in self.replica.weights().values()]
            advance_history_(self._past(), now, int(self.updates))

    def state(self) -> State:
        """The history by name; a checkpoint is read into it."""
        if not self.historical:
            return {}
        averages = {name: self.replica.saved(name, past) for name, past in self.averages.items()}
        return {
            "updates": self.updates,
            **{f"mean.{name}": past for name, past in averages.items()},
        }

    def _add_orthogonal(self) -> Tensor:
        values = []
        for parameter, outputs in _filters(self.replica.module):
            whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            rows = whole.transpose(0, outputs)
            values.append(orthogonal([rows]))
            gradient = self.orthogonal * orthogonal_gradient(rows).transpose(0, outputs)
            _add(parameter, gradient.contiguous())
        world = self.replica.world
        return self.orthogonal * torch.stack(values).sum().double().to(world.device) / world.size

    def _add_historical(self) -> Tensor:
        parameters = self.replica.trainable
        now, past = [local(p.detach()) for p in parameters], self._past()
        for parameter, here, before in zip(parameters, now, past, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            local(parameter.grad).add_(here - before, alpha=2 * self.historical)
        world = self.replica.world
        value = self.historical * historical_average(now, past).double().to(world.device)
        return value / copies_of(parameters[0], world)

    def _past(self) -> list[Tensor]:
        return [local(past) for past in self.averages.values()]


def _filters(module: nn.Module) -> Iterator[tuple[nn.Parameter, int]]:
    """Trained weights of such layers, and which dimension counts the outputs of each."""
    seen: set[int] = set()
    for layer in module.modules():
        if isinstance(layer, LAYERS) and _has_weight(layer):
            weight = stored_weight(layer)
            assert isinstance(weight, nn.Parameter)
            if weight.requires_grad and weight.ndim >= 2 and id(weight) not in seen:
                seen.add(id(weight))
                yield weight, int(isinstance(layer, nn.modules.conv._ConvTransposeNd))


def _has_weight(layer: nn.Module) -> bool:
    # Reading `weight` of a parametrised layer would compute it, of shards.
    own = dict(layer.named_parameters(recurse=False)).keys()
    return "weight" in own or parametrize.is_parametrized(layer, "weight")


def _add(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Add a whole gradient to that of a parameter, which may be sharded."""
    if isinstance(parameter, DTensor):
        # Every rank has all of it: nothing is sent.
        gradient = distribute_tensor(
            gradient, parameter.device_mesh, parameter.placements, src_data_rank=None
        )
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad.add_(gradient)
