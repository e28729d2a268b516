"""Clips: some frames of each sample, which is a strip of frames or an array of them.

A strip is an image of square frames side by side, the first on the left. An array is the `.npy`
that `dgan data pack --video` makes of a folder of frames, uint8 `[T, C, H, W]`; it needs no
decoding, so that a large set trains faster from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .batch import Batch, Encoded
from .buffers import Buffers
from .dataset import ShardDataset
from .decode import PILLOW_ERRORS, convert, decode_field, image_channels, open_image
from .errors import DecodeError, SizeMismatchError
from .images import PLAIN, View

ARRAY = "npy"
"""Where shards hold the array of a sample; one without is a strip."""


class ClipDataset(ShardDataset):
    """`frames` of each clip as its `"image"`, uint8 `[channels, frames, resolution, resolution]`.

    `ShardStream` draws by (seed, position) where in the clip they begin, every place being equally
    likely; here they are from its middle.

    Args:
        shards: as in `ShardDataset`; all of them strips, or all of them arrays.
        channels: 1 or 3. Grey strips become colour ones without loss; the other way is an error,
            and so is an array of another number.
        resolution: height and width that frames are resized to (Lanczos, each by itself).
        frames: how many.
        stride: every so-manieth frame is one of them.
        options: further ones of `ShardDataset`: `labels`, `cache` and `cache_gigabytes`.

    Raises:
        ValueError: the first sample is no such clip, or as `ShardDataset`.
        FileNotFoundError: if a shard is missing.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path | Sequence[str | Path]],
        *,
        channels: int,
        resolution: int,
        frames: int,
        stride: int = 1,
        **options: Any,
    ) -> None:
        if frames < 1 or stride < 1:
            raise ValueError(f"frames and stride must be at least 1, got {frames} and {stride}")
        super().__init__(
            shards, fields=(ARRAY,), channels=channels, resolution=resolution, **options
        )
        if self.table.has(ARRAY, 0, len(self.table)):
            wanted, self.image_names = ARRAY, ()
        else:
            wanted, self.fields = "image", ()
        self.frames, self.stride, self._sizes = frames, stride, (channels, resolution)
        if wanted == "image" and self.image_names != ("image",):
            found = ", ".join(self.image_names) or "no image"
            raise ValueError(
                f"{self.describe(0)} is no clip: it has {found}; a clip is one strip of frames, "
                f"<key>.png, or an array of them, <key>.{ARRAY}, as `dgan data pack --video` makes"
            )
        if (bare := self.table.first_without(wanted)) is not None:
            raise ValueError(f"{self.describe(bare)} has no {wanted!r}, others have")
        with suppress(DecodeError):  # of a damaged one nothing is known; it will be skipped
            self.decode_into(0, self.batch(1), 0)

    @property
    def draws_places(self) -> bool:
        """Where a clip is seen from is drawn, always."""
        return True

    def batch(self, n: int, buffers: Buffers | None = None) -> Batch:
        """Room for `n` samples, in memory from `buffers` if given."""
        return _ClipBatch(n, self, buffers or Buffers())

    @property
    def channels(self) -> int:
        """Channels of the frames."""
        return self._sizes[0]

    @property
    def resolution(self) -> int:
        """Their height and width, as they are shown."""
        return self._sizes[1]


class Places(ClipDataset):
    """Several places of each clip, evenly spread, as samples one after the other.

    For `batches`, by which scores are computed: there are more places than clips.

    Args: as `ClipDataset`, and
        each: how many of a clip.
    """

    def __init__(self, *arguments: Any, each: int, **options: Any) -> None:
        self.each = each
        super().__init__(*arguments, **options)

    def __len__(self) -> int:
        return self.each * len(self.table)

    def describe(self, i: int) -> str:
        """The clip of sample `i` in words."""
        return super().describe(i // self.each)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """The class of every sample; see `ShardDataset`."""
        return super().labels.repeat(self.each)

    def decode_into(self, i: int, batch: Batch, row: int, view: View = PLAIN) -> None:
        """Decodes a place into `row` of `batch`; see `ShardDataset`."""
        clip, place = divmod(i, self.each)
        super().decode_into(clip, batch, row, View(view.mirror, ((place + 0.5) / self.each, 0.0)))


class Labelled(NamedTuple):
    """Clips uint8 `[N, C, T, H, W]` and their classes int64 `[N]`."""

    clips: Tensor
    labels: Tensor


def split_labelled(dataset: ClipDataset) -> tuple[Labelled, Labelled]:
    """Places of labelled clips, and places of other clips: to train a classifier and measure it.

    A fifth of the clips is held out, in runs of up to four neighbours: what stands side by side in
    shards is often one recording in parts, or mirrored. Of many clips some are taken, evenly
    spread; all places together hold up to 2,000, or 256 MB.

    Raises:
        ValueError: there are fewer than 5 clips that decode.
    """
    size = dataset.channels * dataset.frames * dataset.resolution**2
    most = min(2000, max(64, (1 << 28) // size))
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), most)).astype(int))
    each, run = min(16, most // len(chosen)), max(1, min(4, len(chosen) // 5))
    parts: tuple[list[dict[str, Any]], ...] = ([], [])
    for number, clip in enumerate(chosen.tolist()):
        batch = dataset.batch(each)
        with suppress(DecodeError):
            for row in range(each):
                dataset.decode_into(clip, batch, row, View(at=((row + 0.5) / each, 0.0)))
            parts[number // run % 5 == 4].append(batch.as_dict())
    if not all(parts):
        raise ValueError(
            f"{dataset.table} has {len(dataset)} clips: a classifier of them takes 5 or more that "
            "decode; name other --evaluation.features, or set --evaluation.every -1"
        )
    fit, held_out = (
        Labelled(*(torch.cat([found[key] for found in part]) for key in ("image", "label")))
        for part in parts
    )
    return fit, held_out


class _ClipBatch(Batch):
    """Room for clips; in memory the channels of a pixel are neighbours."""

    def __init__(self, n: int, dataset: ClipDataset, buffers: Buffers) -> None:
        super().__init__(
            n, {}, labelled=dataset.has_labels, fields=(), crop="none", buffers=buffers
        )
        self._channels, side = dataset.channels, dataset.resolution
        self._frames, self._stride = dataset.frames, dataset.stride
        self._decoder = _Array if dataset.fields else _Strip
        memory = buffers.take((n, self._frames, side, side, self._channels))
        self._images = {"image": memory.permute(0, 4, 1, 2, 3)}
        self._rows = memory.numpy()

    def decode(self, row: int, sample: Encoded, view: View = PLAIN) -> None:
        """Decodes some frames into `row`, seen as `view` says: `at` is where they begin.

        Raises:
            DecodeError: if it is damaged; `row` then holds anything.
            SizeMismatchError: if the clip is too short, or no clip of these channels.
        """
        (data,) = (*sample.images, *sample.fields)
        clip = self._decoder(data, sample.key, self._channels)
        span = (self._frames - 1) * self._stride + 1
        if clip.length < span:
            stride = f" with a stride of {self._stride}" if self._stride > 1 else ""
            raise SizeMismatchError(
                f"sample {sample.key!r} has {clip.length} frames, but {self._frames}{stride} take "
                f"{span}: ask for fewer (--data.frames, --data.frame_stride), or leave it out"
            )
        at = 0.5 if view.at is None else view.at[0]
        begin = int(at * (clip.length - span + 1))
        for place, frame in enumerate(clip.read(begin, begin + span, self._stride)):
            self._rows[row, place] = _resized(frame, self._rows.shape[2])
        if view.mirror:
            self._rows[row] = self._rows[row, :, :, ::-1].copy()
        self._keys[row] = sample.key
        if self._labels is not None:
            self._labels[row] = sample.label


class _Strip:
    """A strip of square frames, decoded when it is read."""

    def __init__(self, data: bytes, key: str, channels: int) -> None:
        self.image, self.channels = open_image(data), channels
        width, self.side = self.image.size
        self.length = width // self.side
        if width % self.side:
            raise SizeMismatchError(
                f"sample {key!r} is {width}×{self.side} (width × height), no strip of square frames"
            )
        if image_channels(self.image) > channels:
            raise SizeMismatchError(
                f"sample {key!r} is in colour, and --data.channels is {channels}: set it to 3"
            )

    def read(self, begin: int, end: int, stride: int) -> NDArray[np.uint8]:
        """Frames `[n, H, W, C]`."""
        try:
            part = self.image.crop((begin * self.side, 0, end * self.side, self.side))
        except PILLOW_ERRORS as error:
            raise DecodeError(f"its pixels do not decode ({error})") from error
        pixels = np.asarray(convert(part, self.channels))
        strip = pixels.reshape(self.side, end - begin, self.side, self.channels)
        return strip.swapaxes(0, 1)[::stride]


class _Array:
    """An array uint8 `[T, C, H, W]`."""

    def __init__(self, data: bytes, key: str, channels: int) -> None:
        self.array = decode_field(ARRAY, data)
        shape, kind = list(self.array.shape), self.array.dtype
        if kind != np.uint8 or len(shape) != 4 or shape[1] != channels or shape[2] != shape[3]:
            raise SizeMismatchError(
                f"sample {key!r} holds {kind} {shape}, but uint8 [frames, {channels}, side, side] "
                "is wanted: --data.channels says how many channels, and frames are square"
            )
        self.length = shape[0]

    def read(self, begin: int, end: int, stride: int) -> NDArray[np.uint8]:
        """Frames `[n, H, W, C]`."""
        return self.array[begin:end:stride].transpose(0, 2, 3, 1)


def _resized(frame: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A frame `[H, W, C]` of `side` × `side` pixels."""
    if frame.shape[0] == side:
        return frame
    image = Image.fromarray(frame[..., 0] if frame.shape[2] == 1 else np.ascontiguousarray(frame))
    pixels = np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))
    return pixels.reshape(side, side, -1)
