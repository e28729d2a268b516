"""Recordings in the place of images: the samples of WAV or FLAC files, all of one length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .audio import AUDIO_EXTENSIONS, read_audio
from .batch import Batch, Encoded, NumberBatch
from .buffers import Buffers
from .dataset import ShardDataset
from .decode import DecodeError, decode_field
from .errors import SizeMismatchError
from .images import PLAIN, View

AUDIO_CROPS = ("none", "centre", "window")


class AudioDataset(ShardDataset):
    """The `.wav` or `.flac` of each sample as its `"image"`, float32 `[channels, resolution]`.

    A recording that is longer than `resolution` is cut, a shorter one is put into silence. Which
    part of it, or where in the silence, `crop` says: `"centre"`: the middle; `"window"`: anywhere,
    drawn by a position as the windows of images are; `"none"`: neither, both are refused.

    Args:
        shards: as in `ShardDataset`; pictures that lie beside the recordings are not read.
        channels: of the recordings.
        resolution: samples of each channel that are handed out.
        rate: samples a second of the recordings. None is resampled.
        peak: above 0, each recording is scaled so that its largest magnitude is this; one that is
            silent stays so. Otherwise they are handed out as loud as they are stored.
        crop: see above.
        options: further ones of `ShardDataset`: `labels`, `cache` and `cache_gigabytes`.

    Raises:
        SizeMismatchError: a `ValueError`, also of a stream: a recording has another rate, other
            channels, or a length that `crop` refuses; names its key and shard.
        ValueError: a sample has no recording, soundfile is not installed, or as `ShardDataset`.
        FileNotFoundError: if a shard is missing.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path | Sequence[str | Path]],
        *,
        channels: int,
        resolution: int,
        rate: int,
        peak: float = 0.0,
        crop: str = "none",
        **options: Any,
    ) -> None:
        if crop not in AUDIO_CROPS:
            raise ValueError(f"crop must be one of {', '.join(AUDIO_CROPS)}; got {crop!r}")
        super().__init__(shards, fields=AUDIO_EXTENSIONS, **options)
        self.image_names, self.crop = (), crop
        self._sizes, self._peak, self.rate = (channels, resolution), peak, rate
        self.fields = (self._extension(),)
        self.decode_into(0, self.batch(1), 0)

    @property
    def channels(self) -> int:
        """Channels of the recordings."""
        return self._sizes[0]

    @property
    def resolution(self) -> int:
        """Samples of each channel."""
        return self._sizes[1]

    def batch(self, n: int, buffers: Buffers | None = None) -> Batch:
        """Room for `n` samples, in memory from `buffers` if given."""
        buffers = buffers or Buffers()
        return _AudioBatch(n, self._sizes, self.fields[0], self._peak, self.has_labels, buffers)

    def read(self, i: int) -> Encoded:
        """The bytes of sample `i`, of which the header says what is wanted.

        Raises:
            DecodeError: if it is missing or no recording. SizeMismatchError: see the class.
        """
        return self._as_wanted(i, super().read(i))

    def read_each(self, samples: NDArray[np.int64]) -> Sequence[Encoded]:
        """`read` of each of `samples`. Raises as it does."""
        return list(map(self._as_wanted, samples.tolist(), super().read_each(samples)))

    def _extension(self) -> str:
        """Whether the recordings are WAV or FLAC."""
        lacking = {name: self.table.first_without(name) for name in AUDIO_EXTENSIONS}
        for name, bare in lacking.items():
            if bare is None:
                return name
        bare = max(i for i in lacking.values() if i is not None)
        raise ValueError(
            f"{self.describe(bare)} has no .wav or .flac as the others have: audio is one kind of "
            "file for each sample, <key>.wav, and <key>.cls for its class"
        )

    def _as_wanted(self, i: int, sample: Encoded) -> Encoded:
        """Refuses what a network could not be given; here its shard is known."""
        found = read_audio(self.fields[0], sample.fields[0])
        channels, resolution = self._sizes
        if found.rate != self.rate:
            problem = f"{found.rate} samples a second, but the rate is to be {self.rate}"
            way_out = "resample it, or leave it out (nothing is resampled while training)"
        elif found.channels != channels:
            problem = f"{found.channels} channels, but {channels} are wanted"
            way_out = "mix or split it, or leave it out"
        elif self.crop == "none" and found.frames != resolution:
            problem = f"{found.frames} samples, but {resolution} are wanted"
            way_out = "crop 'centre' or 'window' cuts longer ones and puts shorter into silence"
        else:
            return sample
        raise SizeMismatchError(f"{self.describe(i)} has {problem}: {way_out}")


class _AudioBatch(NumberBatch):
    """Room for recordings."""

    def __init__(
        self,
        n: int,
        shape: tuple[int, int],
        extension: str,
        peak: float,
        labelled: bool,
        buffers: Buffers,
    ) -> None:
        super().__init__(n, shape, labelled=labelled, buffers=buffers)
        self._extension, self._peak = extension, peak

    def decode(self, row: int, sample: Encoded, view: View = PLAIN) -> None:
        """Decodes a recording into `row`, from where `view` says."""
        waves = decode_field(self._extension, sample.fields[0]).samples
        loudest = float(np.abs(waves).max())
        if not np.isfinite(loudest):
            raise DecodeError("its samples are not all finite")
        if self._peak and loudest:
            waves = waves * np.float32(self._peak / loudest)
        place(waves, self.numbers[row], None if view.at is None else view.at[0])
        self.name(row, sample)


def place(waves: NDArray[np.float32], row: NDArray[np.float32], at: float | None) -> None:
    """Fills `row` `[C, L]` with as much of `waves` `[C, n]` as it holds, and silence.

    What is longer is cut, what is shorter lies in silence; every whole sample that it can begin at
    is equally likely for a uniform `at` in [0, 1), None is the middle.
    """
    frames, length = waves.shape[1], row.shape[1]
    free = abs(frames - length)
    begin = free // 2 if at is None else int(at * (free + 1))
    if frames >= length:
        row[:] = waves[:, begin : begin + length]
    else:
        row[:] = 0.0
        row[:, begin : begin + frames] = waves
