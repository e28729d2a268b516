"""The forward method through modules that recompute their activations."""

import copy
from collections.abc import Callable

import pytest
from critics import Block, critic, gradient
from exactness import relative
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.attention import SDPBackend, sdpa_kernel

from dgan.objectives.penalties import choose
from dgan.parallel.recompute import recompute


def by_wrapper(network: nn.Sequential, index: int) -> None:
    network[index] = checkpoint_wrapper(network[index])


def by_dgan(network: nn.Sequential, index: int) -> None:
    recompute(network, blocks=[network[index]])


def inside(network: nn.Sequential, index: int) -> None:
    """A recomputed module within a recomputed module."""
    recompute(network[index], blocks=[network[index].nested])
    recompute(network, blocks=[network[index]])


def wrapped_inside(network: nn.Sequential, index: int) -> None:
    network[index].nested = checkpoint_wrapper(network[index].nested)
    network[index] = checkpoint_wrapper(network[index])


@pytest.mark.parametrize("apply", [by_wrapper, by_dgan, inside, wrapped_inside])
def test_recomputed_blocks_are_exact(apply: Callable[[nn.Sequential, int], None]) -> None:
    network = critic(Block(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8))))
    plain = copy.deepcopy(network)
    apply(network, 2)
    assert choose(network) == "forward"
    assert choose(plain) == "double"
    wanted = gradient(plain, plain, "forward")
    assert relative(gradient(network, network, "forward"), wanted) < 1e-10
    # Both ways again: the first call has left nothing.
    assert relative(gradient(network, network, "auto"), wanted) < 1e-10


class Outer(nn.Module):
    """Calls a block in each of the ways Python offers."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, h: Tensor) -> Tensor:
        h = self.block(h, 0.5, shift=h.square())
        h = self.block(h, shift=None).tanh()
        return self.block.forward(h, scale=2.0)


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("recomputed", [False, True])
def test_a_block_called_three_ways(recomputed: bool, hooked: bool) -> None:
    """Named tensors with a tangent, twice by call, once past the hooks."""
    network = critic(Outer())
    plain = copy.deepcopy(network)
    if recomputed:
        recompute(network[2], blocks=[network[2].block])
    if hooked:
        network[2].block.register_forward_hook(lambda *_: None)
    wanted = gradient(plain, plain, "forward")
    assert relative(gradient(network, network, "forward"), wanted) < 1e-10
    with sdpa_kernel(SDPBackend.MATH):
        assert relative(wanted, gradient(plain, plain, "double")) < 1e-10
