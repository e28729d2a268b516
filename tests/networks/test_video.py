"""Networks of clips: their convolutions, what each judge sees, sizes, and exact penalties."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dgan
from dgan.networks.resampling import Resample
from dgan.networks.video import (
    Down,
    FrameConv2d,
    TimeConv,
    Up,
    VideoDiscriminator,
    VideoGenerator,
    lengths_of,
)
from dgan.objectives.check import check_penalty

SIZES: dict[str, Any] = {"resolution": 16, "channels": 2, "frames": 4, "classes": 3}
WIDTHS = (6, 5, 4)
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scrambled(network: nn.Module) -> nn.Module:
    """Every parameter moved, those that start at zero too."""
    for seed, parameter in enumerate(network.double().parameters()):
        parameter.data = parameter + 0.3 * numbers(*parameter.shape, seed=seed)
    return network


def discriminator(**changes: Any) -> VideoDiscriminator:
    torch.manual_seed(0)
    network = scrambled(VideoDiscriminator(**SIZES | {"widths": WIDTHS} | changes))
    assert isinstance(network, VideoDiscriminator)
    return network


def test_convolutions_are_those_of_three_dimensions() -> None:
    x = numbers(2, 3, 5, 6, 6)
    for size in (1, 3):
        layer = FrameConv2d(3, 4, kernel_size=size).double()
        expected = F.conv3d(x, layer.weight[:, :, None], padding=(0, size // 2, size // 2))
        torch.testing.assert_close(layer(x), expected, **EXACT)
    layer = TimeConv(3, 4).double()
    expected = F.conv3d(x, layer.weight[..., None, None], padding=(1, 0, 0))
    torch.testing.assert_close(layer(x), expected, **EXACT)


def test_stages_double_and_halve_frames_and_their_size() -> None:
    x = numbers(2, 3, 2, 4, 4)
    up, resample = Up(3, 5, 4, longer=True).double(), Resample(4, up=True).double()
    found = up(x)
    assert found.shape == (2, 5, 4, 8, 8)
    for frame in range(4):
        expected = resample(F.conv2d(x[:, :, frame // 2], up.conv.weight))
        torch.testing.assert_close(found[:, :, frame], expected, **EXACT)
    down, resample = Down(3, 5, 4, shorter=True).double(), Resample(4, up=False).double()
    expected = F.conv2d(resample(x.mean(2)), down.conv.weight)
    torch.testing.assert_close(down(x)[:, :, 0], expected, **EXACT)


@pytest.mark.parametrize(
    ("frames", "stages", "lengths"),
    [
        (8, 4, [2, 4, 8, 8]),
        (8, 3, [2, 4, 8]),
        (16, 3, [4, 8, 16]),
        (6, 4, [3, 6, 6, 6]),
        (5, 3, [5, 5, 5]),
        (2, 3, [2, 2, 2]),
        (1, 2, [1, 1]),
    ],
)
def test_frames_of_each_stage(frames: int, stages: int, lengths: list[int]) -> None:
    assert lengths_of(frames, stages) == lengths


@pytest.mark.parametrize("frames", [1, 3, 4])
def test_the_generator_makes_clips_of_a_class(frames: int) -> None:
    torch.manual_seed(0)
    sizes = SIZES | {"frames": frames, "widths": WIDTHS, "z_dim": 5}
    network, z = scrambled(VideoGenerator(**sizes, blocks=2)), numbers(3, 5)
    made = network(z, torch.tensor([0, 1, 2]))
    assert made.shape == (3, 2, frames, 16, 16)
    torch.testing.assert_close(network(z[1:2], torch.tensor([1])), made[1:2], **EXACT)
    assert (network(z, torch.tensor([1, 1, 2]))[0] - made[0]).abs().max() > 1e-3
    if frames > 1:
        assert made.diff(dim=2).flatten(3).abs().amax(3).min() > 1e-3  # it moves


def test_each_judge_sees_what_it_shall() -> None:
    network, x, labels = discriminator(), numbers(3, 2, 4, 16, 16), torch.tensor([0, 1, 2])
    logits = network(x, labels)
    assert logits.shape == (3, 2)
    torch.testing.assert_close(network(x[1:2], labels[1:2]), logits[1:2], **EXACT)
    assert ((network(x, labels.roll(1)) - logits).abs() > 1e-3).all()
    moved = [(network(_changed(x, frame), labels) - logits).abs() > 1e-9 for frame in range(4)]
    assert [bool(change[:, 0].all()) for change in moved] == [False, True, False, True]
    assert [bool(change[:, 0].any()) for change in moved] == [False, True, False, True]
    assert all(bool(change[:, 1].all()) for change in moved)
    # Half the resolution: the judge of clips sees means of 2×2 pixels.
    checker = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64).repeat(8, 8)
    change = (network(x + checker, labels) - logits).abs()
    assert change[:, 1].max() < 1e-9 < change[:, 0].min()
    # One logit of frames is the mean over those that are seen.
    single = [x[:, :, frame, None].expand(-1, -1, 4, -1, -1) for frame in (1, 3)]
    mean = torch.stack([network(clip, labels)[:, 0] for clip in single]).mean(0)
    torch.testing.assert_close(mean, logits[:, 0], **EXACT)


def _changed(x: Tensor, frame: int) -> Tensor:
    x = x.clone()
    x[:, :, frame] += numbers(*x.shape[3:], seed=9)
    return x


def test_order_in_time_matters_to_the_judge_of_clips() -> None:
    network, x = discriminator(classes=0), numbers(2, 2, 4, 16, 16)
    change = (network(x.flip(2)) - network(x)).abs()
    assert change[:, 1].min() > 1e-6


@pytest.mark.parametrize("make", [VideoGenerator, VideoDiscriminator])
def test_what_is_filled_later_equals_what_is_filled_at_once(make: Callable[..., Any]) -> None:
    torch.manual_seed(3)
    at_once = make(**SIZES, widths=WIDTHS)
    with torch.device("meta"):
        later = make(**SIZES, widths=WIDTHS)
    later.to_empty(device="cpu")
    for tensor in (*later.parameters(), *later.buffers()):
        tensor.data.fill_(float("nan"))
    torch.manual_seed(3)
    later.init_weights()
    for name, tensor in at_once.state_dict().items():
        assert torch.equal(later.state_dict()[name], tensor), name
    owned = {p for block in later.blocks for p in block.parameters()}
    outside = [name for name, p in later.named_parameters() if p not in owned]
    assert not any(re.search(r"stages|head", name) for name in outside), outside


@pytest.mark.parametrize("kind", ["zero_centered", "one_centered"])
def test_penalties_of_clips_are_exact(kind: Any) -> None:
    """`double` and `forward` against a central difference of the penalty, in float64."""
    network, x, labels = discriminator(), numbers(3, 2, 4, 16, 16), torch.tensor([0, 1, 2])
    parameters = list(network.parameters())
    outputs, gradients = {}, {}
    for method in ("double", "forward"):
        output = dgan.gradient_penalty(network, x, labels, kind=kind, method=method)
        found = torch.autograd.grad(output.loss, parameters, allow_unused=True)
        gradients[method] = [
            torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found)
        ]
        outputs[method] = output
    torch.testing.assert_close(outputs["forward"].loss, outputs["double"].loss, **EXACT)
    torch.testing.assert_close(outputs["forward"].norms, outputs["double"].norms, **EXACT)
    for forward, double in zip(gradients["forward"], gradients["double"]):
        torch.testing.assert_close(forward, double, rtol=1e-9, atol=1e-11)
    wanted = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(network(wanted, labels).sum(), wanted)
    norms = slope.flatten(1).norm(dim=1)
    torch.testing.assert_close(outputs["double"].norms, norms, **EXACT)

    direction = [numbers(*p.shape, seed=100 + i) for i, p in enumerate(parameters)]

    def penalty_at(step: float) -> Tensor:
        with torch.no_grad():
            for parameter, way in zip(parameters, direction):
                parameter += step * way
        value = dgan.gradient_penalty(network, x, labels, kind=kind, method="double").loss.detach()
        with torch.no_grad():
            for parameter, way in zip(parameters, direction):
                parameter -= step * way
        return value

    step = 1e-7  # small enough that hardly a leaky ReLU turns on the way
    difference = (penalty_at(step) - penalty_at(-step)) / (2 * step)
    exact = sum((g * way).sum() for g, way in zip(gradients["double"], direction))
    assert difference.item() == pytest.approx(float(exact), rel=1e-5)
    assert check_penalty(network, x, labels, kind=kind, method="forward") < 1e-6


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (VideoDiscriminator, {"seen": 3}, "sees 3 of 4 frames evenly spread: `seen` must divide"),
        (VideoDiscriminator, {"seen": 0}, "sees 0 of 4 frames"),
        (VideoDiscriminator, {"resolution": 4, "widths": (3,)}, "cannot halve clips of resolution"),
        (VideoGenerator, {"frames": 0}, "at least 1 frame, not 0: set --data.frames"),
        (VideoGenerator, {"widths": (4, 3)}, "needs 3 widths (for 4, 8, 16), but got 2"),
    ],
)
def test_sizes_that_do_not_fit(make: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**SIZES | {"widths": WIDTHS} | changes)
