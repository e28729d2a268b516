"""The StyleGAN2 family against the paper's formulas, written out sample by sample, in float64."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dgan.draws import noise_from_seeds, seeds_from_latents
from dgan.networks import build
from dgan.networks.equalized import EqualizedConv2d, EqualizedLinear
from dgan.networks.stylegan2 import StyledConv

EXACT = {"rtol": 1e-10, "atol": 1e-10}
ROW = torch.tensor([1, 3, 3, 1], dtype=torch.float64) / 8
KERNEL = ROW[:, None] * ROW
WIDTHS = (6, 4, 2)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(role: Any, **options: Any) -> tuple[torch.nn.Module, dict[str, Tensor]]:
    sizes = {"resolution": 16, "channels": 2, "widths": WIDTHS, **options}
    built = build(role, "stylegan2", seed=0, **sizes).double()
    for seed, parameter in enumerate(built.parameters()):
        parameter.data = parameter + 0.3 * numbers(*parameter.shape, seed=seed)
    return built, dict(built.named_parameters())


def leaky(x: Tensor) -> Tensor:
    return math.sqrt(2) * F.leaky_relu(x, 0.2)


def smooth(x: Tensor, padding: tuple[int, int, int, int], gain: float = 1.0) -> Tensor:
    x = F.pad(x, padding)
    return gain * F.conv2d(x, KERNEL.expand(x.shape[1], 1, 4, 4), groups=x.shape[1])


def doubled(x: Tensor) -> Tensor:
    """A zero after every pixel."""
    n, c, h, w = x.shape
    return F.pad(x[..., None, :, None], (0, 1, 0, 0, 0, 1)).reshape(n, c, 2 * h, 2 * w)


def upsampled(x: Tensor) -> Tensor:
    return smooth(doubled(x), (2, 1, 2, 1), gain=4.0)


def linear(x: Tensor, w: dict[str, Tensor], name: str, rate: float = 1.0) -> Tensor:
    weight = w[f"{name}.weight"] * rate / math.sqrt(x.shape[1])
    return x @ weight.T + rate * w[f"{name}.bias"]


def unit(x: Tensor) -> Tensor:
    return x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()


def styled(
    x: Tensor, w: dict[str, Tensor], name: str, latent: Tensor, seeds: Tensor, layer: int, up: bool
) -> Tensor:
    """Weights modulated and demodulated one sample at a time: equations 1 and 3 of the paper."""
    styles, images = linear(latent, w, f"{name}.affine"), []
    for image, style in zip(x, styles):
        weight = w[f"{name}.weight"] * style[None, :, None, None]
        weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        # Twice the size: zeros between the pixels, the filter, then the convolution; between the
        # two nothing is cut off.
        wide = smooth(doubled(image[None]), (3, 2, 3, 2), gain=4.0) if up else image[None]
        images.append(F.conv2d(wide, weight, padding=0 if up else 1))
    y = torch.cat(images)
    noise = noise_from_seeds(seeds, layer, (1, *y.shape[2:])).double()
    return leaky(y + noise * w[f"{name}.noise_strength"] + w[f"{name}.bias"][:, None, None])


@pytest.mark.parametrize("classes", [0, 3])
def test_generator_formula(classes: int) -> None:
    generator, w = network("generator", classes=classes, z_dim=5, w_dim=7, mapping_layers=2)
    z, labels = numbers(3, 5, seed=9), torch.tensor([2, 0, 1]) if classes else None
    parts = [unit(z)]
    if classes:
        parts.append(unit(w["mapping.embedding.weight"][labels]))
    latent = torch.cat(parts, 1)
    for layer in range(2):
        latent = leaky(linear(latent, w, f"mapping.layers.{layer}", rate=0.01))
    seeds = seeds_from_latents(z)
    x, image = w["constant.value"].expand(3, -1, -1, -1), torch.zeros(1, dtype=torch.float64)
    for level in range(3):
        stage = f"stages.{level}"
        if level:
            x = styled(x, w, f"{stage}.up", latent, seeds, 2 * level - 1, up=True)
            image = upsampled(image)
        x = styled(x, w, f"{stage}.conv", latent, seeds, 2 * level, up=False)
        styles = linear(latent, w, f"{stage}.to_image.affine") / math.sqrt(x.shape[1])
        rgb = torch.einsum("oi,ni,nihw->nohw", w[f"{stage}.to_image.weight"][..., 0, 0], styles, x)
        image = image + rgb + w[f"{stage}.to_image.bias"][:, None, None]
    torch.testing.assert_close(generator(z, labels), image, **EXACT)


def conv(x: Tensor, w: dict[str, Tensor], name: str, padding: int = 0, stride: int = 1) -> Tensor:
    weight = w[f"{name}.weight"]
    scale = math.sqrt(weight[0].numel())
    return F.conv2d(x, weight / scale, padding=padding, stride=stride)


@pytest.mark.parametrize(("classes", "residual"), [(0, True), (3, True), (3, False)])
@pytest.mark.parametrize("mapping_layers", [0, 2])
def test_discriminator_formula(classes: int, residual: bool, mapping_layers: int) -> None:
    options = {"residual": residual, "mapping_layers": mapping_layers}
    discriminator, w = network("discriminator", classes=classes, group_size=2, **options)
    images = numbers(4, 2, 16, 16)
    labels = torch.tensor([2, 0, 1, 1]) if classes else None

    def bias(name: str) -> Tensor:
        return w[f"{name}.bias"][:, None, None]

    x = leaky(conv(images, w, "from_image") + bias("from_image"))
    for level in range(2):
        stage = f"stages.{level}"
        y = leaky(conv(x, w, f"{stage}.conv1", padding=1) + bias(f"{stage}.conv1"))
        y = conv(smooth(y, (2, 2, 2, 2)), w, f"{stage}.conv2", stride=2)
        y = leaky(y + bias(f"{stage}.conv2"))
        if not residual:
            x = y
            continue
        skip = conv(smooth(x, (1, 1, 1, 1))[..., ::2, ::2], w, f"{stage}.skip")
        x = (y + skip) / math.sqrt(2)
    # Samples 0 and 1 are a group, and 2 and 3.
    pairs = x.unflatten(0, (2, 2))
    deviation = (pairs.var(1, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
    extra = deviation.repeat_interleave(2)[:, None, None, None].expand(-1, 1, 4, 4)
    x = conv(torch.cat([x, extra], 1), w, "head.conv", padding=1) + bias("head.conv")
    x = linear(leaky(x).flatten(1), w, "head.hidden")
    x = linear(leaky(x), w, "head.out")
    if not classes:
        expected = x[:, 0]
    elif not mapping_layers:
        expected = (x * w["embedding.weight"][labels]).sum(1)
    else:
        mapped = unit(w["mapping.embedding.weight"][labels])
        for layer in range(mapping_layers):
            mapped = leaky(linear(mapped, w, f"mapping.layers.{layer}", rate=0.01))
        expected = (x * mapped).sum(1) / math.sqrt(WIDTHS[0])
    torch.testing.assert_close(discriminator(images, labels), expected, **EXACT)


def test_groups_of_a_batch_do_not_depend_on_how_it_is_divided() -> None:
    discriminator, _ = network("discriminator", group_size=2)
    images = numbers(8, 2, 16, 16)
    whole = discriminator(images)
    parts = torch.cat([discriminator(part) for part in images.chunk(4)])
    torch.testing.assert_close(parts, whole, **EXACT)
    assert discriminator(images[:3]).shape == (3,)  # no pairs: each by itself


def test_the_latent_decides_the_noise() -> None:
    generator, w = network("generator", z_dim=5, w_dim=7, mapping_layers=2)
    z = numbers(4, 5, seed=9)
    images = generator(z)
    torch.testing.assert_close(generator(z[1:3]), images[1:3], **EXACT)
    for name, strength in w.items():
        if name.endswith("noise_strength"):
            strength.data.zero_()
    assert (generator(z) - images).abs().max() > 0.1


def test_all_scales_are_kept_at_the_start() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 300)
    for layer in [EqualizedLinear(300, 300, act="leaky_relu", rate=rate) for rate in (1.0, 0.01)]:
        assert layer(x).square().mean().item() == pytest.approx(1.0, rel=0.1)
    image = torch.randn(4, 64, 16, 16)
    inside = EqualizedConv2d(64, 64, 3)(image)[..., 1:-1, 1:-1]
    assert inside.square().mean().item() == pytest.approx(1.0, rel=0.1)
    w, seeds = torch.randn(4, 32), torch.arange(4)
    y = StyledConv(64, 48, 32, layer=0, up=False)(image, w, seeds)[..., 1:-1, 1:-1]
    assert y.square().mean().item() == pytest.approx(1.0, rel=0.1)


def test_a_rate_slows_a_layer_down() -> None:
    """A step of one size on the weights moves the output by `rate` times as much."""
    moved = []
    for rate in (1.0, 0.01):
        torch.manual_seed(0)
        layer = EqualizedLinear(20, 3, rate=rate).double()
        x = numbers(5, 20)
        before = layer(x)
        for parameter in layer.parameters():
            parameter.data += 0.1
        moved.append((layer(x) - before).norm())
    assert (moved[1] / moved[0]).item() == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("role", "options", "message"),
    [
        ("generator", {"mapping_layers": 0}, "mapping_layers must be at least 1, got 0"),
        ("discriminator", {"group_size": 0}, "group_size must be at least 1, got 0"),
        ("discriminator", {"mapping_layers": -1}, "mapping_layers must be at least 0, got -1"),
        ("generator", {"widths": (4, 4)}, "StyleGAN2Generator at resolution 16 needs 3 widths"),
        ("discriminator", {"resolution": 12}, "StyleGAN2Discriminator cannot make resolution 12"),
    ],
)
def test_sizes_that_do_not_fit_are_named(role: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(role, **options)
