"""Small recipes of audio, and shards of clips: of class k a sine of k + 1 periods, in noise."""

import io
import tarfile
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dgan.config import Penalty
from dgan.schedule import constant

RATE, LENGTH = 1000, 256
AUDIO: dict[str, Any] = {
    "data__kind": "audio",
    "data__resolution": LENGTH,
    "data__classes": 3,
    "data__rate": RATE,
    "data__peak": 0.9,
    "data__crop": "window",
    "data__flip": False,
    "generator__network": "waveform",
    "generator__options": {"z_dim": 6, "widths": (8, 6), "norm": "batch"},
    "discriminator__network": "waveform",
    "discriminator__options": {"widths": (8, 6, 4), "phase_shuffle": 2},
    "task__loss": "wasserstein",
    "penalty": Penalty(
        gamma=constant(10.0), points="between", kind="one_centered", method="forward", check=False
    ),
    "train__batch_size": 8,
    "samples__count": 6,
}
"""What `tiny` changes, on shards of `clips`: WGAN-GP, as published."""
JUDGES: dict[str, Any] = {
    "task__loss": "relativistic",
    "penalty": Penalty(gamma=constant(0.1), check=False),
    "discriminator__network": "waveform-judges",
    "discriminator__options": {"widths": (8, 6), "periods": (3,), "scales": 2, "spectra": (32,)},
}


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    """16-bit samples `[frames, channels]`, or of one channel `[frames]`."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        channels = samples.shape[1] if samples.ndim == 2 else 1
        writer.setparams((channels, 2, rate, 0, "NONE", ""))
        writer.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def tone(number: int, frames: int = LENGTH) -> np.ndarray:
    """A clip of class `number % 3`, int16 `[frames]`."""
    draw = np.random.default_rng(number)
    phase = 2 * np.pi * (draw.random() + (number % 3 + 1) * 8 * np.arange(frames) / LENGTH)
    return (8000 * np.sin(phase) + draw.normal(0, 500, frames)).astype(np.int16)


def write_clips(path: Path, files: Sequence[bytes], extension: str = "wav") -> Path:
    """A shard of these, keys `0000`, `0001`, …, of classes 0, 1, 2 by turns."""
    with tarfile.open(path, "w") as tar:
        for i, data in enumerate(files):
            for name, content in ((extension, data), ("cls", str(i % 3).encode())):
                info = tarfile.TarInfo(f"{i:04d}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def clips(path: Path, count: int) -> Path:
    """A shard of `count` tones, some shorter and some longer than `LENGTH`."""
    return write_clips(path, [wav(tone(i, LENGTH + 16 * (i % 5 - 2))) for i in range(count)])
