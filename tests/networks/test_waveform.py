"""WaveGAN and judges of waveforms: formulas, phase shuffle, exact penalties; in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgan import check_penalty, gradient_penalty
from dgan.networks.waveform import (
    PhaseShuffle,
    WaveformDiscriminator,
    WaveformGenerator,
    loudest,
)
from dgan.networks.waveform_judges import FLOOR, Periods, Spectra, WaveformJudges
from dgan.parallel import recompute

EXACT = {"rtol": 1e-10, "atol": 1e-10}
SIZES: dict[str, Any] = {"resolution": 64, "channels": 2, "classes": 3, "widths": (6, 5)}
LABELS = torch.tensor([0, 2, 1, 2])
NETWORKS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "shuffled": (WaveformDiscriminator, {}),
    "layer norm": (WaveformDiscriminator, {"norm": "layer", "phase_shuffle": 3}),
    "judges": (WaveformJudges, {"periods": (3, 5), "scales": 2, "spectra": (16, 24)}),
    "generator": (WaveformGenerator, {"z_dim": 5}),
}
JUDGES = [name for name in NETWORKS if name != "generator"]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    cls, own = NETWORKS[name]
    network = cls(**{**SIZES, **own, **options}).double()
    for seed, parameter in enumerate(network.parameters()):
        parameter.data += 0.3 * numbers(*parameter.shape, seed=seed)
    return network


def inputs(name: str, count: int = 4) -> tuple[Tensor, Tensor]:
    shape = (5,) if name == "generator" else (2, 64)
    return numbers(count, *shape), LABELS[:count]


def test_sizes_are_those_published() -> None:
    """Tables 3 and 4 of the paper for 16,384 samples, without the biases that we leave to `act`."""
    with torch.device("meta"):
        widths = (1024, 512, 256, 128, 64)
        generator = WaveformGenerator(resolution=16384, channels=1, widths=widths)
        critic = WaveformDiscriminator(resolution=16384, channels=1, widths=widths)
        out = generator(torch.zeros(2, 100))
        logits = critic(out)
    assert (out.shape, logits.shape) == ((2, 1, 16384), (2,))
    inner = 25 * (64 * 128 + 128 * 256 + 256 * 512 + 512 * 1024)
    biases = 64 + 128 + 256 + 512
    found = sum(p.numel() for p in generator.parameters())
    assert found == 100 * 16384 + 1024 + inner + biases + 25 * 64 + 1
    found = sum(p.numel() for n, p in critic.named_parameters() if n.startswith("stages"))
    assert found == 25 * 64 + inner + biases + 1024


def reference_shuffle(x: Tensor, shifts: list[int]) -> Tensor:
    """As published: padded by reflection, and cut."""
    moved = []
    for row, shift in zip(x, shifts):
        length = row.shape[1]
        padded = F.pad(row[None], (max(shift, 0), max(-shift, 0)), mode="reflect")[0]
        moved.append(padded[:, :length] if shift > 0 else padded[:, -length:])
    return torch.stack(moved)


def test_phase_shuffle() -> None:
    shuffle, place = PhaseShuffle(3, 1), torch.arange(9)
    x = numbers(9, 2, 12)
    shifts = shuffle.shifts(place)
    torch.testing.assert_close(shuffle(x, place), reference_shuffle(x, shifts.tolist()), **EXACT)
    many = torch.arange(5120)
    for layer in range(4):
        counts = torch.bincount(PhaseShuffle(2, layer).shifts(many) + 2)
        assert len(counts) == 5
        assert counts.min() > 0.8 * 1024
    both = torch.stack([PhaseShuffle(2, layer).shifts(many) for layer in range(2)]).double()
    assert abs(torch.corrcoef(both)[0, 1]) < 0.1
    assert PhaseShuffle(0, 1)(x, place) is x


def test_moves_follow_the_sample_alone() -> None:
    """Not its row, not the others of the batch, and not small changes of it."""
    network = made("shuffled")
    x, labels = inputs("shuffled")
    logits = network(x, labels)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(network(x[order], labels[order]), logits[order], **EXACT)
    torch.testing.assert_close(network(x[1:2], labels[1:2]), logits[1:2], **EXACT)
    assert (network(x + 1e-9 * numbers(*x.shape, seed=1), labels) - logits).abs().max() < 1e-6
    still = made("shuffled", phase_shuffle=0)
    assert not torch.allclose(still(x, labels), logits)
    assert loudest(torch.tensor([[[0.0, 1.0], [-3.0, 2.0]]])).tolist() == [2]


def test_formula_of_the_discriminator() -> None:
    network = made("shuffled")
    w, (x, labels) = dict(network.named_parameters()), inputs("shuffled")
    place = x.abs().flatten(1).argmax(1)
    for level in range(2):
        x = F.conv1d(x, w[f"stages.{level}.conv.weight"], stride=4, padding=11)
        x = F.leaky_relu(x + w[f"stages.{level}.act.bias"][:, None], 0.2)
        if level == 0:
            x = reference_shuffle(x, PhaseShuffle(2, 0).shifts(place).tolist())
    x = x.flatten(1) @ w["head.features.weight"].T
    by_class = (x * w["head.embedding.weight"][labels]).sum(1) / 6**0.5
    expected = x @ w["head.out.weight"][0] + w["head.out.bias"] + by_class
    torch.testing.assert_close(network(*inputs("shuffled")), expected, **EXACT)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_formula_of_the_generator(norm: str) -> None:
    network = made("generator", norm=norm)
    w, (z, labels) = dict(network.named_parameters()), inputs("generator")

    def act(x: Tensor, layer: str) -> Tensor:
        if norm == "batch":
            variance, mean = torch.var_mean(x, (0, 2), correction=0, keepdim=True)
            x = (x - mean) / (variance + 1e-5).sqrt() * w[f"{layer}.weight"][:, None]
        return F.relu(x + w[f"{layer}.bias"][:, None])

    x = torch.cat([z, w["embedding.weight"][labels]], 1) @ w["first.0.weight"].T
    x = act(x.view(4, 6, 4), "first.2")
    options: dict[str, Any] = {"stride": 4, "padding": 11, "output_padding": 1}
    x = act(F.conv_transpose1d(x, w["stages.0.0.weight"], **options), "stages.0.1")
    x = F.conv_transpose1d(x, w["to_waveform.weight"], w["to_waveform.bias"], **options)
    torch.testing.assert_close(network(z, labels), x.tanh(), **EXACT)


def test_views() -> None:
    x = numbers(2, 2, 32)
    padded = F.pad(x, (0, 1), mode="reflect")
    torch.testing.assert_close(Periods(3, 32)(x), padded.view(2, 2, 11, 3), **EXACT)
    found = Spectra(16, 32).double()(x)
    window = torch.hann_window(16, dtype=torch.float32).double()
    spectra = torch.stft(
        F.pad(x, (6, 6)).flatten(0, 1), 16, 4, window=window / window.sum(), center=False,
        return_complex=True,
    )  # fmt: skip
    expected = (spectra.abs().square()[:, :-1] / FLOOR).log1p() / 4
    torch.testing.assert_close(found.flatten(0, 1), expected, rtol=1e-6, atol=1e-6)
    assert Spectra(16, 32).bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_each_judge_sees_its_own_view() -> None:
    network = made("judges")
    x, labels = inputs("judges")
    judges = [*network.scales, *network.views]
    means = x.unflatten(2, (-1, 2)).mean(3)
    seen = [x, means, x, x, x, x]
    expected = torch.stack([judge(y, labels) for judge, y in zip(judges, seen, strict=True)], 1)
    torch.testing.assert_close(network(x, labels), expected, **EXACT)


@pytest.mark.parametrize("name", NETWORKS)
def test_labels_and_samples(name: str) -> None:
    network = made(name)
    x, labels = inputs(name)
    out = network(x, labels)
    others = network(x, torch.tensor([1, 2, 1, 2]))
    assert not torch.allclose(out[0], others[0])
    torch.testing.assert_close(out[1:], others[1:], **EXACT)
    assert not network.couples_samples
    free = made(name, classes=0)
    assert torch.equal(free(x), free(x, None))


def test_batch_statistics_are_declared() -> None:
    assert made("generator", norm="batch").couples_samples
    assert made("shuffled", norm="batch").couples_samples


def penalty_gradient(network: nn.Module, name: str, method: Any) -> Tensor:
    output = gradient_penalty(network, *inputs(name), method=method)
    loss = output.loss + F.softplus(output.logits).mean()
    found = torch.autograd.grad(loss, list(network.parameters()))
    return torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("name", JUDGES)
def test_penalties_are_exact(name: str) -> None:
    wanted = penalty_gradient(made(name), name, "double")
    for network in (made(name), recompute(made(name))):
        found = penalty_gradient(network, name, "forward")
        assert (found - wanted).norm() < 1e-12 * wanted.norm()
    found = penalty_gradient(made(name), name, "difference")
    assert (found - wanted).norm() < 1e-3 * wanted.norm()
    assert check_penalty(made(name), *inputs(name)) < 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_after_construction_on_the_meta_device(name: str) -> None:
    cls, options = NETWORKS[name]
    torch.manual_seed(4)
    direct = cls(**SIZES, **options)
    with torch.device("meta"):
        later = cls(**SIZES, **options)
    later.to_empty(device="cpu")
    for tensor in (*later.parameters(), *later.buffers()):
        tensor.data.fill_(torch.nan)
    torch.manual_seed(4)
    later.init_weights()
    for mine, theirs in zip(
        (*later.parameters(), *later.buffers()), (*direct.parameters(), *direct.buffers())
    ):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_calls_every_block_once(name: str) -> None:
    network, calls = made(name), []
    for block in network.blocks:
        block.register_forward_hook(lambda module, *_: calls.append(module))
    network(*inputs(name))
    assert calls == network.blocks


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("generator", {"resolution": 60}, r"60 is no whole multiple of 4\^2 = 16, as 2 widths"),
        ("shuffled", {"widths": (4,) * 4}, r"64 is no whole multiple of 4\^4 = 256"),
        ("generator", {"norm": "bach"}, "norm 'bach' is not known: choose from none, batch"),
        ("shuffled", {"phase_shuffle": 16}, "16 steps cannot be moved by phase_shuffle 16"),
        ("judges", {"periods": (), "scales": 0, "spectra": ()}, "there are no judges"),
        ("judges", {"periods": (3, 0)}, "periods 3 0: each a multiple of 1"),
        ("judges", {"spectra": (18,)}, "spectra 18: each a multiple of 4, and at most the res"),
        ("judges", {"resolution": 80, "scales": 6}, "resolution 80 cannot be halved for 6 scales"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(name, **options)
