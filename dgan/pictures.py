"""What a person sees of samples while a generator trains."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from dgan.data import ShardStream
from dgan.data.toy import ToyStream
from dgan.evaluation import visible
from dgan.laboratory.picture import draw_samples, field_of
from dgan.parallel.world import World

Sheet = tuple[Tensor, int]
"""Pictures uint8 `[K, C, H, W]`, and how many of them stand in a row."""


class Pictures(Protocol):
    """How samples of one kind are shown.

    Attributes:
        world: every rank calls every method.
        count: samples that are shown.
        labels: their classes, int64 `[count]`, or None.
    """

    world: World
    count: int
    labels: Tensor | None

    def of_samples(self, samples: Tensor, judge: nn.Module) -> Sheet:
        """Generated samples `[count, ...]`, and what the discriminator has to do with it."""
        ...

    def of_reals(self) -> Sheet:
        """As many of the data."""
        ...


class Images:
    """Images side by side; of a conditional generator a row a class.

    Args:
        stream: the real ones.
        count: at most so many.
        classes: of the generator, 0 if it is unconditional.
        world: every rank calls every method.
    """

    def __init__(self, stream: ShardStream, *, count: int, classes: int, world: World) -> None:
        self.stream, self.world = stream, world
        self.columns = max(1, count // classes) if classes else max(1, round(count**0.5))
        self.count = min(count, self.columns * classes) if classes else count
        order = torch.arange(self.count, device=world.device)
        self.labels = order // self.columns if classes else None

    def of_samples(self, samples: Tensor, judge: nn.Module) -> Sheet:
        """See `Pictures`."""
        return visible(samples), self.columns

    def of_reals(self) -> Sheet:
        """The first images of the shards; `ValueError` if none decodes."""
        found = torch.empty(0, dtype=torch.uint8)
        for batch in self.stream.dataset.batches(self.count, skip_corrupt=True):
            images = visible(batch["image"])
            found = torch.cat([found, images]) if len(found) else images
            if len(found) >= self.count:
                break
        if not len(found):
            raise ValueError(
                f"no sample of {self.stream.dataset.table} decodes: pack the shards again"
            )
        return found[: self.count], self.columns


class Points:
    """Points of the plane, over the field of the discriminator's logits."""

    labels: Tensor | None = None

    def __init__(self, stream: ToyStream, *, count: int, world: World) -> None:
        self.stream, self.count, self.world = stream, count, world

    def of_samples(self, samples: Tensor, judge: nn.Module) -> Sheet:
        """See `Pictures`."""
        return self._sheet(samples, judge)

    def of_reals(self) -> Sheet:
        """As many points of the toy."""
        return self._sheet(self._reals(), None)

    def _reals(self) -> Tensor:
        return next(self.stream.dataset.batches(self.count))["sample"]

    def _sheet(self, samples: Tensor, judge: Callable[..., Tensor] | None) -> Sheet:
        field = None
        if judge is not None:
            device, dtype = self.world.device, self.world.dtype
            with self.world.autocast():
                field = field_of(lambda x: judge(x.to(device, dtype), None), EXTENT)
        picture = draw_samples(
            samples.float().cpu(), extent=EXTENT, real=self._reals(), field=field
        )
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        return pixels.view(1, picture.height, picture.width, 3).permute(0, 3, 1, 2), 1


EXTENT = 1.4
"""Half the side of a picture; points of a toy lie within 1 or a little more."""
