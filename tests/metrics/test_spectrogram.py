"""Pictures of waveforms: against torch.stft, and what a sine looks like."""

import pytest
import torch

from dgan.metrics.spectrogram import DECIBELS, Spectrogram, mel_filters


def test_pictures_by_their_definition() -> None:
    waves = torch.randn(3, 2, 1000, generator=torch.Generator().manual_seed(0))
    waves[1, :, 400:] = 0
    pictures = Spectrogram(rate=8000, resolution=1000)(waves)
    assert (pictures.shape, pictures.dtype) == ((3, 1, 64, 64), torch.uint8)
    hop, window = 16, 64  # ⌈1000/64⌉
    mono = waves.double().mean(1)
    before = (63 * hop + window - 1000) // 2
    padded = torch.nn.functional.pad(mono, (before, 63 * hop + window - 1000 - before))
    spectra = torch.stft(
        padded, window, hop, window=torch.hann_window(window).double(), center=False,
        return_complex=True,
    )  # fmt: skip
    mel = mel_filters(33, 8000).double() @ spectra.abs().square()
    decibels = 10 * (mel / mel.amax((1, 2), keepdim=True)).log10()
    expected = (255 * (1 + decibels / DECIBELS)).clamp(0, 255).flip(1)
    assert (pictures[:, 0].double() - expected).abs().max() <= 0.51


def test_filters_are_triangles_on_the_mel_scale() -> None:
    filters = mel_filters(4001, 8000)  # a frequency a hertz
    assert filters.amax(1).min() > 0.97
    assert filters.sum(0)[100:3700].sub(1).abs().max() < 1e-5  # neighbours share each frequency
    middles = filters.argmax(1).double()
    mel = 2595 * (1 + middles / 700).log10()
    assert mel.diff().sub(mel.diff().mean()).abs().max() < 3
    few = mel_filters(17, 8000)
    assert few.sum(1).min() > 0


@pytest.mark.parametrize("frequency", [500, 2000])
def test_a_sine_is_a_line_at_its_height(frequency: int) -> None:
    wave = torch.sin(torch.arange(5120) * frequency * 2 * torch.pi / 8000)[None, None]
    show = Spectrogram(rate=8000, resolution=5120)
    picture = show(wave)[0, 0].float()
    mel = 2595 * torch.tensor(1 + frequency / 700).log10()
    band = mel / (2595 * torch.tensor(1 + 4000 / 700).log10()) * 65 - 1
    rows = picture.sum(1)
    assert abs((63 - rows.argmax()) - band) <= 1
    assert rows.max() > 10 * rows.median()


def test_loudness_and_silence() -> None:
    waves = torch.randn(2, 1, 640, generator=torch.Generator().manual_seed(1))
    show = Spectrogram(rate=8000, resolution=640)
    assert (show(0.01 * waves).int() - show(waves).int()).abs().max() <= 1
    assert not show(torch.zeros(1, 1, 640)).any()
    assert torch.equal(show(waves)[1:], show(waves[1:]))
    with pytest.raises(ValueError, match="clips of 63 samples are too short"):
        Spectrogram(rate=8000, resolution=63)
