"""SNGAN against its papers' formulas, written out in PyTorch, and the published architecture."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dgan
from dgan.networks.layers import Embedding
from dgan.networks.residual import ConditionalNorm, SNGANDiscriminator, SNGANGenerator

EXACT = {"rtol": 1e-11, "atol": 1e-11}
WIDTHS = (8, 6, 4)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scrambled(network: nn.Module) -> dict[str, Tensor]:
    """Move every parameter, in float64; what the layers compute with, by name."""
    network.double()
    for seed, parameter in enumerate(network.parameters()):
        parameter.data = parameter + 0.3 * numbers(*parameter.shape, seed=seed)
    weights = dict(network.state_dict())
    for name in [name for name in weights if name.endswith("parametrizations.weight.original")]:
        # What the power iteration tends to, by a singular value decomposition.
        value = weights.pop(name)
        u, sigma, _ = torch.linalg.svd(value.flatten(1), full_matrices=False)
        weights.pop(name.replace("original", "0.u")).copy_(u[:, 0])
        weights[name.replace("parametrizations.weight.original", "weight")] = value / sigma[0]
    return weights


def conv(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    weight = w[f"{name}.weight"]
    return F.conv2d(x, weight, w.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def halved(x: Tensor) -> Tensor:
    return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))


def standardised(x: Tensor, w: dict[str, Tensor], name: str, training: bool) -> Tensor:
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    if not training:
        mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    scale = (variance + 1e-5).rsqrt()
    return (x - mean[:, None, None]) * scale[:, None, None]


def normed(
    x: Tensor, w: dict[str, Tensor], name: str, labels: Tensor | None, training: bool
) -> Tensor:
    """Dumoulin et al. 2017: the class chooses the scale and the shift."""
    if labels is None:
        scale, shift = w[f"{name}.norm.weight"][None], w[f"{name}.norm.bias"][None]
    else:
        scale, shift = 1 + w[f"{name}.scale.weight"][labels], w[f"{name}.shift.weight"][labels]
    x = standardised(x, w, f"{name}.norm", training)
    return (x * scale[..., None, None] + shift[..., None, None]).relu()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("classes", [0, 4])
def test_generator_formula(classes: int, training: bool) -> None:
    generator = SNGANGenerator(resolution=16, channels=2, classes=classes, z_dim=5, widths=WIDTHS)
    w = scrambled(generator)
    generator(numbers(6, 5, seed=7), torch.arange(6) % 4 if classes else None)  # moves statistics
    w.update(dict(generator.named_buffers()))
    assert w["norm.running_mean"].abs().min() > 1e-4
    z, labels = numbers(3, 5), torch.tensor([2, 0, 1]) if classes else None
    x = (z @ w["start.weight"].T + w["start.bias"]).reshape(3, 8, 4, 4)
    for stage in ("stages.0", "stages.1"):
        h = doubled(normed(x, w, f"{stage}.norm1", labels, training))
        h = normed(conv(h, w, f"{stage}.conv1"), w, f"{stage}.norm2", labels, training)
        x = conv(h, w, f"{stage}.conv2") + conv(doubled(x), w, f"{stage}.skip")
    x = standardised(x, w, "norm", training)
    x = x * w["norm.weight"][:, None, None] + w["norm.bias"][:, None, None]
    expected = conv(x.relu(), w, "to_image").tanh()
    torch.testing.assert_close(generator.train(training)(z, labels), expected, **EXACT)


@pytest.mark.parametrize(("spectral", "pool"), [(True, "sum"), (False, "sum"), (False, "mean")])
@pytest.mark.parametrize("classes", [0, 4])
def test_discriminator_formula(classes: int, spectral: bool, pool: str) -> None:
    """The first block halves; the other two stay at 8×8, of which the last keeps its width."""
    discriminator = SNGANDiscriminator(
        resolution=16, channels=2, classes=classes, widths=(6, 6, 4), smallest=8,
        spectral=spectral, pool=pool,
    )  # fmt: skip
    w = scrambled(discriminator)
    x, labels = numbers(3, 2, 16, 16), torch.tensor([2, 0, 1]) if classes else None
    images = x

    def act(h: Tensor, name: str) -> Tensor:
        return (conv(h, w, f"{name}.conv1") + w[f"{name}.act.bias"][:, None, None]).relu()

    h = conv(act(x, "stages.0"), w, "stages.0.conv2")
    x = halved(h + conv(x, w, "stages.0.skip"))
    x = conv(act(x.relu(), "stages.1"), w, "stages.1.conv2") + conv(x, w, "stages.1.skip")
    x = conv(act(x.relu(), "stages.2"), w, "stages.2.conv2") + x
    features = x.relu().sum((2, 3)) / (64 if pool == "mean" else 1)
    expected = features @ w["head.linear.weight"][0] + w["head.linear.bias"]
    if classes:
        expected = expected + (features * w["head.embedding.weight"][labels]).sum(1)
    torch.testing.assert_close(discriminator(images, labels), expected, **EXACT)


def test_published_architecture() -> None:
    """The CIFAR-10 tables of the paper, counted row by row; the paper itself states no numbers."""
    with torch.device("meta"):
        generator = SNGANGenerator(resolution=32, channels=3, widths=(256,) * 4)
        discriminator = SNGANDiscriminator(
            resolution=32, channels=3, widths=(128,) * 4, smallest=8, spectral=False
        )

    def convolution(inputs: int, outputs: int, size: int = 3) -> int:
        return inputs * outputs * size**2 + outputs

    dense = 128 * 4 * 4 * 256 + 4 * 4 * 256
    up = 2 * convolution(256, 256) + convolution(256, 256, 1) + 2 * 2 * 256
    expected = dense + 3 * up + 2 * 256 + convolution(256, 3)
    assert sum(p.numel() for p in generator.parameters()) == expected == 4_276_739
    same = 2 * convolution(128, 128)
    first = convolution(3, 128) + convolution(128, 128) + convolution(3, 128, 1)
    expected = first + same + convolution(128, 128, 1) + 2 * same + 128 + 1
    assert sum(p.numel() for p in discriminator.parameters()) == expected == 1_053_825
    assert [block.halve for block in discriminator.stages] == [True, True, False, False]
    # At 128×128: blocks of 64 to 1024 channels, whose first 3×3 convolution keeps the inputs'.
    with torch.device("meta"):
        large = SNGANDiscriminator(
            resolution=128, channels=3, widths=(1024, 1024, 512, 256, 128, 64), spectral=False
        )
    shapes = [(b.conv1.out_channels, b.conv2.out_channels, b.halve) for b in large.stages]
    assert shapes == [
        (64, 64, True), (64, 128, True), (128, 256, True),
        (256, 512, True), (512, 1024, True), (1024, 1024, False),
    ]  # fmt: skip


def test_initial_weights() -> None:
    """Glorot's uniform distribution, times √2 in front of ReLUs; conditional norms begin plain."""
    torch.manual_seed(0)
    generator = SNGANGenerator(resolution=8, channels=3, classes=4, z_dim=64, widths=(48, 32))
    block = generator.stages[0]
    for weight, gain in (
        (block.conv1.weight, 2**0.5), (block.conv2.weight, 2**0.5), (block.skip.weight, 1.0),
        (generator.start.weight, 1.0), (generator.to_image.weight, 1.0),
    ):  # fmt: skip
        bound = gain * math.sqrt(6 / (weight[:, 0].numel() + weight[0].numel()))
        assert 0.98 * bound < weight.abs().max() <= bound
    for name, parameter in generator.named_parameters():
        if name.endswith("bias") or "norm1" in name or "norm2" in name:
            assert torch.equal(parameter, torch.full_like(parameter, name == "norm.weight"))


@pytest.mark.parametrize("training", [True, False])
def test_conditional_norm_has_the_derivatives_of_its_formula(training: bool) -> None:
    layer = ConditionalNorm(3, lambda channels: Embedding(2, channels))
    w = scrambled(layer)
    layer.norm.running_mean.copy_(numbers(3, seed=5))
    layer.norm.running_var.copy_(numbers(3, seed=6).exp())
    w.update({name: value.clone() for name, value in layer.named_buffers()})
    x, labels = numbers(5, 3, 4, 4, seed=9).requires_grad_(), torch.tensor([0, 1, 1, 0, 1])
    w["scale.weight"].requires_grad_()
    w["shift.weight"].requires_grad_()
    learned = [w["scale.weight"], w["shift.weight"]]
    plain = {f"x.{name}": value for name, value in w.items()}
    expected = normed(x, plain, "x", labels, training)
    found = layer.train(training)(x, labels)
    torch.testing.assert_close(found, expected, **EXACT)
    weights = [layer.scale.weight, layer.shift.weight]
    ours = torch.autograd.grad(found.pow(3).sum(), [x, *weights])
    theirs = torch.autograd.grad(expected.pow(3).sum(), [x, *learned])
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def slope(network: nn.Module, value: Any, direction: list[Tensor]) -> float:
    h, ends = 1e-6, []
    for sign in (1, -2, 1):
        for parameter, step in zip(network.parameters(), direction):
            parameter.data.add_(step, alpha=sign * h)
        ends.append(value().item())
    return (ends[0] - ends[1]) / (2 * h)


@pytest.mark.parametrize("method", ["double", "forward"])
@pytest.mark.parametrize("kind", ["zero_centered", "one_centered"])
def test_penalties_equal_finite_differences(kind: Any, method: Any) -> None:
    network = SNGANDiscriminator(resolution=16, channels=2, classes=3, widths=WIDTHS)
    scrambled(network)
    x, labels = numbers(4, 2, 16, 16, seed=99), torch.tensor([0, 2, 1, 2])

    def value() -> Tensor:
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(leaf, labels).sum(), leaf)
        r = gradient.flatten(1).norm(dim=1)
        return (r**2).mean() / 2 if kind == "zero_centered" else ((r - 1) ** 2).mean()

    loss = dgan.gradient_penalty(network, x, labels, kind=kind, method=method).loss
    torch.testing.assert_close(loss, value(), **EXACT)
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    direction = [numbers(*p.shape, seed=5) for p in parameters]
    along = sum((g * d).sum().item() for g, d in zip(gradients, direction))
    assert along == pytest.approx(slope(network, value, direction), rel=1e-6)
    assert abs(along) > 1e-4


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (SNGANGenerator, {"resolution": 12}, "SNGANGenerator cannot make resolution 12"),
        (SNGANGenerator, {"widths": (8, 6)}, "SNGANGenerator at resolution 16 needs 3 widths"),
        (SNGANDiscriminator, {"widths": (8,)}, "SNGANDiscriminator at resolution 16 needs 3 wid"),
        (SNGANDiscriminator, {"smallest": 2}, "cannot stop halving at 2.*one of 4, 8, 16"),
        (SNGANDiscriminator, {"smallest": 12}, "cannot stop halving at 12.*one of 4, 8, 16"),
        (SNGANDiscriminator, {"pool": "max"}, "pool 'max' is not known: choose from sum, mean"),
    ],
)
def test_sizes_that_do_not_fit_are_named(
    network: type[nn.Module], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        network(**{"resolution": 16, "channels": 3, "widths": WIDTHS, **options})
