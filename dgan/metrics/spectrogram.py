"""Waveforms as grey pictures, in which people and classifiers of images can tell what was said."""

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 64
"""Of a picture: mel bands, and steps of time."""

DECIBELS = 60.0
"""From the loudest of a clip's values, which is white, down to black."""


class Spectrogram:
    """Log-mel spectrograms: power through triangular filters, in decibels below its largest value.

    Hann windows of four times the hop, which is a 64th of the clip. Mel are those of O'Shaughnessy
    1987, 2595 log₁₀(1 + f/700), the filters' edges equally far apart from 0 to half the rate; each
    filter takes at least the frequency that is nearest to its middle.

    Args:
        rate: samples a second.
        resolution: samples of a clip.

    Raises:
        ValueError: a clip is shorter than 64 samples.
    """

    def __init__(self, *, rate: int, resolution: int) -> None:
        if resolution < SIDE:
            raise ValueError(f"clips of {resolution} samples are too short to be shown: {SIDE}")
        self.hop = -(-resolution // SIDE)
        self.window = 4 * self.hop
        self._taper = torch.hann_window(self.window)
        self._filters = mel_filters(self.window // 2 + 1, rate)

    def __call__(self, waves: Tensor) -> Tensor:
        """Waveforms `[N, C, L]`, of which the channels are mixed → uint8 `[N, 1, 64, 64]`.

        Low frequencies are at the bottom. How loud a clip is does not show; a silent one is black.
        """
        mono = waves.float().mean(1)
        total = (SIDE - 1) * self.hop + self.window
        before = (total - mono.shape[1]) // 2
        padded = F.pad(mono, (before, total - mono.shape[1] - before))
        frames = padded.unfold(1, self.window, self.hop) * self._taper.to(mono.device)
        power = torch.view_as_real(torch.fft.rfft(frames)).square().sum(-1)
        mel = (power @ self._filters.to(mono.device).T).transpose(1, 2)  # [N, bands, time]
        loudest = mel.amax((1, 2), keepdim=True).clamp(min=1e-20)
        decibels = 10 * (mel / loudest).clamp(min=1e-20).log10()
        grey = (1 + decibels / DECIBELS).clamp(0, 1) * 255
        return grey.round().to(torch.uint8).flip(1)[:, None]


def mel_filters(frequencies: int, rate: int) -> Tensor:
    """Weights float32 `[64, frequencies]` of bands; `frequencies` are equally far apart from 0."""
    hertz = torch.linspace(0, rate / 2, frequencies, dtype=torch.float64)
    mel = 2595 * (1 + hertz / 700).log10()
    edges = torch.linspace(0, mel[-1].item(), SIDE + 2, dtype=torch.float64)
    triangles = 1 - (mel - edges[1:-1, None]).abs() / edges[1]
    nearest = (mel - edges[1:-1, None]).abs().argmin(1)
    filters = triangles.clamp(min=0)
    narrow = filters.sum(1) == 0
    filters[narrow, nearest[narrow]] = 1
    return filters.float()
