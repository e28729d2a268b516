"""WaveGAN: DCGAN in one dimension (Donahue, McAuley, Puckette 2019, "Adversarial audio synthesis").

Filters of 25 samples and strides of 4 in the place of 5×5 and 2×2: as many weights, and as many
values a layer.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from dgan.networks.layers import (
    LEAKY_RELU_GAIN,
    NORMS,
    BiasAct,
    Embedding,
    Linear,
    NormAct,
    fan_in_normal_,
    stored_weight,
)
from dgan.networks.network import Network

STRIDE, KERNEL_SIZE = 4, 25
WIDTHS = (1024, 512, 256, 128, 64)
"""As published, for 16,384 samples; the shortest length's first."""
RELU_GAIN = math.sqrt(2)


class Conv1d(nn.Conv1d):
    """A convolution without bias whose weights keep the variance; makes a quarter of the length."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, KERNEL_SIZE, STRIDE, padding=11, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        fan_in_normal_(stored_weight(self), LEAKY_RELU_GAIN)


class ConvTranspose1d(nn.ConvTranspose1d):
    """Likewise a transposed one, four times the length; each value has a quarter of the taps."""

    def __init__(
        self, inputs: int, outputs: int, gain: float = RELU_GAIN, *, bias: bool = False
    ) -> None:
        self.gain = gain
        super().__init__(
            inputs, outputs, KERNEL_SIZE, STRIDE, padding=11, output_padding=1, bias=bias
        )

    def reset_parameters(self) -> None:
        """Draw the weights anew; the bias is 0."""
        taps = self.in_channels * KERNEL_SIZE / STRIDE
        nn.init.normal_(stored_weight(self), std=self.gain / math.sqrt(taps))
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class PhaseShuffle(nn.Module):
    """Moves all features of a sample by −n … n steps, mirrored at the end (section 3.3).

    A discriminator can then not go by the phase of the artefacts that transposed convolutions
    leave. Published with a random move; here it is a hash of the place where the sample is loudest
    (`loudest`) and of the layer: the same in every pass of a penalty, in what is computed again,
    on any number of ranks. It changes with the sample, and is constant in its neighbourhood.

    Args:
        n: the largest move; 0: none.
        layer: a number of its own for each layer.
    """

    def __init__(self, n: int, layer: int) -> None:
        super().__init__()
        self.n, self.layer = n, layer

    def shifts(self, place: Tensor) -> Tensor:
        """Places int64 `[N]` → moves int64 `[N]`."""
        # The finaliser of MurmurHash3, whose bits all depend on all bits of place and layer.
        mixed = (place + self.layer * 0x9E3779B9) & 0xFFFFFFFF
        mixed = (mixed ^ (mixed >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
        mixed = (mixed ^ (mixed >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
        return (mixed ^ (mixed >> 16)) % (2 * self.n + 1) - self.n

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        """`[N, C, L]`, places of the samples int64 `[N]` → the same shape; L exceeds n."""
        if not self.n:
            return x
        last = x.shape[2] - 1
        steps = torch.arange(last + 1, device=x.device) - self.shifts(place)[:, None]
        mirrored = last - (last - steps.abs()).abs()
        return x.gather(2, mirrored[:, None].expand_as(x))


def loudest(x: Tensor) -> Tensor:
    """Where the largest magnitude of each sample of `[N, C, L]` is, int64 `[N]`; the first such."""
    return x.detach().abs().flatten(1).argmax(1)


def norm_act(norm: str, channels: int, act: str) -> nn.Module:
    """A norm and an activation in one layer; `none`: a bias in the norm's place."""
    if norm not in ("none", *NORMS):
        raise ValueError(f"norm {norm!r} is not known: choose from none, {', '.join(NORMS)}")
    return BiasAct(channels, act) if norm == "none" else NormAct(channels, norm, act)


def shortest(resolution: int, widths: tuple[int, ...]) -> int:
    """The length of the features with `widths[0]` channels; `ValueError` if there is none."""
    length, rest = divmod(resolution, STRIDE ** len(widths))
    if rest or not length:
        raise ValueError(
            f"resolution {resolution} is no whole multiple of 4^{len(widths)} = "
            f"{STRIDE ** len(widths)}, as {len(widths)} widths need: each makes 4 times the length"
        )
    return length


class WaveformGenerator(Network):
    """Latents (and labels) to waveforms in (−1, 1).

    Args:
        resolution: samples of a waveform, widths' number of times a multiple of 4.
        channels: of the waveforms.
        classes: 0: unconditional. Otherwise a vector a class is put beside the latent.
        z_dim: size of the latents.
        widths: channels at each length but the last, the shortest first, each then 4 times as long.
        norm: `none` as in the paper, `batch`, `layer` or `instance`.

    Raises:
        ValueError: there is no such norm, or `resolution` does not fit.
    """

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        classes: int = 0,
        z_dim: int = 100,
        widths: tuple[int, ...] = WIDTHS,
        norm: str = "none",
    ) -> None:
        super().__init__()
        self.z_dim, self.couples_samples = z_dim, norm == "batch"
        self.shape = (widths[0], shortest(resolution, widths))
        self.embedding = Embedding(classes, z_dim, math.sqrt(classes)) if classes else None
        inputs = 2 * z_dim if classes else z_dim
        self.first = nn.Sequential(
            Linear(inputs, math.prod(self.shape), RELU_GAIN),
            nn.Unflatten(1, self.shape),
            norm_act(norm, widths[0], "relu"),
        )
        self.stages = nn.ModuleList(
            nn.Sequential(ConvTranspose1d(before, after), norm_act(norm, after, "relu"))
            for before, after in pairwise(widths)
        )
        self.to_waveform = ConvTranspose1d(widths[-1], channels, gain=0.5, bias=True)

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return [self.first, *self.stages]

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents `[N, z_dim]`, labels int64 `[N]` → waveforms `[N, C, L]`."""
        x = z if self.embedding is None else torch.cat([z, self.embedding(labels)], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.to_waveform(x).tanh()


class Down(nn.Module):
    """A quarter of the length, a norm and an activation, and the moves of `PhaseShuffle`."""

    def __init__(self, inputs: int, outputs: int, norm: str, shuffle: PhaseShuffle) -> None:
        super().__init__()
        self.conv = Conv1d(inputs, outputs)
        self.act = norm_act(norm, outputs, "leaky_relu")
        self.shuffle = shuffle

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        """`[N, inputs, L]`, int64 `[N]` → `[N, outputs, L/4]`."""
        return self.shuffle(self.act(self.conv(x)), place)


class Projection(nn.Module):
    """Features to logits, with labels by projection (Miyato and Koyama 2018, equation 3)."""

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.features = Linear(inputs, width)
        self.embedding = Embedding(classes, width, math.sqrt(classes)) if classes else None
        self.out = Linear(width, 1, bias=True)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """`[N, inputs]`, labels int64 `[N]` → `[N]`."""
        x = self.features(x)
        logits = self.out(x).squeeze(1)
        if self.embedding is None:
            return logits
        return logits + (x * self.embedding(labels)).sum(1) / math.sqrt(x.shape[1])


class WaveformDiscriminator(Network):
    """Waveforms (and labels, by projection) to logits.

    Args: as `WaveformGenerator`, and
        widths: channels at each length but the first, the shortest first.
        phase_shuffle: the largest move of `PhaseShuffle`, which follows each layer but the last.

    Raises:
        ValueError: there is no such norm, or `resolution` does not fit.
    """

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        classes: int = 0,
        widths: tuple[int, ...] = WIDTHS,
        norm: str = "none",
        phase_shuffle: int = 2,
    ) -> None:
        super().__init__()
        self.couples_samples = norm == "batch"
        length, shrinking = shortest(resolution, widths), (channels, *widths[::-1])
        if length * STRIDE <= phase_shuffle:
            raise ValueError(
                f"features of {length * STRIDE} steps cannot be moved by phase_shuffle "
                f"{phase_shuffle}: take fewer widths, or a smaller one"
            )
        last = len(widths) - 1
        self.stages = nn.ModuleList(
            # The first layer is not normalised, as in DCGAN.
            Down(
                before,
                after,
                norm if index else "none",
                PhaseShuffle(phase_shuffle if index < last else 0, index),
            )
            for index, (before, after) in enumerate(pairwise(shrinking))
        )
        self.head = Projection(widths[0] * length, widths[0], classes)

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return [*self.stages, self.head]

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Waveforms `[N, C, L]`, labels int64 `[N]` → logits `[N]`."""
        place = loudest(x)
        for stage in self.stages:
            x = stage(x, place)
        return self.head(x.flatten(1), labels)
