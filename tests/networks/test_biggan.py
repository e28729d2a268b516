"""BigGAN against its paper's formulas, written out in PyTorch, and the published sizes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import dgan
from dgan.networks.biggan import BigGANDiscriminator, BigGANGenerator, SelfAttention

EXACT = {"rtol": 1e-10, "atol": 1e-10}
WIDTHS = (10, 8, 6)


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


def windows(x: Tensor) -> Tensor:
    """`[N, C, H/2, W/2, 4]`: the pixels of each 2×2 window."""
    return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 1, 2, 4, 3, 5).flatten(4)


def standardised(x: Tensor) -> Tensor:
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    return (x - mean[:, None, None]) / (variance + 1e-5).sqrt()[:, None, None]


def normed(x: Tensor, w: dict[str, Tensor], name: str, condition: Tensor) -> Tensor:
    scale, shift = (condition @ w[f"{name}.{part}.weight"].T for part in ("scale", "shift"))
    return (standardised(x) * (1 + scale)[..., None, None] + shift[..., None, None]).relu()


def attended(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    """Zhang et al. 2019, equations 1 to 3, with pooled keys and values, one position at a time."""
    query = conv(x, w, f"{name}.query").flatten(2)
    key, value = (
        windows(conv(x, w, f"{name}.{part}")).amax(-1).flatten(2) for part in ("key", "value")
    )
    columns = []
    for position in range(query.shape[2]):
        weights = (query[:, :, position, None] * key).sum(1).softmax(1)
        columns.append((value * weights[:, None]).sum(2))
    h = torch.stack(columns, 2).unflatten(2, x.shape[2:])
    return x + w[f"{name}.strength"] * conv(h, w, f"{name}.out")


@pytest.mark.parametrize(("classes", "spectral"), [(4, True), (4, False), (0, True)])
def test_generator_formula(classes: int, spectral: bool) -> None:
    generator = BigGANGenerator(
        resolution=16, channels=2, classes=classes, z_dim=7, widths=WIDTHS,
        attention=8, embedding_dim=3, spectral=spectral,
    )  # fmt: skip
    w = scrambled(generator)
    assert ("embedding.weight" in w) == (classes > 0)  # the embedding's norm is its own
    z, labels = numbers(3, 7), torch.tensor([2, 0, 1]) if classes else None
    # Seven numbers for three parts: 3, 2 and 2.
    first, *parts = z[:, :3], z[:, 3:5], z[:, 5:]
    if classes:
        parts = [torch.cat([w["embedding.weight"][labels], part], 1) for part in parts]
    x = (first @ w["start.weight"].T + w["start.bias"]).reshape(3, 10, 4, 4)
    for stage, part in zip(("stages.0.block", "stages.1"), parts):
        h = doubled(normed(x, w, f"{stage}.norm1", part))
        h = normed(conv(h, w, f"{stage}.conv1"), w, f"{stage}.norm2", part)
        x = conv(h, w, f"{stage}.conv2") + conv(doubled(x), w, f"{stage}.skip")
        if stage == "stages.0.block":
            x = attended(x, w, "stages.0.attention")
    x = standardised(x) * w["norm.weight"][:, None, None] + w["norm.bias"][:, None, None]
    expected = conv(x.relu(), w, "to_image").tanh()
    torch.testing.assert_close(generator(z, labels), expected, **EXACT)


@pytest.mark.parametrize(("classes", "spectral"), [(4, True), (4, False), (0, True)])
def test_discriminator_formula(classes: int, spectral: bool) -> None:
    discriminator = BigGANDiscriminator(
        resolution=16, channels=2, classes=classes, widths=WIDTHS, attention=8, spectral=spectral
    )
    w = scrambled(discriminator)
    x, labels = numbers(3, 2, 16, 16), torch.tensor([2, 0, 1]) if classes else None
    images = x
    for stage in ("stages.0.block", "stages.1", "stages.2"):
        h = x if stage == "stages.0.block" else x.relu()
        h = (conv(h, w, f"{stage}.conv1") + w[f"{stage}.act.bias"][:, None, None]).relu()
        x = conv(h, w, f"{stage}.conv2") + conv(x, w, f"{stage}.skip")
        x = x if stage == "stages.2" else windows(x).mean(-1)
        if stage == "stages.0.block":
            x = attended(x, w, "stages.0.attention")
    features = x.relu().sum((2, 3))
    expected = features @ w["head.linear.weight"][0] + w["head.linear.bias"]
    if classes:
        expected = expected + (features * w["head.embedding.weight"][labels]).sum(1)
    torch.testing.assert_close(discriminator(images, labels), expected, **EXACT)


@pytest.mark.parametrize(("ch", "published"), [(96, 158.3), (64, 71.3)])
def test_published_sizes(ch: int, published: float) -> None:
    """Table 1 of the paper, in millions, at 128×128; it leaves the shared embedding out."""
    widths = tuple(ch * multiple for multiple in (16, 16, 8, 4, 2, 1))
    sizes: dict[str, Any] = {"resolution": 128, "channels": 3, "classes": 1000}
    options: dict[str, Any] = {"widths": widths, "attention": 64, "spectral": False}
    with torch.device("meta"):
        generator = BigGANGenerator(**sizes, **options)
        discriminator = BigGANDiscriminator(**sizes, **options)
    ours, theirs = (
        sum(p.numel() for p in network.parameters()) for network in (generator, discriminator)
    )
    assert generator.embedding is not None
    assert round((ours - generator.embedding.weight.numel() + theirs) / 1e6, 1) == published
    if ch == 96:
        # To the last one, as Google's compare_gan counts them in its reproduction.
        assert (ours, theirs) == (70_433_988, 87_982_370)


def test_weights_start_orthogonal() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"resolution": 16, "channels": 3, "classes": 4, "spectral": False}
    generator = BigGANGenerator(**sizes, widths=WIDTHS, attention=16)
    discriminator = BigGANDiscriminator(**sizes, widths=WIDTHS, attention=4)
    for network in (generator, discriminator):
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                singular = torch.linalg.svdvals(parameter.detach().flatten(1))
                torch.testing.assert_close(singular, torch.ones_like(singular), msg=name)
            elif name != "norm.weight":
                assert not parameter.any(), name


def test_attention_starts_as_the_identity() -> None:
    layer, x = SelfAttention(8), torch.randn(2, 8, 4, 4)
    assert torch.equal(layer(x), x)
    nn.init.ones_(layer.strength)
    assert not torch.allclose(layer(x), x)
    assert SelfAttention(1)(x[:, :1]).shape == (2, 1, 4, 4)


def test_each_block_sees_its_own_part_of_the_latent() -> None:
    generator = BigGANGenerator(resolution=16, channels=2, z_dim=6, widths=WIDTHS, spectral=False)
    scrambled(generator)
    given = []
    for stage in generator.stages:
        stage.register_forward_pre_hook(lambda _, inputs: given.append(inputs[1]))
    z = numbers(2, 6)
    generator(z)
    assert torch.equal(torch.cat(given, 1), z[:, 2:])


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
    network = BigGANDiscriminator(resolution=16, channels=2, classes=3, widths=WIDTHS, attention=8)
    scrambled(network)
    x, labels = numbers(4, 2, 16, 16, seed=99), torch.tensor([0, 2, 1, 2])

    def value() -> Tensor:
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(leaf, labels).sum(), leaf)
        r = gradient.flatten(1).norm(dim=1)
        return (r**2).mean() / 2 if kind == "zero_centered" else ((r - 1) ** 2).mean()

    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
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
        (BigGANGenerator, {"resolution": 12}, "BigGANGenerator cannot make resolution 12"),
        (BigGANDiscriminator, {"widths": (8,)}, "BigGANDiscriminator at resolution 16 needs 3"),
        (BigGANGenerator, {"attention": 4}, "attention 4: .* give 8, 16; choose one of these"),
        (BigGANDiscriminator, {"attention": 16}, "attention 16: .* give 8, 4; choose one of"),
        (BigGANGenerator, {"z_dim": 2}, "z_dim 2 cannot be cut into 3 parts"),
    ],
)
def test_sizes_that_do_not_fit_are_named(
    network: type[nn.Module], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        network(**{"resolution": 16, "channels": 3, "widths": WIDTHS, **options})
