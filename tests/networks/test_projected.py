"""Projected GAN: frozen features, random projections, small discriminators; in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pretrained import SHAPE, STAGES, numbers, pretrained, reference_maps, save_torchscript
from ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from dgan import check_penalty, gradient_penalty
from dgan.networks.extractors import Extractor
from dgan.networks.projected import ProjectedDiscriminator, RandomConv2d
from dgan.networks.spectral import advance_spectral_norms
from dgan.parallel import recompute, reshard, shard

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def judge(**options: Any) -> ProjectedDiscriminator:
    extractor = Extractor(pretrained(), STAGES, SHAPE)
    torch.manual_seed(0)
    sizes = {"resolution": 32, "channels": 3, "width": 4, "norm": "layer"}
    network = ProjectedDiscriminator(**{**sizes, "extractor": extractor, **options}).double()
    for seed, parameter in enumerate(network.parameters()):
        parameter.data = parameter + 0.1 * numbers(*parameter.shape, seed=seed)
    return network


def test_formula() -> None:
    network = judge(classes=3)
    w, buffers = dict(network.named_parameters()), dict(network.named_buffers())
    x, labels = numbers(2, *SHAPE), torch.tensor([2, 0])
    fine, middle, coarse = (
        F.conv2d(m, buffers[f"channel_mixing.{i}.weight"]) for i, m in enumerate(reference_maps(x))
    )

    def from_below(mine: Tensor, below: Tensor, level: int) -> Tensor:
        up = F.interpolate(below, scale_factor=2, mode="bilinear", align_corners=False)
        up = F.conv2d(up, buffers[f"scale_mixing.{level}.weight"], padding=1)
        return (mine + up) / 2**0.5

    def conv(x: Tensor, name: str, **options: Any) -> Tensor:
        """Weights over ‖Wᵀu‖, which is what the power iteration has of their norm."""
        weight = w[f"{name}.parametrizations.weight.original"]
        u = buffers[f"{name}.parametrizations.weight.0.u"]
        return F.conv2d(x, weight / (weight.flatten(1).T @ u).norm(), **options)

    def judged(x: Tensor, name: str, halvings: int) -> Tensor:
        for index in range(halvings + 1):
            part = f"{name}.stages.{index}"
            down = index < halvings
            x = conv(x, f"{part}.0", stride=2 if down else 1, padding=1)
            x = F.group_norm(x, 1, w[f"{part}.1.weight"], w[f"{part}.1.bias"])
            x = F.leaky_relu(x, 0.2)
        x = conv(x, f"{name}.head") + w[f"{name}.head.bias"][:, None, None]
        return torch.einsum("nchw,nc->nhw", x, w[f"{name}.embedding.weight"][labels]).flatten(1)

    middle = from_below(middle, coarse, 1)
    fine = from_below(fine, middle, 0)
    scales = ((fine, 2), (middle, 1), (coarse, 0))
    expected = torch.cat([judged(m, f"judges.{i}", n) for i, (m, n) in enumerate(scales)], 1)
    logits = network(x, labels)
    torch.testing.assert_close(logits, expected, **EXACT)
    assert logits.shape == (2, 3 * 4 * 4)
    assert not torch.allclose(network(x, 1 - labels.clamp(max=1))[0], logits[0])


def penalty_gradient(network: nn.Module, method: Any) -> tuple[Tensor, Tensor]:
    output = gradient_penalty(network, numbers(3, *SHAPE), method=method)
    loss = output.loss + F.softplus(output.logits).mean()
    found = torch.autograd.grad(loss, list(network.parameters()))
    return torch.cat([g.flatten() for g in found]), output.norms


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_penalties_go_through_the_extractor_exactly(norm: str) -> None:
    wanted, norms = penalty_gradient(judge(norm=norm), "double")
    for network in (judge(norm=norm), recompute(judge(norm=norm))):
        found, _ = penalty_gradient(network, "forward")
        assert (found - wanted).norm() < 1e-12 * wanted.norm()
    assert check_penalty(judge(norm=norm), numbers(3, *SHAPE)) < 1e-4
    # Along its own gradient a function of the images rises by the gradient's square norm.
    if norm == "layer":
        x, network = numbers(3, *SHAPE).requires_grad_(), judge(norm=norm)
        (gradient,) = torch.autograd.grad(network(x).sum(), x)
        h = 1e-6
        rise = [network(x.detach() + s * h * gradient).sum(1) for s in (1, -1)]
        torch.testing.assert_close((rise[0] - rise[1]) / (2 * h), norms**2, rtol=1e-6, atol=0)


def test_penalties_go_through_torchscript_exactly(tmp_path: Path) -> None:
    wanted, _ = penalty_gradient(judge(), "double")
    extractor = save_torchscript(tmp_path)
    network = judge(extractor=extractor, stages=("fine", "middle", "coarse"))
    for _ in range(3):  # the interpreter optimises what it is called with again
        for method in ("double", "forward"):
            found, _ = penalty_gradient(network, method)
            assert (found - wanted).norm() < 1e-12 * wanted.norm()


def frozen_weights(network: ProjectedDiscriminator) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in network.extractor._original.state_dict().items()}


def test_the_extractor_is_read_and_nothing_else() -> None:
    network = judge().float().train()
    before = frozen_weights(network)
    extractor = set(pretrained().state_dict())
    held = [
        *network.state_dict(),
        *dict(network.named_parameters()),
        *dict(network.named_buffers()),
    ]
    assert not any(name.endswith(tuple(extractor)) for name in held if "judges" not in name)
    total = sum(t.numel() for t in network.state_dict().values())
    parts = (network.channel_mixing, network.scale_mixing, network.judges)
    assert total == sum(t.numel() for p in parts for t in p.state_dict().values())
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    x = numbers(4, *SHAPE).float().requires_grad_()
    for _ in range(3):
        network(x).square().mean().backward()
        optimizer.step()
        advance_spectral_norms(network)
    assert x.grad.norm() > 0
    network.to(torch.bfloat16).to_empty(device="cpu")
    after = frozen_weights(network)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad for p in network.extractor._original.parameters())
    random = [m for m in network.modules() if isinstance(m, RandomConv2d)]
    assert len(random) == 5
    assert not any(list(m.parameters()) for m in random)


def test_under_autocast() -> None:
    network = judge().float()
    x = numbers(2, *SHAPE).float()
    with torch.autocast("cpu", torch.bfloat16):
        narrow = network(x)
    torch.testing.assert_close(narrow.float(), network(x), rtol=0.1, atol=0.1)


def weights(network: nn.Module) -> Tensor:
    return torch.cat([t.double().flatten() for t in network.state_dict().values()])


def test_weights_after_construction_on_the_meta_device(tmp_path: Path) -> None:
    scripted = save_torchscript(tmp_path)
    sizes = {"resolution": 32, "channels": 3, "classes": 3, "extractor": scripted, "width": 4}
    torch.manual_seed(4)
    direct = ProjectedDiscriminator(**sizes)
    with torch.device("meta"):
        later = ProjectedDiscriminator(**sizes)
    later.to_empty(device="cpu")
    for tensor in (*later.parameters(), *later.buffers()):
        tensor.data.fill_(torch.nan)
    torch.manual_seed(4)
    later.init_weights()
    assert torch.equal(weights(later), weights(direct))
    x, labels = numbers(2, *SHAPE).float(), torch.tensor([0, 2])
    assert torch.equal(later(x, labels), direct(x, labels))
    torch.manual_seed(5)
    later.init_weights()
    assert not torch.equal(weights(later), weights(direct))
    assert judge().to("meta")(numbers(2, *SHAPE).to("meta")).shape == (2, 48)


def test_forward_calls_every_block_once() -> None:
    network = judge()
    calls: list[nn.Module] = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, *_: calls.append(module))
    network(numbers(2, *SHAPE))
    assert calls == network.blocks
    inside = [p for block in network.blocks for p in block.parameters()]
    assert len(inside) == len(set(inside)) == len(list(network.parameters()))


@pytest.mark.parametrize("norm", ["none", "layer", "instance", "batch"])
def test_coupled_samples_are_declared(norm: str) -> None:
    network, x = judge(norm=norm), numbers(4, *SHAPE)
    other = torch.cat([x[:1], 2 * x[1:] + 1])
    same = torch.allclose(network(x)[0], network(other)[0], rtol=1e-9, atol=1e-12)
    assert network.couples_samples == (not same)


STEPS = 3


def trained(network: Any, x: Tensor) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for _ in range(STEPS):
        output = gradient_penalty(network, x, method="forward")
        (output.loss + F.softplus(output.logits).mean()).backward()
        reshard(network)
        optimizer.step()
        optimizer.zero_grad()
        advance_spectral_norms(network)


def half_of_the_batch() -> dict[str, Tensor]:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    network = shard(judge(), mesh)
    trained(network, numbers(4, *SHAPE).chunk(2)[dist.get_rank()])
    found = {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in network.state_dict().items()
    }
    # Inputs that sharding casts to bfloat16 meet features of bfloat16.
    narrow = judge().float()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for part in (*narrow.blocks, narrow):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    found["narrow"] = narrow(numbers(4, *SHAPE).float()).detach().double()
    dist.destroy_process_group()
    return found


def test_sharded_over_two_ranks() -> None:
    network = judge()
    wide = network(numbers(4, *SHAPE))
    trained(network, numbers(4, *SHAPE))
    found = run_ranks(2, half_of_the_batch)[0]
    torch.testing.assert_close(found.pop("narrow"), wide, rtol=0.1, atol=0.1)
    expected = network.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extractor": Extractor(pretrained(), STAGES[::-1], SHAPE)}, "from fine to coarse"),
        (
            {"extractor": Extractor(pretrained(), STAGES, (3, 16, 16)), "resolution": 16},
            r"not below 4×4: Pretrained gives maps of 8×8, 4×4, 2×2 from images of 16×16",
        ),
        ({"resolution": 64}, r"extractor takes images \(3, 32, 32\), these are \(3, 64, 64\)"),
        ({"norm": "bach"}, "norm 'bach' is not known"),
    ],
)
def test_sizes_that_do_not_fit_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge(**options)
