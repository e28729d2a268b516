"""What a person sees of samples while a generator trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dgan.data import ShardDataset, ShardStream
from dgan.data.conditions import ConditionedDataset
from dgan.data.toy import ToyStream
from dgan.data.unpaired import UnpairedDataset
from dgan.draws import Draws
from dgan.laboratory.picture import draw_samples, field_of
from dgan.parallel.world import World
from dgan.step import prepare
from dgan.visible import to_uint8, visible


class Sheet(NamedTuple):
    """What samples look like, and may be heard as.

    Attributes:
        images: uint8 `[K, C, H, W]`.
        columns: how many of them stand in a row.
        more: writes more of the same samples beside the PNG, whose path it is given.
    """

    images: Tensor
    columns: int
    more: Callable[[Path], object] = lambda path: None


class Pictures(Protocol):
    """How samples of one kind are shown.

    Attributes:
        world: every rank calls every method, and makes all samples: a sharded network needs every
            rank in every call.
    """

    world: World

    def of_samples(self, generator: nn.Module, judge: nn.Module) -> Sheet:
        """What the generator makes, of latents or of images that stay the same through a run.

        `judge` is the discriminator, whose word may be shown beside it.
        """
        ...

    def of_reals(self) -> Sheet:
        """As much of the data."""
        ...


def latents(count: int, z_dim: int, seed: int, world: World) -> Tensor:
    """Those of the pictures, `[count, z_dim]`."""
    return Draws(
        seed=seed,
        purpose="grid",
        step=0,
        rows=range(count),
        device=world.device,
        dtype=world.dtype,
    ).normal(z_dim)


class Images:
    """Images side by side; of a conditional generator a row a class.

    Where images have vectors in the place of a class, those of the first real ones are given: the
    sheet shows what is made of them in the order of the real ones.

    Args:
        stream: the real ones.
        count: at most so many.
        classes: of the generator, 0 if it has none.
        z_dim: size of its latents.
        seed: of the latents.
        world: every rank calls every method.
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
    ) -> None:
        self.stream, self.world = stream, world
        self.columns = max(1, count // classes) if classes else max(1, round(count**0.5))
        self.count = min(count, self.columns * classes) if classes else count
        order = torch.arange(self.count, device=world.device)
        self.labels = order // self.columns if classes else None
        if isinstance(stream.dataset, ConditionedDataset):
            self.count = min(count, len(stream.dataset))
            given = stream.dataset.conditions(range(self.count))
            self.labels = given.to(world.device, world.dtype)
        self.latents = latents(self.count, z_dim, seed, world)

    def of_samples(self, generator: nn.Module, judge: nn.Module) -> Sheet:
        """See `Pictures`."""
        with self.world.autocast():
            return self.sheet(generator(self.latents, self.labels))

    def of_reals(self) -> Sheet:
        """The first samples of the shards; `ValueError` if none decodes."""
        return self.sheet(self._reals())

    def sheet(self, samples: Tensor) -> Sheet:
        """How samples of this kind, generated or real, are shown."""
        return Sheet(visible(samples), self.columns)

    def _reals(self) -> Tensor:
        found = torch.empty(0)
        for batch in self.stream.dataset.batches(self.count, skip_corrupt=True):
            found = torch.cat([found, batch["image"]]) if len(found) else batch["image"]
            if len(found) >= self.count:
                break
        if not len(found):
            raise ValueError(
                f"no sample of {self.stream.dataset.table} decodes: pack the shards again"
            )
        return found[: self.count]


class Pairs:
    """Source, what is made of it, and target: side by side.

    Args:
        dataset: the first pairs of it are shown; read at once.
        source: which image of a pair is translated.
        count: at most so many pairs.
        z_dim: size of the generator's latents.
        seed: of the latents.
        world: every rank calls every method.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        *,
        source: str,
        count: int,
        z_dim: int,
        seed: int,
        world: World,
    ) -> None:
        batch = _first(dataset, count, world)
        self.world = world
        self.source, self.target = batch[source], batch["b" if source == "a" else "a"]
        self.latents = latents(len(self.source), z_dim, seed, world)

    def of_samples(self, generator: nn.Module, judge: nn.Module) -> Sheet:
        """See `Pictures`."""
        with self.world.autocast():
            made = generator(self.source, self.latents)
        return _in_rows(self.source, made, self.target)

    def of_reals(self) -> Sheet:
        """The pairs without what is made."""
        return _in_rows(self.source, self.target)


class Cycles:
    """Images of both kinds, what is made of each, and what is made of that: side by side.

    Args:
        dataset: the first images of both are shown; read at once.
        count: at most so many of each.
        world: every rank calls every method.
    """

    def __init__(self, dataset: UnpairedDataset, *, count: int, world: World) -> None:
        batch = _first(dataset, count, world)
        self.world = world
        self.a, self.b = batch["a"], batch["b"]

    def of_samples(self, generator: nn.Module, judge: nn.Module) -> Sheet:
        """See `Pictures`."""
        with self.world.autocast():
            to_b, to_a = generator(self.a, self.b)
            again_b, again_a = generator(to_a.to(self.a.dtype), to_b.to(self.b.dtype))
        return _in_rows(self.a, to_b, again_a, self.b, to_a, again_b)

    def of_reals(self) -> Sheet:
        """The images themselves."""
        return _in_rows(self.a, self.b)


def _first(dataset: ShardDataset | UnpairedDataset, count: int, world: World) -> dict[str, Any]:
    """The first batch, prepared for the networks; `ValueError` if nothing of it decodes."""
    batch = next(dataset.batches(count, skip_corrupt=True))
    if not batch["__key__"]:
        raise ValueError(f"of {dataset} the first {count} samples do not decode: pack it again")
    return prepare(batch, world)


def _in_rows(*columns: Tensor) -> Sheet:
    """Images that belong together beside one another, several times in a row if there are many."""
    images = torch.stack([to_uint8(column) for column in columns], 1).flatten(0, 1)
    times = max(1, round((len(columns[0]) / len(columns)) ** 0.5))
    return Sheet(images, times * len(columns))


class Points:
    """Points of the plane, over the field of the discriminator's logits."""

    def __init__(
        self, stream: ToyStream, *, count: int, z_dim: int, seed: int, world: World
    ) -> None:
        self.stream, self.count, self.world = stream, count, world
        self.latents = latents(count, z_dim, seed, world)

    def of_samples(self, generator: nn.Module, judge: nn.Module) -> Sheet:
        """See `Pictures`."""
        with self.world.autocast():
            samples = generator(self.latents, None)
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
        return Sheet(pixels.view(1, picture.height, picture.width, 3).permute(0, 3, 1, 2), 1)


EXTENT = 1.4
"""Half the side of a picture; points of a toy lie within 1 or a little more."""
