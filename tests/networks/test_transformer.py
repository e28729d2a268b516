"""The transformers against their formulas, token by token, and their numbers of parameters."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

import dgan
from dgan.networks.transformer import TransformerDiscriminator, TransformerGenerator

EXACT = {"rtol": 1e-11, "atol": 1e-11}
SHAPE: dict[str, Any] = {"width": 8, "depth": 2, "heads": 2, "patch": 4}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scrambled(network: nn.Module) -> dict[str, Tensor]:
    """Move every parameter, in float64; all of them by name."""
    network.double()
    for seed, parameter in enumerate(network.parameters()):
        parameter.data = parameter + 0.3 * numbers(*parameter.shape, seed=seed)
    return {name: p.detach() for name, p in network.named_parameters()}


def linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)


def standardised(x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def unit(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def attention(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    """Head by head, softmax written out."""
    query, key, value = linear(x, w, f"{name}.qkv").chunk(3, -1)
    results = []
    for head in (slice(0, 4), slice(4, 8)):
        q = unit(query[..., head], w[f"{name}.query_norm.weight"])
        k = unit(key[..., head], w[f"{name}.key_norm.weight"])
        weights = (torch.einsum("nic,njc->nij", q, k) / math.sqrt(4)).exp()
        weights = weights / weights.sum(2, keepdim=True)
        results.append(torch.einsum("nij,njc->nic", weights, value[..., head]))
    return linear(torch.cat(results, -1), w, f"{name}.out")


def mlp(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    x = linear(x, w, f"{name}.expand") + w[f"{name}.act.bias"]
    gelu = 0.5 * x * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())
    return linear(gelu, w, f"{name}.project")


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def pixels(index: int, side: int, patch: int) -> tuple[slice, slice, slice, slice]:
    """Where the token of this index lies in `[N, C, H, W]`."""
    row, column = divmod(index, side)
    rows, columns = (slice(i * patch, (i + 1) * patch) for i in (row, column))
    return slice(None), slice(None), rows, columns


@pytest.mark.parametrize("classes", [0, 3])
def test_generator_formula(classes: int) -> None:
    sizes: dict[str, Any] = {"resolution": 16, "channels": 3, "classes": classes}
    generator = TransformerGenerator(**sizes, z_dim=5, **SHAPE)
    w = scrambled(generator)
    z, labels = numbers(2, 5), torch.tensor([2, 0]) if classes else None
    hidden = silu(linear(z, w, "condition.expand") + w["condition.act.bias"])
    condition = linear(hidden, w, "condition.project")
    if classes:
        condition = condition + w["condition.embedding.weight"][labels]
    x = condition[:, None] + w["positions.weight"]
    for block in ("blocks.0", "blocks.1"):
        # Peebles and Xie 2023, figure 3, on the right: γ₁, β₁, α₁, γ₂, β₂, α₂.
        six = linear(silu(condition), w, f"{block}.modulation.linear")[:, None].chunk(6, -1)
        shift1, scale1, gate1, shift2, scale2, gate2 = six
        h = (1 + scale1) * standardised(x) + shift1
        x = x + gate1 * attention(h, w, f"{block}.attention")
        h = (1 + scale2) * standardised(x) + shift2
        x = x + gate2 * mlp(h, w, f"{block}.mlp")
    two = linear(silu(condition), w, "to_image.modulation.linear")[:, None].chunk(2, -1)
    x = linear((1 + two[1]) * standardised(x) + two[0], w, "to_image.linear")
    expected = torch.empty(2, 3, 16, 16, dtype=torch.float64)
    for token in range(16):
        expected[pixels(token, 4, 4)] = x[:, token].reshape(2, 3, 4, 4)
    torch.testing.assert_close(generator(z, labels), expected, **EXACT)


@pytest.mark.parametrize("classes", [0, 3])
def test_discriminator_formula(classes: int) -> None:
    sizes: dict[str, Any] = {"resolution": 16, "channels": 3, "classes": classes}
    discriminator = TransformerDiscriminator(**sizes, **SHAPE)
    w = scrambled(discriminator)
    images = numbers(2, 3, 16, 16)
    labels = torch.tensor([2, 0]) if classes else None
    patches = torch.stack([images[pixels(t, 4, 4)].flatten(1) for t in range(16)], 1)
    x = linear(patches, w, "from_patches") + w["positions.weight"]

    def normed(x: Tensor, name: str) -> Tensor:
        return w[f"{name}.weight"] * standardised(x) + w[f"{name}.bias"]

    for block in ("blocks.0", "blocks.1"):
        x = x + attention(normed(x, f"{block}.norm1"), w, f"{block}.attention")
        x = x + mlp(normed(x, f"{block}.norm2"), w, f"{block}.mlp")
    x = normed(x, "norm").mean(1)
    expected = x @ w["head.weight"][0] + w["head.bias"]
    if classes:
        expected = expected + (x * w["embedding.weight"][labels]).sum(1)
    torch.testing.assert_close(discriminator(images, labels), expected, **EXACT)


def counts(
    *, width: int, depth: int, heads: int, patch: int, classes: int, resolution: int = 256,
    channels: int = 3, z_dim: int = 64,
) -> tuple[int, int]:  # fmt: skip
    """Parameters of both networks, built on the meta device."""
    sizes: dict[str, Any] = {"resolution": resolution, "channels": channels, "classes": classes}
    shape = {"width": width, "depth": depth, "heads": heads, "patch": patch}
    with torch.device("meta"):
        networks = (
            TransformerGenerator(**sizes, z_dim=z_dim, **shape),
            TransformerDiscriminator(**sizes, **shape),
        )
    one, other = (sum(p.numel() for p in network.parameters()) for network in networks)
    return one, other


@pytest.mark.parametrize("classes", [0, 1000])
@pytest.mark.parametrize(
    ("w", "d", "h", "p", "z"), [(8, 2, 2, 4, 5), (384, 12, 6, 16, 64), (1152, 28, 16, 8, 512)]
)
def test_numbers_of_parameters(w: int, d: int, h: int, p: int, z: int, classes: int) -> None:
    """The formulas of the module's docstring."""
    found = counts(width=w, depth=d, heads=h, patch=p, classes=classes, z_dim=z)
    tokens, pixels = (256 // p) ** 2, 3 * p**2
    rest = 3 * w + z + tokens + classes + pixels + 4
    generator = d * (18 * w**2 + 15 * w + 2 * w // h) + w * rest + pixels
    rest = pixels + tokens + classes + 4
    assert found == (generator, d * (12 * w**2 + 13 * w + 2 * w // h) + w * rest + 1)


def test_ten_billion_parameters() -> None:
    shape = {"width": 5120, "heads": 40, "patch": 8, "classes": 1000}
    assert counts(depth=21, **shape)[0] == pytest.approx(10e9, rel=0.01)
    assert counts(depth=32, **shape)[1] == pytest.approx(10e9, rel=0.01)


def test_blocks_of_the_generator_start_as_the_identity() -> None:
    generator = TransformerGenerator(resolution=16, channels=3, z_dim=5, **SHAPE)
    x, condition = torch.randn(2, 16, 8), torch.randn(2, 8)
    for block in generator.blocks:
        assert torch.equal(block(x, condition), x)
        # And not for ever: the gates have gradients.
        block(x, condition).square().sum().backward()
        assert block.modulation.linear.weight.grad.any()
    # Images differ from the start all the same.
    first, second = generator(torch.randn(2, 5))
    assert not torch.allclose(first, second)


def test_depth_keeps_the_scale_of_a_fresh_network() -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"width": 64, "heads": 4, "patch": 2}
    for depth in (2, 16):
        sizes: dict[str, Any] = {"resolution": 16, "channels": 3, "depth": depth, **shape}
        network = TransformerDiscriminator(**sizes)
        x = network.positions(network.from_patches(torch.randn(4, 64, 12)))
        before = x.square().mean()
        for block in network.blocks:
            x = block(x)
        assert 1.05 < x.square().mean() / before < 2
        images = TransformerGenerator(**sizes, z_dim=32)(torch.randn(16, 32))
        assert 0.5 < images.square().mean().sqrt() < 2


class Largest(TorchDispatchMode):
    """The most elements of any tensor that was made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in result if isinstance(result, (tuple, list)) else (result,):
            self.numel = max(self.numel, leaf.numel() if isinstance(leaf, Tensor) else 0)
        return result


def test_a_penalty_over_many_tokens_needs_no_matrix_of_them() -> None:
    network = TransformerDiscriminator(
        resolution=32, channels=1, width=4, depth=1, heads=1, patch=1
    )
    with Largest() as largest:
        output = dgan.gradient_penalty(network, torch.randn(1, 1, 32, 32), method="forward")
        output.loss.backward()
    assert 1024 * 16 <= largest.numel < 1024**2 / 2


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
    network = TransformerDiscriminator(resolution=16, channels=2, classes=3, **SHAPE)
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


@pytest.mark.parametrize("network", [TransformerGenerator, TransformerDiscriminator])
def test_narrow_numbers_under_autocast(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    built = network(resolution=16, channels=3, classes=3, **SHAPE)
    for parameter in built.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    inputs = torch.randn(2, 64) if network is TransformerGenerator else torch.randn(2, 3, 16, 16)
    labels = torch.tensor([0, 2])
    with torch.autocast("cpu", torch.bfloat16):
        narrow = built(inputs, labels)
    exact = built(inputs, labels)
    assert not torch.equal(narrow, exact)
    torch.testing.assert_close(narrow.float(), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("network", [TransformerGenerator, TransformerDiscriminator])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 3}, "patch 3 does not divide resolution 16"),
        ({"patch": 0}, "patch 0 does not divide resolution 16"),
        ({"heads": 3}, "heads 3 does not divide width 8"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(
    network: type[nn.Module], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        network(**{"resolution": 16, "channels": 3, **SHAPE, **options})
