"""What every family must keep, the small families' formulas, and building networks by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgan.networks import FAMILIES, build, default_options
from dgan.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from dgan.networks.layers import NormAct
from dgan.networks.mlp import MLPDiscriminator, MLPGenerator

OPTIONS: dict[str, dict[str, Any]] = {
    "biggan": {"widths": (8, 6, 4), "attention": 8},
    "dcgan": {"widths": (8, 6)},
    "mlp": {"widths": (16, 12)},
    "r3gan": {"widths": (8, 6, 4), "blocks": (1, 1, 1), "groups": (4, 3, 2)},
    "sngan": {"widths": (8, 6, 4)},
    "stylegan2": {"widths": (8, 6, 4)},
    "transformer": {"width": 8, "depth": 2, "heads": 2, "patch": 4},
}
LARGE: dict[str, dict[str, Any]] = {
    "biggan": {"widths": (256,) * 4, "attention": 16, "spectral": False},
    "dcgan": {"widths": (512, 256, 128)},
    "mlp": {"widths": (4096, 4096)},
    "r3gan": {"widths": (256,) * 4, "blocks": (2,) * 4, "groups": (32,) * 4},
    "sngan": {"widths": (256,) * 4},
    "stylegan2": {"widths": (256,) * 4},
    "transformer": {"width": 256, "depth": 4, "heads": 4, "patch": 4},
}
OTHERS = {"characters", "points", "video", "waveform"}
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scrambled(network: nn.Module) -> nn.Module:
    """Move every parameter, those that start at zero too."""
    network.double()
    for seed, parameter in enumerate(network.parameters()):
        parameter.data = parameter + 0.5 * numbers(*parameter.shape, seed=seed)
    return network


def pair(family: str, classes: int = 0, **options: Any) -> tuple[nn.Module, nn.Module]:
    """A generator and a discriminator of 16×16 images, with weights that are nowhere zero."""
    torch.manual_seed(0)
    sizes = {"resolution": 16, "channels": 3, "classes": classes, **OPTIONS[family]}
    generator = FAMILIES[family]["generator"](z_dim=5, **sizes)
    return scrambled(generator), scrambled(FAMILIES[family]["discriminator"](**sizes, **options))


def test_every_pair_for_images_is_here() -> None:
    """Lone discriminators, points, texts, clips and waveforms have tests of their own."""
    pairs = {name for name, family in FAMILIES.items() if len(family) == 2}
    assert pairs - OTHERS == OPTIONS.keys() == LARGE.keys()


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - OPTIONS.keys() - OTHERS))
def test_a_network_alone_has_no_other(family: str) -> None:
    sizes = {"resolution": 16, "channels": 3, "classes": 0}
    lacking = "discriminator" if "generator" in FAMILIES[family] else "generator"
    with pytest.raises(ValueError, match=f"the family '{family}' has no {lacking}; choose from"):
        build(lacking, family, seed=0, **sizes)


@pytest.mark.parametrize("classes", [0, 4])
@pytest.mark.parametrize("family", OPTIONS)
def test_shapes_and_conditions(family: str, classes: int) -> None:
    generator, discriminator = pair(family, classes)
    labels = torch.tensor([0, 3, 3]) if classes else None
    images = generator(numbers(3, 5), labels)
    assert images.shape == (3, 3, 16, 16)
    logits = discriminator(images, labels)
    assert logits.shape == (3,)
    if classes:
        others = torch.tensor([1, 3, 3])
        assert not torch.allclose(generator(numbers(3, 5), others)[0], images[0])
        assert not torch.allclose(discriminator(images, others)[0], logits[0])
    assert isinstance(generator.z_dim, int)
    assert generator.z_dim == 5


@pytest.mark.parametrize(
    ("family", "options"),
    [
        *((family, {}) for family in OPTIONS),
        *(("dcgan", {"norm": norm}) for norm in ("none", "layer", "instance")),
        ("stylegan2", {"group_size": 1}),
    ],
)
def test_coupled_samples_are_declared(family: str, options: dict[str, Any]) -> None:
    generator, discriminator = pair(family, **options)
    z, x = numbers(4, 5), numbers(4, 3, 16, 16)
    for network, inputs in ((generator, z), (discriminator, x)):
        other = torch.cat([inputs[:1], 2 * inputs[1:] + 1])
        same = torch.allclose(network(inputs)[0], network(other)[0], rtol=1e-9, atol=1e-12)
        assert network.couples_samples == (not same)


@pytest.mark.parametrize("role", ["generator", "discriminator"])
@pytest.mark.parametrize("family", OPTIONS)
def test_blocks_are_disjoint_parts_with_most_of_the_weights(family: str, role: str) -> None:
    with torch.device("meta"):
        sizes = {"resolution": 32, "channels": 3, "classes": 10, **LARGE[family]}
        network = FAMILIES[family][role](**sizes)
    modules = set(network.modules())
    assert len(network.blocks) > 1
    assert all(block in modules for block in network.blocks)
    inside = [p for block in network.blocks for p in block.parameters()]
    assert len(inside) == len(set(inside))
    whole = sum(p.numel() for p in network.parameters())
    assert sum(p.numel() for p in inside) > 0.5 * whole


@pytest.mark.parametrize("family", OPTIONS)
def test_forward_calls_every_block_once(family: str) -> None:
    """Sharding hangs on the call of a block: one that is bypassed would not be gathered."""
    calls: list[nn.Module] = []
    generator, discriminator = pair(family)
    for network in (generator, discriminator):
        for block in network.blocks:
            block.register_forward_hook(lambda module, *_: calls.append(module))
        calls.clear()
        network(numbers(2, 5) if network is generator else numbers(2, 3, 16, 16))
        assert calls == list(network.blocks)


@pytest.mark.parametrize("classes", [0, 4])
def test_mlp_formula(classes: int) -> None:
    generator, discriminator = pair("mlp", classes)
    labels = torch.tensor([2, 0]) if classes else None

    def hidden(network: nn.Module, x: Tensor) -> Tensor:
        w = dict(network.named_parameters())
        for layer in range(2):
            x = x @ w[f"hidden.{layer}.0.weight"].T + w[f"hidden.{layer}.1.bias"]
            x = torch.where(x > 0, x, 0.2 * x)
        return x

    z = numbers(2, 5)
    inputs = torch.cat([z, generator.embedding.weight[labels]], 1) if classes else z
    flat = hidden(generator, inputs) @ generator.to_image.weight.T + generator.to_image.bias
    images = generator(z, labels)
    torch.testing.assert_close(images, flat.tanh().reshape(2, 3, 16, 16), **EXACT)
    x = hidden(discriminator, images.reshape(2, -1))
    expected = x @ discriminator.head.weight[0] + discriminator.head.bias
    if classes:
        expected = expected + (x * discriminator.embedding.weight[labels]).sum(1)
    torch.testing.assert_close(discriminator(images, labels), expected, **EXACT)


def test_dcgan_formula() -> None:
    generator, discriminator = pair("dcgan", classes=4)
    labels = torch.tensor([2, 0, 1])
    w = dict(generator.named_parameters())

    def norm(x: Tensor, name: str, w: dict[str, Tensor]) -> Tensor:
        scale, shift = w[f"{name}.weight"], w[f"{name}.bias"]
        return F.batch_norm(x, None, None, scale, shift, training=True)

    z = numbers(3, 5)
    x = torch.cat([z, w["embedding.weight"][labels]], 1)[:, :, None, None]
    x = F.conv_transpose2d(x, w["stages.0.0.weight"])
    x = norm(x, "stages.0.1", w).relu()
    x = F.conv_transpose2d(x, w["stages.1.0.weight"], stride=2, padding=1)
    x = norm(x, "stages.1.1", w).relu()
    expected = F.conv_transpose2d(
        x, w["to_image.weight"], w["to_image.bias"], stride=2, padding=1
    ).tanh()
    images = generator(z, labels)
    torch.testing.assert_close(images, expected, **EXACT)

    w = dict(discriminator.named_parameters())
    x = F.conv2d(images, w["stages.0.0.weight"], stride=2, padding=1)
    x = F.leaky_relu(x + w["stages.0.1.bias"][:, None, None], 0.2)  # the first is not normalised
    x = F.conv2d(x, w["stages.1.0.weight"], stride=2, padding=1)
    x = norm(x, "stages.1.1", w)
    x = F.conv2d(F.leaky_relu(x, 0.2), w["features.weight"], w["features.bias"])
    expected = (x.flatten(1) * w["embedding.weight"][labels]).sum(1)
    torch.testing.assert_close(discriminator(images, labels), expected, **EXACT)


def test_dcgan_starts_as_published() -> None:
    torch.manual_seed(0)
    sizes = {"resolution": 16, "channels": 3, "widths": (64, 48)}
    for network in (DCGANGenerator(**sizes), DCGANDiscriminator(**sizes)):
        weights = [p for p in network.parameters() if p.ndim == 4]
        for weight in weights:
            tolerance = 4 / (2 * weight.numel()) ** 0.5
            assert weight.std().item() == pytest.approx(0.02, rel=tolerance)
        assert len(weights) == 3
    plain = DCGANDiscriminator(**sizes, norm="none")
    assert not any(isinstance(m, NormAct) for m in plain.modules())
    with pytest.raises(ValueError, match="norm 'bach' is not known: choose from none, batch"):
        DCGANDiscriminator(**sizes, norm="bach")


def test_mlp_starts_with_a_scale_that_depth_keeps() -> None:
    torch.manual_seed(0)
    network = MLPDiscriminator(resolution=16, channels=1, widths=(400,) * 6)
    x = torch.randn(500, 256)
    for layer in network.hidden:
        x = layer(x)
    assert x.square().mean().item() == pytest.approx(1.0, rel=0.3)
    assert MLPGenerator(resolution=8, channels=1).z_dim == 64


def weights(network: nn.Module) -> Tensor:
    return torch.cat([p.flatten() for p in network.parameters()])


def test_equal_seeds_give_equal_weights() -> None:
    sizes = {"resolution": 8, "channels": 1}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = build("generator", "mlp", seed=1, **sizes)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(weights(first), weights(build("generator", "mlp", seed=1, **sizes)))
    assert not torch.equal(weights(first), weights(build("generator", "mlp", seed=2, **sizes)))


def test_roles_of_a_family() -> None:
    sizes = {"resolution": 8, "channels": 1}
    assert isinstance(build("generator", "mlp", seed=0, **sizes), MLPGenerator)
    assert isinstance(build("discriminator", "mlp", seed=0, **sizes), MLPDiscriminator)


def test_default_options_are_what_is_used_when_none_are_given() -> None:
    assert default_options("generator", "mlp") == {
        "z_dim": 64,
        "widths": (256, 256),
        "head": "tanh",
    }
    # `widths`, `blocks` and `groups` have no default; the data's sizes are no options.
    assert default_options("discriminator", "r3gan") == {"expansion": 2, "embedding_dim": 0}
    with pytest.raises(ValueError, match="no family"):
        default_options("generator", "r3gam")


MODULE = """
from torch import nn

class Judge(nn.Linear):
    def __init__(self, *, resolution, channels, classes=0, hidden=3):
        super().__init__(channels * resolution**2, hidden)

def anything(**options):
    judge = Judge(resolution=2, channels=1)
    judge.options = options
    return judge
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "networks_of_a_user.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("models")
def test_networks_by_import_path() -> None:
    sizes = {"resolution": 4, "channels": 2}
    network = build("discriminator", "networks_of_a_user:Judge", seed=3, **sizes, hidden=7)
    assert type(network).__name__ == "Judge"
    assert network.weight.shape == (7, 32)
    again = build("discriminator", "networks_of_a_user:Judge", seed=3, **sizes, hidden=7)
    assert torch.equal(weights(network), weights(again))
    # What takes any keyword is given all of them.
    built = build("discriminator", "networks_of_a_user:anything", seed=3, **sizes, depth=9)
    assert built.options == {"resolution": 4, "channels": 2, "depth": 9}


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        ("r3gam", {}, r"--generator.network 'r3gam' .*did you mean 'r3gan'\?.*import path"),
        ("xyz", {}, r"choose from biggan, characters, dcgan, mlp, patch, "),
        ("mlp", {"width": (3,)}, r"mlp takes no 'width'; did you mean 'widths'\?"),
        ("mlp", {"foo": 3}, r"'foo'; it takes resolution, channels, classes, z_dim, widths"),
        ("r3gan", {}, r"--generator.network r3gan: .*missing .*'widths'"),
        ("no_such_module:Net", {}, r"'no_such_module:Net' cannot be imported.*PYTHONPATH"),
        ("networks_of_a_user:Jugde", {}, r"cannot be imported: .*'Jugde'"),
        ("./models.py:Net", {}, r"'./models.py:Net' cannot be imported"),
        ("networks_of_a_user:Judge", {"hiden": 2}, r"did you mean 'hidden'\?"),
    ],
)
def test_wrong_names_are_explained(network: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("generator", network, seed=0, resolution=8, channels=1, **options)
