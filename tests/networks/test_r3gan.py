"""The R3GAN networks against their formulas, the published sizes and their initialisation."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgan.networks.layers import channels_last
from dgan.networks.r3gan import R3GANDiscriminator, R3GANGenerator, ResidualBlock

CIFAR10 = {"widths": (768,) * 4, "blocks": (2,) * 4, "groups": (96,) * 4}
FFHQ64 = {
    "widths": (768, 768, 768, 768, 384),
    "blocks": (2,) * 5,
    "groups": (96, 96, 96, 96, 48),
}
SMALL: dict[str, Any] = {"widths": (8, 6, 4), "blocks": (1, 2, 1), "groups": (4, 3, 2)}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scrambled(network: nn.Module) -> dict[str, Tensor]:
    """Give every parameter, zero ones too, a random value; return them by name."""
    network.double()
    for seed, parameter in enumerate(network.parameters()):
        parameter.data = 0.5 * numbers(*parameter.shape, seed=seed)
    return {name: p.detach() for name, p in network.named_parameters()}


def arguments(size: int, classes: int = 0) -> dict[str, Any]:
    stages = size.bit_length() - 2
    widths, groups = (8, 6, 4, 4, 2)[:stages], (4, 3, 2, 1, 1)[:stages]
    blocks = (1,) * stages
    sizes = {"resolution": size, "channels": 3, "classes": classes}
    return {**sizes, "widths": widths, "blocks": blocks, "groups": groups}


# The formulas of the paper, written out.
def block(x: Tensor, w: dict[str, Tensor], name: str, groups: int) -> Tensor:
    h = F.conv2d(x, w[f"{name}.expand.weight"]) + w[f"{name}.act1.bias"][:, None, None]
    h = F.conv2d(F.leaky_relu(h, 0.2), w[f"{name}.mix.weight"], padding=1, groups=groups)
    h = F.leaky_relu(h + w[f"{name}.act2.bias"][:, None, None], 0.2)
    return x + F.conv2d(h, w[f"{name}.project.weight"])


def smoothing(channels: int) -> Tensor:
    row = torch.tensor([1, 3, 3, 1], dtype=torch.float64) / 8
    return (row[:, None] * row).expand(channels, 1, 4, 4)


def doubled(x: Tensor) -> Tensor:
    kernel = 4 * smoothing(x.shape[1])
    return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


def halved(x: Tensor) -> Tensor:
    return F.conv2d(x, smoothing(x.shape[1]), stride=2, padding=1, groups=x.shape[1])


def test_generator_equals_its_formula() -> None:
    network = R3GANGenerator(resolution=16, channels=3, classes=5, z_dim=7, **SMALL)
    w = scrambled(network)
    z, labels = numbers(2, 7), torch.tensor([4, 1])
    latent = torch.cat([z, w["embedding.weight"][labels]], 1)
    scale = latent @ w["stages.0.0.linear.weight"].T
    x = w["stages.0.0.basis"] * scale[:, :, None, None]
    for stage, (count, groups) in enumerate(zip(SMALL["blocks"], SMALL["groups"])):
        if stage:
            x = doubled(F.conv2d(x, w[f"stages.{stage}.0.conv.weight"]))
        for index in range(count):
            x = block(x, w, f"stages.{stage}.{1 + index}", groups)
    expected = F.conv2d(x, w["to_image.weight"])
    torch.testing.assert_close(network(z, labels), expected, rtol=1e-12, atol=1e-12)


def test_discriminator_equals_its_formula() -> None:
    network = R3GANDiscriminator(resolution=16, channels=3, classes=5, embedding_dim=9, **SMALL)
    w = scrambled(network)
    assert w["embedding.weight"].shape == (5, 9)
    image, labels = numbers(2, 3, 16, 16), torch.tensor([4, 1])
    x = F.conv2d(image, w["from_image.weight"])
    for stage, (count, groups) in enumerate(zip(SMALL["blocks"][::-1], SMALL["groups"][::-1])):
        for index in range(count):
            x = block(x, w, f"stages.{stage}.{index}", groups)
        if stage < 2:
            x = F.conv2d(halved(x), w[f"stages.{stage}.{count}.conv.weight"])
    x = (x * w["stages.2.1.basis"]).sum((2, 3)) @ w["stages.2.1.linear.weight"].T
    expected = (x * w["embedding.weight"][labels]).sum(1)
    torch.testing.assert_close(network(image, labels), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("resolution", "shape", "published"),
    [(32, CIFAR10, 20.7e6), (64, FFHQ64, 22.4e6)],
    ids=["cifar10", "ffhq64"],
)
def test_published_sizes(resolution: int, shape: dict[str, Any], published: float) -> None:
    widths, expansion, z_dim = shape["widths"], 2, 64
    body = 16 * widths[0]  # the 4×4 basis
    for width, blocks, groups in zip(widths, shape["blocks"], shape["groups"]):
        hidden = width * expansion
        convolutions = width * hidden + 9 * hidden * (hidden // groups) + hidden * width
        body += blocks * (convolutions + 2 * hidden)  # and two biases
    body += sum(a * b for a, b in pairwise(widths) if a != b)
    body += 3 * widths[-1]  # to or from the image
    with torch.device("meta"):
        sizes = {"resolution": resolution, "channels": 3, "expansion": expansion, **shape}
        generator = R3GANGenerator(z_dim=z_dim, **sizes)
        discriminator = R3GANDiscriminator(**sizes)
    count = sum(p.numel() for p in generator.parameters())
    assert count == body + z_dim * widths[0]
    assert count == pytest.approx(published, rel=2e-3)
    assert sum(p.numel() for p in discriminator.parameters()) == body + widths[0]


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("size", [4, 8, 16, 64])
def test_shapes(size: int, classes: int) -> None:
    generator = R3GANGenerator(z_dim=5, **arguments(size, classes))
    discriminator = R3GANDiscriminator(**arguments(size, classes))
    labels = torch.tensor([0, 2]) if classes else None
    images = generator(torch.randn(2, 5), labels)
    assert images.shape == (2, 3, size, size)
    assert discriminator(images, labels).shape == (2,)


def test_only_conditional_networks_see_the_class() -> None:
    z, x = torch.randn(1, 5), torch.randn(1, 3, 8, 8)
    labels = torch.tensor([0]), torch.tensor([2])
    for classes in (0, 3):
        generator = R3GANGenerator(z_dim=5, **arguments(8, classes))
        discriminator = R3GANDiscriminator(**arguments(8, classes))
        for network, inputs in ((generator, z), (discriminator, x)):
            first, second = (network(inputs, label) for label in labels)
            assert torch.equal(first, second) == (classes == 0)


def test_residual_blocks_start_as_the_identity() -> None:
    generator = R3GANGenerator(z_dim=5, resolution=16, channels=3, **SMALL)
    discriminator = R3GANDiscriminator(resolution=16, channels=3, **SMALL)
    z, image = torch.randn(2, 5), torch.randn(2, 3, 16, 16)
    x = z
    for stage in generator.stages:
        x = stage[0](x)
    assert torch.equal(generator(z), generator.to_image(x))
    x = channels_last(discriminator.from_image(image))
    for stage in discriminator.stages:
        x = stage[-1](x)
    assert torch.equal(discriminator(image), x.squeeze(1))
    # And not because the blocks are left out.
    for network, inputs in ((generator, z), (discriminator, image)):
        before = network(inputs)
        blocks = [m for m in network.modules() if isinstance(m, ResidualBlock)]
        assert len(blocks) == 4
        for part in blocks:
            nn.init.normal_(part.project.weight)
            after = network(inputs)
            assert not torch.allclose(before, after)
            before = after


def test_initial_scales() -> None:
    """Fix-up: standard deviation gain · depth^(−1/4) / √fan-in inside blocks of a deep network."""
    torch.manual_seed(0)
    shape = {"widths": (64, 48), "blocks": (2, 3), "groups": (8, 6)}
    sizes = {"resolution": 8, "channels": 3, "classes": 50}
    leaky = math.sqrt(2 / (1 + 0.2**2))
    for network in (
        R3GANGenerator(z_dim=60, **sizes, **shape),
        R3GANDiscriminator(embedding_dim=60, **sizes, **shape),
    ):
        generates = isinstance(network, R3GANGenerator)
        for name, parameter in network.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 0
            if name.endswith(("expand.weight", "mix.weight")):
                expected = leaky * 5 ** (-1 / 4) / math.sqrt(fan_in)
            elif name.endswith(("project.weight", ".bias")):
                expected = 0.0
            elif name == "embedding.weight":  # a linear map of one-hot vectors
                expected = 1 / math.sqrt(50) if generates else 1 / math.sqrt(50 * 60)
            elif name.endswith(".basis") and generates:
                expected = 1.0
            else:
                expected = 1 / math.sqrt(fan_in)
            # A sample's standard deviation is known to 1/√(2n), here four of them.
            tolerance = 4 / math.sqrt(2 * parameter.numel())
            assert parameter.std(correction=0).item() == pytest.approx(expected, rel=tolerance), (
                name
            )


@pytest.mark.parametrize("network", [R3GANGenerator, R3GANDiscriminator])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 12}, r"resolution 12: it takes 4, 8, 16"),
        ({"resolution": 2}, r"resolution 2: it takes 4, 8, 16"),
        ({"widths": (8, 6)}, r"16 needs 3 widths \(for 4, 8, 16\), but got 2: \(8, 6\)"),
        ({"blocks": (1, 1)}, r"blocks must .* got \(1, 1\) for widths \(8, 6, 4\)"),
        ({"groups": (4,)}, r"groups must .* got \(4,\) for widths \(8, 6, 4\)"),
        ({"groups": (4, 5, 2)}, r"groups 5 does not divide the 12 channels .*width 6 × expansion"),
    ],
)
def test_sizes_that_do_not_fit_are_named(
    network: type[nn.Module], changes: dict[str, Any], message: str
) -> None:
    sizes = {"resolution": 16, "channels": 3, **SMALL, **changes}
    with pytest.raises(ValueError, match=message):
        network(**sizes)


def test_groups_divide_the_wider_inside_of_a_block() -> None:
    sizes = {"resolution": 16, "channels": 3, **SMALL, "groups": (16, 4, 8)}
    assert R3GANDiscriminator(**sizes)(torch.ones(1, 3, 16, 16)).shape == (1,)
