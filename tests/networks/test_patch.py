"""Discriminators of patches: formulas, receptive fields, scales, exact penalties; in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgan import check_penalty, gradient_penalty
from dgan.networks.patch import (
    RECEPTIVE_FIELDS,
    MultiscalePatchDiscriminator,
    PatchDiscriminator,
)
from dgan.parallel import recompute

EXACT = {"rtol": 1e-10, "atol": 1e-10}
SIZES: dict[str, Any] = {"resolution": 32, "channels": 2, "source_channels": 3, "width": 4}
SMALL = {**SIZES, "receptive_field": 16}
FAMILIES = (PatchDiscriminator, MultiscalePatchDiscriminator)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scrambled(network: nn.Module) -> nn.Module:
    """Move every parameter, those that start at zero too, and away from the tiny start."""
    network.double()
    for seed, parameter in enumerate(network.parameters()):
        parameter.data = parameter + 0.3 * numbers(*parameter.shape, seed=seed)
    return network


def judge(family: type[nn.Module] = PatchDiscriminator, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return scrambled(family(**{**SMALL, **options}))


def images(count: int = 3, size: int = 32) -> tuple[Tensor, Tensor]:
    return numbers(count, 2, size, size), numbers(count, 3, size, size, seed=1)


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_formula(norm: str) -> None:
    network = judge(receptive_field=34, norm=norm)
    w = dict(network.named_parameters())
    x = torch.cat(images(), 1)
    for level, stride in enumerate((2, 2, 1)):
        x = F.conv2d(x, w[f"stages.{level}.0.weight"], stride=stride, padding=1)
        affine = [w.get(f"stages.{level}.1.{name}") for name in ("weight", "bias")]
        if level and norm != "none":
            dims = (2, 3) if norm == "instance" else (0, 2, 3)
            variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
            x = (x - mean) / (variance + 1e-5).sqrt() * affine[0][:, None, None]
        x = F.leaky_relu(x + affine[1][:, None, None], 0.2)
    expected = F.conv2d(x, w["head.weight"], w["head.bias"], padding=1)[:, 0]
    torch.testing.assert_close(network(*images()), expected, **EXACT)
    assert expected.shape[1:] == (network.side, network.side) == (6, 6)
    assert network.couples_samples == (norm == "batch")


def test_size_is_that_of_the_published_code() -> None:
    with torch.device("meta"):
        network = PatchDiscriminator(resolution=256, channels=3, source_channels=3, norm="batch")
        logits = network(torch.zeros(2, 3, 256, 256), torch.zeros(2, 3, 256, 256))
    assert sum(p.numel() for p in network.parameters()) == 2_768_705
    assert logits.shape == (2, 30, 30)


@pytest.mark.parametrize("field", RECEPTIVE_FIELDS)
def test_receptive_field_by_gradients(field: int) -> None:
    size = max(8, 2 ** (field.bit_length() + 1))
    torch.manual_seed(0)
    network = PatchDiscriminator(
        resolution=size, channels=1, width=1, receptive_field=field, norm="none"
    )
    x = torch.randn(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    logits = scrambled(network)(x)
    middle = network.side // 2
    (gradient,) = torch.autograd.grad(logits[0, middle, middle], x)
    rows, columns = gradient[0, 0].nonzero().unbind(1)
    assert 1 + rows.max() - rows.min() == 1 + columns.max() - columns.min() == field
    assert 0 < rows.min() <= rows.max() < size - 1  # not cut off


@pytest.mark.parametrize("field", RECEPTIVE_FIELDS)
def test_smallest_images(field: int) -> None:
    smallest = 3 * 2 ** RECEPTIVE_FIELDS.index(field) if field > 1 else 1
    network = judge(resolution=smallest, receptive_field=field, norm="none")
    assert network(*images(2, smallest)).shape == (2, 1, 1)
    if field > 1:
        with pytest.raises(ValueError, match=f"resolution {smallest - 1} is too small for a rec"):
            judge(resolution=smallest - 1, receptive_field=field)


def test_unconditional() -> None:
    network = judge(source_channels=0)
    x, _ = images()
    assert torch.equal(network(x), network(x, None))
    assert network(x).shape == (3, 14, 14)


def test_each_scale_counts_equally() -> None:
    network = judge(MultiscalePatchDiscriminator, resolution=64)
    x, source = images(3, 64)
    logits = network(x, source)
    both = torch.cat([x, source], 1)
    assert logits.shape == (3, 3 * 30 * 30)
    means = []
    for index, (part, own) in enumerate(zip(logits.chunk(3, 1), network.scales, strict=True)):
        if index:  # 3×3 means of what is inside the image
            ones = torch.ones_like(both)
            around = [F.avg_pool2d(t, 3, stride=2, padding=1) for t in (both, ones)]
            both = around[0] / around[1]
        expected = own(both)
        side = expected.shape[1]
        assert side == (30, 14, 6)[index]
        for mine, theirs in zip(part, expected):
            values, repeats = mine.unique(return_counts=True)
            torch.testing.assert_close(values, theirs.flatten().sort().values, **EXACT)
            fewest, most = 30 // side, -(-30 // side)
            assert fewest**2 <= repeats.min() <= repeats.max() <= most**2
        means.append(part.mean())
    torch.testing.assert_close(logits.mean(), torch.stack(means).mean(), **EXACT)
    # Neighbours stay neighbours.
    coarse = logits[0].unflatten(0, (3, 30, 30))[2]
    torch.testing.assert_close(coarse[::5, ::5], expected[0], **EXACT)


@pytest.mark.parametrize("norm", ["none", "instance", "layer", "batch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_coupled_samples_are_declared(family: type[nn.Module], norm: str) -> None:
    network = judge(family, norm=norm)
    x, source = images(4)
    other = torch.cat([x[:1], 2 * x[1:] + 1])
    same = torch.allclose(network(x, source)[0], network(other, source)[0], rtol=1e-9, atol=1e-12)
    assert network.couples_samples == (not same)


def penalty_gradient(network: nn.Module, method: Any) -> tuple[Tensor, Tensor]:
    output = gradient_penalty(network, *images(), method=method)
    loss = output.loss + F.softplus(output.logits).mean()
    found = torch.autograd.grad(loss, list(network.parameters()))
    return torch.cat([g.flatten() for g in found]), output.norms


@pytest.mark.parametrize("norm", ["none", "instance", "layer", "batch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_penalties_are_exact(family: type[nn.Module], norm: str) -> None:
    wanted, norms = penalty_gradient(judge(family, norm=norm), "double")
    x, source = images()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(judge(family, norm=norm)(x, source).sum(), x)
    torch.testing.assert_close(norms, gradient.flatten(1).norm(dim=1), **EXACT)
    for network in (judge(family, norm=norm), recompute(judge(family, norm=norm))):
        found, _ = penalty_gradient(network, "forward")
        assert (found - wanted).norm() < 1e-12 * wanted.norm()
    assert check_penalty(judge(family, norm=norm), *images()) < 1e-4


def weights(network: nn.Module) -> Tensor:
    return torch.cat([t.double().flatten() for t in network.state_dict().values()])


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_after_construction_on_the_meta_device(family: type[nn.Module], norm: str) -> None:
    torch.manual_seed(4)
    direct = family(**SMALL, norm=norm)
    with torch.device("meta"):
        later = family(**SMALL, norm=norm)
    later.to_empty(device="cpu")
    for tensor in (*later.parameters(), *later.buffers()):
        tensor.data.fill_(torch.nan)
    torch.manual_seed(4)
    later.init_weights()
    assert torch.equal(weights(later), weights(direct))
    torch.manual_seed(5)
    later.init_weights()
    assert not torch.equal(weights(later), weights(direct))


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_calls_every_block_once(family: type[nn.Module]) -> None:
    network = judge(family)
    calls: list[nn.Module] = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, *_: calls.append(module))
    network(*images())
    assert calls == network.blocks
    assert len(calls) == (6 if family is MultiscalePatchDiscriminator else 2)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (PatchDiscriminator, {"receptive_field": 64}, "choose from 1, 16, 34, 70, 142, 286"),
        (
            PatchDiscriminator,
            {"resolution": 8, "receptive_field": 70},
            "resolution 8 is too small for a receptive_field of 70: take one of 1, 16$",
        ),
        (PatchDiscriminator, {"classes": 2}, "set --data.classes 0"),
        (PatchDiscriminator, {"norm": "bach"}, "norm 'bach' is not known"),
        (MultiscalePatchDiscriminator, {"scales": 0}, "scales must be at least 1"),
        (MultiscalePatchDiscriminator, {"resolution": 30}, "3 scales of resolution 30"),
        (MultiscalePatchDiscriminator, {"resolution": 16}, "resolution 4 is too small"),
    ],
)
def test_sizes_that_do_not_fit_are_named(
    family: type[nn.Module], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        family(**{**SMALL, **options})
