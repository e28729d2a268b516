"""Layers against independent references, in float64."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import run_ranks
from torch import Tensor, nn

from dgan.networks.layers import BiasAct, Conv2d, Embedding, Linear, NormAct
from dgan.networks.resampling import Resample

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outer_kernel(channels: int) -> Tensor:
    row = torch.tensor([1, 3, 3, 1], dtype=torch.float64) / 8
    return (row[:, None] * row).expand(channels, 1, 4, 4)


@pytest.mark.parametrize("size", [2, 4, 16])
def test_resampling_is_a_convolution(size: int) -> None:
    x = numbers(2, 3, size, size)
    down = F.conv2d(x, outer_kernel(3), stride=2, padding=1, groups=3)
    torch.testing.assert_close(Resample(size, up=False)(x), down, **EXACT)
    up = F.conv_transpose2d(x, 4 * outer_kernel(3), stride=2, padding=1, groups=3)
    torch.testing.assert_close(Resample(size, up=True)(x), up, **EXACT)


def test_up_is_four_times_the_adjoint_of_down() -> None:
    small, large = numbers(1, 2, 8, 8), numbers(1, 2, 16, 16, seed=1)
    one = (Resample(8, up=True)(small) * large).sum()
    other = 4 * (small * Resample(16, up=False)(large)).sum()
    torch.testing.assert_close(one, other, **EXACT)


def test_resampling_keeps_the_dtype_and_stays_out_of_checkpoints() -> None:
    layer = Resample(4, up=True)
    assert layer(torch.ones(1, 1, 4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert not layer.state_dict()


def test_layers_of_scaled_normal_weights() -> None:
    torch.manual_seed(0)
    grouped = Conv2d(64, 128, 3, groups=4, gain=2.0)
    # Each output sees 64/4 channels of a 3×3 patch.
    assert grouped.weight.std().item() == pytest.approx(2 / math.sqrt(16 * 9), rel=0.03)
    assert grouped(torch.zeros(1, 64, 5, 7)).shape == (1, 128, 5, 7)
    assert Linear(400, 50, gain=3.0).weight.std().item() == pytest.approx(3 / 20, rel=0.03)
    assert Embedding(100, 90, gain=3.0).weight.std().item() == pytest.approx(0.3, rel=0.03)
    assert not Linear(4, 5, gain=0.0).weight.any()
    for layer in (grouped, Linear(2, 2)):
        assert layer.bias is None
        before = layer.weight.clone()
        layer.reset_parameters()
        assert not torch.equal(layer.weight, before)


def test_an_embedding_takes_vectors_as_one_hot_labels() -> None:
    layer, labels = Embedding(5, 7).double(), torch.tensor([3, 0, 3])
    one_hot = F.one_hot(labels, 5).double()
    torch.testing.assert_close(layer(one_hot), layer(labels), rtol=1e-12, atol=1e-12)
    vectors = numbers(4, 5)
    expected = F.linear(vectors, layer.weight.mT)
    torch.testing.assert_close(layer(vectors), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4, 4)])
def test_bias_act(shape: tuple[int, ...]) -> None:
    layer = BiasAct(3).double()
    layer.bias.data = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    x = numbers(*shape)
    bias = layer.bias.view(3, *(1,) * (x.ndim - 2))
    torch.testing.assert_close(layer(x), F.leaky_relu(x + bias, 0.2), **EXACT)
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def penalised(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What a discriminator's penalty asks of a layer: values, first and second derivatives."""
    x = x.clone().requires_grad_()
    y = layer(x)
    # A curved function of the output, so that second derivatives do not vanish.
    (gradient,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    inputs = [x, *layer.parameters()]
    penalty = gradient.square().sum()
    second = torch.autograd.grad(penalty, inputs)
    results = {"y": y, "gradient": gradient, "penalty": penalty, "d_x": second[0]}
    results |= {f"d_{n}": g for (n, _), g in zip(layer.named_parameters(), second[1:])}
    return {name: value.detach() for name, value in results.items()}


def filled(layer: nn.Module) -> nn.Module:
    layer = layer.double()
    layer.weight.data = numbers(3, seed=8)
    layer.bias.data = numbers(3, seed=9)
    return layer


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 2, 5)])
def test_batch_norm_equals_torchs(shape: tuple[int, ...], training: bool) -> None:
    ours = filled(NormAct(3, "batch"))
    theirs = filled(nn.BatchNorm1d(3) if len(shape) == 2 else nn.BatchNorm2d(3))
    for seed in range(3):  # running statistics that are not those of the next batch
        x = 3 * numbers(*shape, seed=seed) + 2
        torch.testing.assert_close(ours(x), theirs(x), **EXACT)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean, **EXACT)
    torch.testing.assert_close(ours.running_var, theirs.running_var, **EXACT)
    ours.train(training)
    theirs.train(training)
    x = 3 * numbers(*shape, seed=7) + 2
    expected, results = penalised(theirs, x), penalised(ours, x)
    for name, value in expected.items():
        torch.testing.assert_close(results[name], value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("act", ["relu", "leaky_relu"])
@pytest.mark.parametrize("norm", ["batch", "layer", "instance"])
@pytest.mark.parametrize("training", [True, False])
def test_norm_and_activation_equal_torchs(norm: str, act: str, training: bool) -> None:
    ours = filled(NormAct(3, norm, act=act)).train(training)
    theirs = {
        "batch": nn.BatchNorm2d(3),
        "layer": nn.GroupNorm(1, 3),
        "instance": nn.InstanceNorm2d(3, affine=True),
    }
    slope = 0.2 if act == "leaky_relu" else 0.0
    expected = nn.Sequential(filled(theirs[norm]), nn.LeakyReLU(slope)).train(training)
    x = 3 * numbers(4, 3, 2, 5) + 2
    wanted, results = penalised(expected, x), penalised(ours, x)
    for name, value in wanted.items():
        found = results[name.replace("d_0.", "d_")]
        torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-9, msg=name)


def test_unknown_norms_are_named() -> None:
    with pytest.raises(ValueError, match="norm 'bach' is not known: choose from batch, layer"):
        NormAct(3, "bach")


def test_batch_norm_of_a_distant_mean_does_not_cancel() -> None:
    x = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 1e4
    # float32 holds x itself to 2⁻¹⁴ here; E[x²] − E[x]² would be wrong by 10.
    expected = nn.BatchNorm2d(3).double()(x.double()).float()
    torch.testing.assert_close(NormAct(3, "batch")(x), expected, rtol=0, atol=4e-3)


def test_batch_norm_keeps_statistics_of_half_precision_in_float32() -> None:
    layer = NormAct(3, "batch")
    x = (torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 3).bfloat16()
    y = layer(x)
    assert y.dtype == torch.bfloat16
    # A mean in bfloat16 would be off by 2⁻⁹.
    torch.testing.assert_close(layer.running_mean, 0.1 * x.float().mean((0, 2, 3)))
    assert layer.running_mean.dtype == torch.float32


X = 3 * numbers(8, 3, 2, 2, seed=1) + 2


def half_of_the_batch() -> dict[str, Tensor]:
    dist.init_process_group("gloo")
    layer = filled(NormAct(3, "batch"))
    layer.process_group = dist.group.WORLD
    mine = X.chunk(2)[dist.get_rank()]
    results = penalised(layer, mine)
    results |= {name: buffer.clone() for name, buffer in layer.named_buffers()}
    dist.destroy_process_group()
    return results


def test_batch_norm_over_two_ranks_equals_the_whole_batch() -> None:
    layer = filled(NormAct(3, "batch"))
    expected = penalised(layer, X)
    expected |= dict(layer.named_buffers())
    first, second = run_ranks(2, half_of_the_batch)
    for name, value in expected.items():
        if name in ("y", "gradient", "d_x"):
            result = torch.cat([first[name], second[name]])
        elif name.startswith("running"):
            assert torch.equal(first[name], second[name])
            result = first[name]
        else:  # sums over the batch
            result = first[name] + second[name]
        torch.testing.assert_close(result, value, rtol=1e-9, atol=1e-9, msg=name)
