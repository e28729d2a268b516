"""Generators from image to image against the papers' formulas, written out, in float64."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from dgan.draws import Draws, noise_from_seeds, seeds_from_latents
from dgan.networks.encoder_decoder import ResNetGenerator, UNetGenerator
from dgan.parallel import recompute, shard

EXACT = {"rtol": 1e-10, "atol": 1e-10}
SIZES = {"resolution": 16, "channels": 2, "source_channels": 3, "width": 4}
FAMILIES = (UNetGenerator, ResNetGenerator)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scrambled(network: nn.Module) -> nn.Module:
    """Move every parameter, those that start at zero too, and away from the tiny start."""
    network.double()
    for seed, parameter in enumerate(network.parameters()):
        parameter.data = parameter + 0.3 * numbers(*parameter.shape, seed=seed)
    return network


def generator(family: type[nn.Module], **options: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    network = scrambled(family(**{**SIZES, **options}))
    return network, dict(network.named_parameters())


def normed(x: Tensor, w: dict[str, Tensor], name: str, norm: str) -> Tensor:
    dims = {"instance": (2, 3), "batch": (0, 2, 3), "layer": (1, 2, 3)}[norm]
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    x = (x - mean) / (variance + 1e-5).sqrt()
    return x * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_unet_formula(norm: str) -> None:
    network, w = generator(UNetGenerator, norm=norm)
    source, z = numbers(3, 3, 16, 16, seed=8), numbers(3, 8, seed=9)
    seeds = seeds_from_latents(z)

    def down(x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, w[f"{name}.0.weight"], stride=2, padding=1)

    def bias(name: str) -> Tensor:
        return w[f"{name}.1.bias"][:, None, None]

    # 16×16 → 8×8, 4×4, 2×2, and in the middle 1×1. The published code activates what comes in.
    e1 = down(source, "encoder.0") + bias("encoder.0")
    e2 = normed(down(F.leaky_relu(e1, 0.2), "encoder.1"), w, "encoder.1.1", norm)
    e3 = normed(down(F.leaky_relu(e2, 0.2), "encoder.2"), w, "encoder.2.1", norm)
    x = down(F.leaky_relu(e3, 0.2), "fusion") + bias("fusion")
    for level, skip in enumerate((e3, e2, e1)):
        name = f"decoder.{level}.up"
        x = F.conv_transpose2d(x.relu(), w[f"{name}.0.weight"], stride=2, padding=1)
        x = normed(x, w, f"{name}.1", norm)
        # A fair coin an activation; those that are left count twice.
        x = 2 * x * (noise_from_seeds(seeds, level, tuple(x.shape[1:])) > 0)
        x = torch.cat([x, skip], 1)
    x = F.conv_transpose2d(x.relu(), w["head.0.weight"], w["head.0.bias"], stride=2, padding=1)
    torch.testing.assert_close(network(source, z), x.tanh(), **EXACT)
    assert network.couples_samples == (norm == "batch")


def test_resnet_formula() -> None:
    network, w = generator(ResNetGenerator, residual_blocks=2)
    source = numbers(3, 3, 16, 16, seed=8)

    def mirrored(x: Tensor, name: str, margin: int, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(F.pad(x, [margin] * 4, mode="reflect"), w[f"{name}.0.weight"], bias)

    x = normed(mirrored(source, "encoder.0", 3), w, "encoder.0.1", "instance").relu()
    for level in (1, 2):
        x = F.conv2d(x, w[f"encoder.{level}.0.weight"], stride=2, padding=1)
        x = normed(x, w, f"encoder.{level}.1", "instance").relu()
    for block in range(2):
        first, second = f"fusion.{block}.first", f"fusion.{block}.second"
        y = normed(mirrored(x, first, 1), w, f"{first}.1", "instance").relu()
        x = x + normed(mirrored(y, second, 1), w, f"{second}.1", "instance")
    for level in (0, 1):
        weight = w[f"decoder.{level}.0.weight"]
        x = F.conv_transpose2d(x, weight, stride=2, padding=1, output_padding=1)
        x = normed(x, w, f"decoder.{level}.1", "instance").relu()
    x = mirrored(x, "head", 3, w["head.0.bias"])
    torch.testing.assert_close(network(source), x.tanh(), **EXACT)
    assert torch.equal(network(source, numbers(3, 0)), network(source))


@pytest.mark.parametrize(
    ("network", "options", "published", "more"),
    [
        # The published U-Nets have no bias where there is no norm: after the first convolution
        # and in the middle.
        (UNetGenerator, {"resolution": 256, "norm": "batch"}, 54.414, 64 + 512),
        (UNetGenerator, {"resolution": 128, "norm": "batch"}, 41.829, 64 + 512),
        # Their instance norms have neither scale nor shift, and the convolutions before them a bias
        # (which the norm takes away again): one number a channel less.
        (ResNetGenerator, {"resolution": 256}, 11.378, 64 + 128 + 19 * 256 + 128 + 64),
        (
            ResNetGenerator,
            {"resolution": 128, "residual_blocks": 6},
            7.838,
            64 + 128 + 13 * 256 + 128 + 64,
        ),
    ],
)
def test_size_is_that_of_the_published_code(
    network: type[nn.Module], options: dict[str, Any], published: float, more: int
) -> None:
    with torch.device("meta"):
        built = network(channels=3, **options)
    assert round((sum(p.numel() for p in built.parameters()) - more) / 1e6, 3) == published


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_dropout_keeps_its_share_and_the_mean(rate: float) -> None:
    network, _ = generator(UNetGenerator, width=32, dropout=rate)
    found: list[tuple[Tensor, Tensor]] = []
    for part in network.decoder:
        part.register_forward_hook(
            lambda part, args, y: found.append((part.up(args[0]), y[:, : y.shape[1] // 2]))
        )
    network(numbers(20, 3, 16, 16), numbers(20, 8, seed=9))
    for before, after in found:
        ratio = (after / before)[before > 0]
        torch.testing.assert_close(
            ratio[ratio > 0], torch.full_like(ratio, 1 / (1 - rate))[ratio > 0]
        )
        share = (ratio == 0).double().mean().item()
        assert share == pytest.approx(rate, abs=5 * (rate * (1 - rate) / len(ratio)) ** 0.5)
    assert len(found) == 3


def test_only_three_stages_drop_out() -> None:
    network, _ = generator(UNetGenerator, resolution=64, width=2)
    assert [part.dropout for part in network.decoder] == [0.5, 0.5, 0.5, 0, 0]


@pytest.mark.parametrize("training", [True, False])
def test_the_latent_decides_the_noise_at_every_world_size(training: bool) -> None:
    network, _ = generator(UNetGenerator)
    network.train(training)
    source = numbers(8, 3, 16, 16)

    def latents(rows: range) -> Tensor:
        draws = Draws(
            seed=3, purpose="generator", step=5, rows=rows, device=torch.device("cpu"),
            dtype=torch.float64,
        )  # fmt: skip
        return draws.normal(network.z_dim)

    whole = network(source, latents(range(8)))
    for size in (2, 4):
        torch.manual_seed(size)  # what a rank's own generator says does not matter
        rows = [range(start, start + 8 // size) for start in range(0, 8, 8 // size)]
        parts = [network(source[r.start : r.stop], latents(r)) for r in rows]
        torch.testing.assert_close(torch.cat(parts), whole, **EXACT)
    assert (network(source, latents(range(8, 16))) - whole).abs().amax((1, 2, 3)).min() > 0.01


def test_latents_are_asked_for_where_they_decide() -> None:
    network, _ = generator(UNetGenerator)
    with pytest.raises(ValueError, match="draws its dropout from latents z: none were given"):
        network(numbers(1, 3, 16, 16))
    without, _ = generator(UNetGenerator, dropout=0.0, z_dim=0)
    source = numbers(2, 3, 16, 16)
    assert torch.equal(without(source), without(source, numbers(2, 0)))
    assert (without.z_dim, ResNetGenerator(**SIZES).z_dim) == (0, 0)


def weights(network: nn.Module) -> Tensor:
    return torch.cat([t.double().flatten() for t in network.state_dict().values()])


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_after_construction_on_the_meta_device(family: type[nn.Module], norm: str) -> None:
    torch.manual_seed(4)
    direct = family(**SIZES, norm=norm)
    with torch.device("meta"):
        later = family(**SIZES, norm=norm)
    later.to_empty(device="cpu")
    for tensor in (*later.parameters(), *later.buffers()):
        tensor.data.fill_(torch.nan)
    torch.manual_seed(4)
    later.init_weights()
    assert torch.equal(weights(later), weights(direct))
    torch.manual_seed(5)
    later.init_weights()
    assert not torch.equal(weights(later), weights(direct))
    filters = torch.cat([p.flatten() for p in later.parameters() if p.ndim == 4])
    assert filters.std().item() == pytest.approx(0.02, rel=4 / (2 * len(filters)) ** 0.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_calls_every_block_once(family: type[nn.Module]) -> None:
    network, _ = generator(family)
    calls: list[nn.Module] = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, *_: calls.append(module))
    source, z = numbers(2, 3, 16, 16), numbers(2, 8, seed=9)
    network(source, z)
    assert calls == network.blocks
    inside = [p for block in network.blocks for p in block.parameters()]
    assert len(inside) == len(set(inside))
    assert sum(p.numel() for p in inside) > 0.7 * sum(p.numel() for p in network.parameters())


def gradients(network: nn.Module, source: Tensor, z: Tensor) -> tuple[Tensor, list[Tensor]]:
    images = network(source, z)
    images.square().sum().backward()
    return images.detach(), [p.grad for p in network.parameters()]


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_blocks_draw_the_same_masks(family: type[nn.Module]) -> None:
    source, z = numbers(3, 3, 16, 16), numbers(3, 8, seed=9)
    images, wanted = gradients(generator(family)[0], source, z)
    again, found = gradients(recompute(generator(family)[0]), source, z)
    assert torch.equal(images, again)
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, **EXACT)


def half_of_the_batch(family: type[nn.Module]) -> tuple[Tensor, list[Tensor]]:
    dist.init_process_group("gloo")
    network = shard(generator(family)[0], init_device_mesh("cpu", (2,)))
    source, z = (numbers(4, *shape).chunk(2)[dist.get_rank()] for shape in ((3, 16, 16), (8,)))
    images, found = gradients(network, source, z)
    whole = [g.full_tensor() for g in found if isinstance(g, DTensor)]
    dist.destroy_process_group()
    return images, whole


@pytest.mark.parametrize("family", FAMILIES)
def test_sharded_over_two_ranks(family: type[nn.Module]) -> None:
    images, wanted = gradients(generator(family)[0], numbers(4, 3, 16, 16), numbers(4, 8))
    (first, found), (second, _) = run_ranks(2, half_of_the_batch, family)
    torch.testing.assert_close(torch.cat([first, second]), images, **EXACT)
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(2 * one, two, **EXACT)  # ranks' gradients are averaged


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (UNetGenerator, {"resolution": 24, "depth": 4}, "resolution 24 does not fit"),
        (UNetGenerator, {"resolution": 24}, "resolution 24 does not fit"),
        (UNetGenerator, {"depth": 1}, "halves the resolution 1 times .* at least 2"),
        (UNetGenerator, {"dropout": 1.0}, "dropout must be .* less than 1, got 1.0"),
        (UNetGenerator, {"z_dim": 0}, "z_dim must be at least 1, got 0"),
        (UNetGenerator, {"classes": 3}, "UNetGenerator is conditioned on an image"),
        (UNetGenerator, {"norm": "bach"}, "norm 'bach' is not known: choose from none, batch"),
        (ResNetGenerator, {"resolution": 18}, "cannot make resolution 18: it takes 8, 12, 16"),
        (ResNetGenerator, {"resolution": 4}, "cannot make resolution 4: it takes 8, 12, 16"),
        (ResNetGenerator, {"residual_blocks": 0}, "residual_blocks must be at least 1, got 0"),
        (ResNetGenerator, {"classes": 3}, "--data.classes 0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(
    family: type[nn.Module], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        family(**{**SIZES, **options})


def test_any_size_that_can_be_halved() -> None:
    network, _ = generator(UNetGenerator, resolution=24, depth=3)
    assert network(numbers(2, 3, 24, 24), numbers(2, 8)).shape == (2, 2, 24, 24)
    assert UNetGenerator(resolution=16, channels=2)(
        torch.zeros(1, 2, 16, 16), torch.zeros(1, 8)
    ).shape == (1, 2, 16, 16)
