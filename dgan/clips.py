"""What a person sees and hears of generated waveforms."""

import wave
from pathlib import Path

import torch
from torch import Tensor

from dgan.data import ShardStream
from dgan.data.aside import written_aside
from dgan.parallel.world import World
from dgan.pictures import Images, Sheet
from dgan.visible import Picture

PAUSE_S = 0.1
"""Of silence after each clip."""


class Clips(Images):
    """Spectrograms side by side, and beside the sheet one WAV: the clips in its order.

    Args: as `Images`, and
        picture: of waveforms.
        rate: samples a second.
    """

    def __init__(
        self,
        stream: ShardStream,
        *,
        count: int,
        classes: int,
        z_dim: int,
        seed: int,
        world: World,
        picture: Picture,
        rate: int,
    ) -> None:
        super().__init__(stream, count=count, classes=classes, z_dim=z_dim, seed=seed, world=world)
        self.picture, self.rate = picture, rate

    def sheet(self, samples: Tensor) -> Sheet:
        """See `Images`."""

        def write(path: Path) -> None:
            save_wav(samples, path.with_suffix(".wav"), self.rate)

        return Sheet(self.picture(samples), self.columns, write)


def save_wav(waves: Tensor, path: Path, rate: int) -> None:
    """Write waveforms `[N, C, L]`, one after another, as one WAV of 16 bits, whole or not at all.

    What lies outside of [−1, 1] is clipped.
    """
    pause = waves.new_zeros(*waves.shape[:2], round(PAUSE_S * rate))
    line = torch.cat([waves, pause], 2).transpose(0, 1).flatten(1)  # [C, N · (L + pause)]
    numbers = (line.detach().float().cpu().clamp(-1, 1) * 32767).round().to(torch.int16)
    with written_aside(path) as aside, wave.open(aside, "wb") as file:
        file.setparams((len(line), 2, rate, 0, "NONE", ""))
        file.writeframes(numbers.T.contiguous().numpy().astype("<i2").tobytes())


def save_clips(waves: Tensor, labels: Tensor | None, out: Path, *, rate: int, seed: int) -> None:
    """One WAV of all waveforms `[N, C, L]` if `out` is one, else a folder of one each."""
    if out.suffix == ".wav":
        save_wav(waves, out, rate)
        return
    for index, clip in enumerate(waves):
        suffix = "" if labels is None else f"-class{labels[index]}"
        save_wav(clip[None], out / f"seed{seed}-{index:06d}{suffix}.wav", rate)
