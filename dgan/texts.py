"""What a person reads of generated text, and how it is scored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dgan.data import ShardStream
from dgan.data.aside import write_aside
from dgan.data.text import TextDataset, text_of
from dgan.metrics.ngrams import ORDERS, NgramCounts, jensen_shannon
from dgan.parallel.world import World
from dgan.pictures import Images, Sheet
from dgan.rounds import rounds


class Texts(Images):
    """One picture of the texts, a line each, and beside it a `.txt` of the same.

    Args: as `Images`, and
        alphabet: of the texts.
    """

    def __init__(self, stream: ShardStream, *, alphabet: str, **options: Any) -> None:
        super().__init__(stream, **options)
        self.alphabet = alphabet

    def sheet(self, samples: Tensor) -> Sheet:
        """See `Images`."""
        lines = text_of(samples, self.alphabet)
        return Sheet(drawn(lines), 1, lambda path: save_text(lines, path.with_suffix(".txt")))


def drawn(lines: list[str]) -> Tensor:
    """Black on white: uint8 `[1, 1, H, W]`."""
    text, font = "\n".join(lines), ImageFont.load_default()
    box = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=font)
    picture = Image.new("L", (int(box[2]) + 8, int(box[3]) + 8), 255)
    ImageDraw.Draw(picture).multiline_text((4, 4), text, fill=0, font=font)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(1, 1, picture.height, picture.width)


def save_text(lines: list[str], path: Path) -> None:
    """Write a line each, whole or not at all."""
    write_aside(path, "".join(f"{line}\n" for line in lines))


class TextEvaluator:
    """How far apart the runs of characters of generated and of real text are.

    Args:
        dataset: the real text; all of it is counted, evaluation's part of each sample.
        samples: generated texts.
        classes: of the generator, which take turns; 0: it is unconditional.
        batch_size: texts over all ranks that are in flight together.
        seed: of the latents.
        world: every rank calls every method.
        shards: what the data set is called in every output.
    """

    scores = frozenset(f"js_{n}" for n in ORDERS)
    """The names, of `dgan.scores.SCORES`, of what a call gives."""

    def __init__(
        self,
        dataset: TextDataset,
        *,
        samples: int,
        classes: int,
        batch_size: int,
        seed: int,
        world: World,
        shards: str = "",
    ) -> None:
        self.samples, self.classes, self.batch_size = samples, classes, batch_size
        self.seed, self.world = seed, world
        real, part = NgramCounts(dataset.channels), {"rank": world.rank, "world_size": world.size}
        for batch in dataset.batches(batch_size, **part, skip_corrupt=True):
            if len(batch["__key__"]):
                real.add(batch["image"].argmax(1))
        self._real = self._over_ranks(real)
        self._facts = {"shards": shards, "samples": samples, "real_samples": len(dataset)}

    def __call__(self, generator: Callable[..., Tensor], z_dim: int) -> dict[str, Any]:
        """Scores of `generator`: latents `[N, z_dim]` and labels or None → `[N, V, L]`.

        Of a text the most probable characters count.

        Returns:
            `js_1` to `js_4`, Jensen–Shannon divergences of runs of so many characters, in nats;
            beside them what they were computed with.
        """
        made = NgramCounts(round(len(self._real[1])))
        for turn in rounds(self.samples, self.batch_size, seed=self.seed, world=self.world):
            labels = None
            if self.classes:
                labels = torch.arange(len(turn.rows), device=self.world.device)
                labels = (labels + turn.first) % self.classes
            with self.world.autocast():
                texts = generator(turn.draws.normal(z_dim), labels)
            if turn.wanted:
                made.add(texts[: turn.wanted].argmax(1))
        found = self._over_ranks(made)
        scores = {f"js_{n}": jensen_shannon(self._real[n], found[n]) for n in ORDERS}
        return scores | self._facts

    def _over_ranks(self, counts: NgramCounts) -> dict[int, Tensor]:
        device = self.world.device
        return {n: self.world.total(part.to(device)).cpu() for n, part in counts.counts.items()}
