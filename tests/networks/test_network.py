"""Networks built on the meta device and filled afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from dgan.networks.biggan import BigGANDiscriminator, BigGANGenerator
from dgan.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from dgan.networks.mlp import MLPDiscriminator, MLPGenerator
from dgan.networks.network import Network
from dgan.networks.r3gan import R3GANDiscriminator, R3GANGenerator
from dgan.networks.residual import SNGANDiscriminator, SNGANGenerator
from dgan.networks.stylegan2 import StyleGAN2Generator
from dgan.networks.stylegan2_discriminator import StyleGAN2Discriminator
from dgan.networks.transformer import TransformerDiscriminator, TransformerGenerator

SIZES: dict[str, Any] = {"resolution": 16, "channels": 3, "classes": 4}
TOKENS = {"width": 8, "depth": 2, "heads": 2, "patch": 4}
BLOCKS = {"widths": (8, 6, 4), "blocks": (1, 2, 1), "groups": (4, 3, 2)}
NETWORKS: list[tuple[type[Network], dict[str, Any]]] = [
    (SNGANGenerator, {"widths": (8, 6, 4)}),
    (SNGANDiscriminator, {"widths": (8, 6, 4)}),
    (BigGANGenerator, {"widths": (8, 6, 4), "attention": 8}),
    (BigGANDiscriminator, {"widths": (8, 6, 4), "attention": 8}),
    (R3GANGenerator, BLOCKS),
    (R3GANDiscriminator, BLOCKS),
    (StyleGAN2Generator, {"widths": (8, 6, 4), "z_dim": 8, "w_dim": 5, "mapping_layers": 2}),
    (StyleGAN2Discriminator, {"widths": (8, 6, 4)}),
    (DCGANGenerator, {"widths": (8, 6)}),
    (DCGANDiscriminator, {"widths": (8, 6)}),
    (MLPGenerator, {"widths": (8, 6)}),
    (MLPDiscriminator, {"widths": (8, 6)}),
    (TransformerGenerator, TOKENS),
    (TransformerDiscriminator, TOKENS),
]


def on_meta(network: type[Network], options: dict[str, Any]) -> Network:
    with torch.device("meta"):
        return network(**SIZES, **options)


@pytest.mark.parametrize(("network", "options"), NETWORKS)
def test_what_is_filled_later_equals_what_is_filled_at_once(
    network: type[Network], options: dict[str, Any]
) -> None:
    torch.manual_seed(3)
    at_once = network(**SIZES, **options)
    later = on_meta(network, options).to_empty(device="cpu")
    for tensor in (*later.parameters(), *later.buffers()):
        tensor.data.fill_(float("nan"))
    torch.manual_seed(3)
    later.init_weights()
    expected, found = at_once.state_dict(), later.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert len(list(later.buffers())) == len(list(at_once.buffers()))
    torch.manual_seed(4)
    later.init_weights()
    drawn = [name for name, p in expected.items() if p.ndim > 1 and p.any()]
    assert drawn
    assert not any(torch.equal(later.state_dict()[name], expected[name]) for name in drawn)


@pytest.mark.parametrize(("network", "options"), NETWORKS)
def test_gradients_reach_what_was_filled_later(
    network: type[Network], options: dict[str, Any]
) -> None:
    later = on_meta(network, options).to_empty(device="cpu")
    later.init_weights()
    z_dim = getattr(later, "z_dim", None)
    inputs = torch.randn(2, z_dim) if z_dim else torch.randn(2, 3, 16, 16)
    later(inputs, torch.tensor([0, 3])).sum().backward()
    assert all(p.grad is not None for p in later.parameters() if p.requires_grad)


@pytest.mark.parametrize(("network", "options"), NETWORKS)
def test_nothing_is_written_outside_of_what_is_entered(
    network: type[Network], options: dict[str, Any]
) -> None:
    """A sharded network's layers are whole there only."""
    later = on_meta(network, options).to_empty(device="cpu")
    entered: list[nn.Module] = []

    @contextmanager
    def around(layer: nn.Module) -> Iterator[None]:
        others = {p: p._version for p in set(later.parameters()) - set(layer.parameters())}
        yield
        assert all(p._version == version for p, version in others.items())
        entered.append(layer)

    later.init_weights(around)
    reached = {p for layer in entered for p in layer.parameters()}
    assert reached == set(later.parameters())
    assert all(p._version > 0 for p in reached)


@pytest.mark.parametrize(("network", "options"), NETWORKS[::3])
def test_what_has_no_memory_cannot_be_filled(
    network: type[Network], options: dict[str, Any]
) -> None:
    empty = on_meta(network, options)
    with pytest.raises(ValueError, match=rf"{network.__name__} has no memory yet: call to_empty"):
        empty.init_weights()


def test_only_the_networks_layers_hold_tensors() -> None:
    """What a network itself holds would be filled by nobody."""
    for network, options in NETWORKS:
        for module in on_meta(network, options).modules():
            own: list[nn.Parameter | torch.Tensor] = [*module.parameters(recurse=False)]
            own += module.buffers(recurse=False)
            parametrised = type(module).__name__ in ("ParametrizationList", "SpectralNorm")
            assert not own or parametrised or hasattr(module, "reset_parameters")
