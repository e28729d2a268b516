"""Several views of a waveform with a judge each: by periods, at several scales, as spectra.

Kong et al. 2020, "HiFi-GAN", section 2.3 (the scales are from Kumar et al. 2019, "MelGAN"); Jang et
al. 2021, "UnivNet", section 2.2 (spectra at several resolutions). Those judge vocoders, by patches;
here a judge sees a clip as a whole, for what is said, and its class by projection.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgan.networks.judges import side_by_side
from dgan.networks.layers import LEAKY_RELU_GAIN, BiasAct, fan_in_normal_, stored_weight
from dgan.networks.network import Network
from dgan.networks.waveform import Projection, WaveformDiscriminator

FLOOR = 1e-6
"""Of a power, of which a sine of amplitude 1 has ¼: what is 54 dB below that is nearly silent."""


class Conv2d(nn.Conv2d):
    """A strided convolution without bias whose weights keep the variance."""

    def __init__(
        self, inputs: int, outputs: int, kernel_size: tuple[int, int], stride: tuple[int, int]
    ) -> None:
        margins = (kernel_size[0] // 2, kernel_size[1] // 2)
        super().__init__(inputs, outputs, kernel_size, stride, margins, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        fan_in_normal_(stored_weight(self), LEAKY_RELU_GAIN)


class Periods(nn.Module):
    """Every p-th sample side by side: `[N, C, L]` → `[N, C, ⌈L/p⌉, p]`, in the end mirrored."""

    kernel_size, stride = (5, 1), (3, 1)

    def __init__(self, period: int, length: int) -> None:
        super().__init__()
        self.period, self.size = period, (-(-length // period), period)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if lacking := -x.shape[2] % self.period:
            x = torch.cat([x, x[:, :, -1 - lacking : -1].flip(2)], 2)
        return x.unflatten(2, self.size)


class Spectra(nn.Module):
    """Log powers, Hann windows at hops of a quarter: `[N, C, L]` → `[N, C, window/2, ⌈4L/window⌉]`.

    log(1 + |X|²/FLOOR)/4, with X so that a sine of amplitude 1 has |X| = ½; the highest frequency
    is left out. In at least 32 bits, whatever the rest computes in.
    """

    kernel_size, stride = (3, 3), (2, 2)
    taper: Tensor

    def __init__(self, window: int, length: int) -> None:
        super().__init__()
        self.window, self.hop = window, window // 4
        self.size = (window // 2, -(-length // self.hop))
        self.register_buffer("taper", torch.empty(window), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fill in the window, which sums to 1."""
        taper = torch.hann_window(self.window, device="cpu")
        self.taper.copy_(taper / taper.sum())

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        wide = torch.promote_types(x.dtype, torch.float32)
        total = (self.size[1] - 1) * self.hop + self.window
        before = (total - x.shape[2]) // 2
        padded = F.pad(x.to(wide), (before, total - x.shape[2] - before))
        frames = padded.unfold(2, self.window, self.hop) * self.taper.to(wide)
        spectrum = torch.view_as_real(torch.fft.rfft(frames)[..., :-1])
        return (spectrum.square().sum(-1) / FLOOR).log1p().div(4).transpose(2, 3).to(x.dtype)


class Viewed(nn.Module):
    """A view, strided convolutions with leaky ReLUs, and logits from all that they leave."""

    def __init__(
        self, view: Periods | Spectra, channels: int, widths: tuple[int, ...], classes: int
    ) -> None:
        super().__init__()
        self.view = view
        growing, (height, width) = widths[::-1], view.size
        self.stages = nn.ModuleList()
        for before, after in zip((channels, *growing), growing):
            conv = Conv2d(before, after, view.kernel_size, view.stride)
            self.stages.append(nn.Sequential(conv, BiasAct(after)))
            height, width = -(-height // view.stride[0]), -(-width // view.stride[1])
        self.head = Projection(widths[0] * height * width, widths[0], classes)

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return [*self.stages, self.head]

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Waveforms `[N, C, L]`, labels int64 `[N]` → logits `[N]`."""
        x = self.view(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.flatten(1), labels)


class WaveformJudges(Network):
    """Waveforms (and labels) to the logits of several judges.

    Args:
        resolution: samples of a waveform, a multiple of 2^(scales − 1) · 4^(number of widths).
        channels: of the waveforms.
        classes: 0: unconditional.
        widths: channels of every judge's layers, the last layer's first.
        periods: a judge of each; primes overlap least.
        scales: so many `WaveformDiscriminator`s, each of means over twice as many samples.
        spectra: a judge of spectra by windows of each of so many samples, a multiple of 4.
        phase_shuffle: of the scales.

    Raises:
        ValueError: there are no judges, or they do not fit `resolution`.
    """

    couples_samples = False

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        classes: int = 0,
        widths: tuple[int, ...],
        periods: tuple[int, ...] = (2, 3, 5, 7, 11),
        scales: int = 3,
        spectra: tuple[int, ...] = (),
        phase_shuffle: int = 0,
    ) -> None:
        super().__init__()
        if not (periods or scales or spectra):
            raise ValueError("there are no judges: give periods, scales or spectra")
        for name, sizes, step in (("periods", periods, 1), ("spectra", spectra, 4)):
            if any(size < 1 or size % step or size > resolution for size in sizes):
                shown = " ".join(map(str, sizes))
                raise ValueError(
                    f"{name} {shown}: each a multiple of {step}, and at most the resolution "
                    f"{resolution}"
                )
        if resolution % 2 ** max(scales - 1, 0):
            raise ValueError(f"resolution {resolution} cannot be halved for {scales} scales")
        views = [*(Periods(p, resolution) for p in periods)]
        views += [*(Spectra(window, resolution) for window in spectra)]
        self.scales = nn.ModuleList(
            WaveformDiscriminator(
                resolution=resolution >> scale,
                channels=channels,
                classes=classes,
                widths=widths,
                phase_shuffle=phase_shuffle,
            )
            for scale in range(scales)
        )
        self.views = nn.ModuleList(Viewed(view, channels, widths, classes) for view in views)

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        judges = [judge for part in (self.scales, self.views) for judge in part]
        return [block for judge in judges for block in getattr(judge, "blocks", [])]

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Waveforms `[N, C, L]`, labels int64 `[N]` → logits `[N, judges]`, the scales first."""
        logits = [judge(_halved(x, scale), labels) for scale, judge in enumerate(self.scales)]
        return side_by_side([*logits, *(judge(x, labels) for judge in self.views)])


def _halved(x: Tensor, times: int) -> Tensor:
    return F.avg_pool1d(x, 2**times) if times else x
