"""A network that is sharded before it has weights begins with those of one process."""

from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dgan.networks import FAMILIES
from dgan.networks.network import Network
from dgan.parallel import shard
from dgan.parallel.whole import whole
from dgan.parallel.world import launch

OPTIONS: dict[str, dict[str, Any]] = {
    "sngan": {"widths": (8, 6, 4)},
    "biggan": {"widths": (8, 6, 4), "attention": 8},
    "transformer": {"width": 8, "depth": 2, "heads": 2, "patch": 4},
}
CASES = [(family, role) for family in OPTIONS for role in ("generator", "discriminator")]


def built(family: str, role: Any) -> Network:
    network = FAMILIES[family][role](resolution=16, channels=3, classes=3, **OPTIONS[family])
    assert isinstance(network, Network)
    return network


def judged(network: nn.Module) -> Tensor:
    torch.manual_seed(4)
    z_dim = getattr(network, "z_dim", None)
    inputs = torch.randn(2, z_dim) if z_dim else torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        return network.eval()(inputs, torch.tensor([0, 1]))


def filled_later() -> list[tuple[dict[str, Tensor], Tensor]]:
    results = []
    with launch(precision="float32") as world:
        for family, role in CASES:
            with torch.device("meta"):
                network = built(family, role)
            shard(network, world.mesh)
            network.to_empty(device="cpu")
            torch.manual_seed(3)
            network.init_weights(whole)
            state = {
                name: (value.full_tensor() if isinstance(value, DTensor) else value).clone()
                for name, value in network.state_dict().items()
            }
            results.append((state, judged(network)))
    return results


@pytest.mark.parametrize("size", [1, 2])
def test_weights_are_those_of_one_process(size: int) -> None:
    for results in run_ranks(size, filled_later):
        for (family, role), (state, output) in zip(CASES, results):
            torch.manual_seed(3)
            expected = built(family, role)
            assert state.keys() == expected.state_dict().keys()
            for name, value in expected.state_dict().items():
                assert torch.equal(state[name], value), (family, role, name)
            torch.testing.assert_close(output, judged(expected))
