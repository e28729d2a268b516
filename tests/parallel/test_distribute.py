"""How a network is held on one rank, whatever the strategy."""

import pytest
from torch import nn

from dgan.parallel.distribute import distribute
from dgan.parallel.layout import Layout
from dgan.parallel.replicas import FSDPReplica, Replica
from dgan.parallel.world import launch


class Blocks(nn.Sequential):
    @property
    def blocks(self) -> list[nn.Module]:
        return list(self)


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_one_rank_spreads_nothing(strategy: str) -> None:
    with launch() as world:
        network = Blocks(nn.Linear(2, 2))
        replica = distribute(network, world, Layout(strategy=strategy))
        assert type(replica) is Replica
        assert replica.module is network


def test_one_rank_may_still_offload() -> None:
    with launch() as world:
        replica = distribute(Blocks(nn.Linear(2, 2)), world, Layout(strategy="fsdp", offload=True))
        assert isinstance(replica, FSDPReplica)
