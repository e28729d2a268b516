"""Layers of a sharded network as if they were not sharded."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor


@contextmanager
def whole(layer: nn.Module) -> Iterator[None]:
    """Gather the parameters of `layer`; afterwards keep this rank's shards of what they are then.

    All ranks enter it together and must leave equal values, as from equal seeds they do. So a
    network that no rank could hold is filled with the weights it would have in one process:

        with torch.device("meta"):
            network = TransformerDiscriminator(...)
        shard(network, mesh)
        network.to_empty(device="cuda")
        torch.manual_seed(seed)  # the same on every rank
        network.init_weights(whole)
    """
    gathered = []
    for module in layer.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                module.register_parameter(name, nn.Parameter(parameter.full_tensor()))
                gathered.append((module, name, parameter))
    try:
        yield
    finally:
        for module, name, parameter in gathered:
            full = module.get_parameter(name).detach()
            # Every rank has all of it: nothing is sent.
            cut = distribute_tensor(
                full, parameter.device_mesh, parameter.placements, src_data_rank=None
            )
            with torch.no_grad():
                parameter.to_local().copy_(cut.to_local())
            module.register_parameter(name, parameter)
