"""Generated images of earlier steps, which the discriminator is shown among new ones."""

import torch
from torch import Tensor

from dgan.draws import Draws
from dgan.objectives.losses import OverRanks, alone


class History:
    """A buffer of generated images (Shrivastava et al. 2017, section 2.3), of one domain.

    The first images fill it. From then on each new one is, half of the time, exchanged for one that
    is kept, as in the published code of CycleGAN. Which, is drawn by (seed, step, row of the global
    batch), and all rows see the buffer as it was before the update: the same on any number of
    ranks and micro-batches. With one row an update that is the published rule; of more, those see
    one another there.

    Args:
        name: of the domain; part of every draw.
        size: images that are kept; 0: none, and nothing is exchanged.
        shape: `(C, H, W)` of an image.
        gather: the rows of all ranks, in order.
        device: of `memory`.
        dtype: of the images.

    Attributes:
        memory: `images` `[size, C, H, W]` and `held`, how many there are, int64: equal on all ranks
            and part of a checkpoint.
    """

    def __init__(
        self,
        name: str,
        *,
        size: int,
        shape: tuple[int, int, int],
        gather: OverRanks = alone,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name, self.size, self.gather = name, size, gather
        self.memory: dict[str, Tensor] = {}
        if size:
            self.memory["images"] = torch.zeros(size, *shape, device=device, dtype=dtype)
            self.memory["held"] = torch.zeros((), dtype=torch.int64, device=device)
        # Of the update under way: which it is, this rank's new images, and where they will stand.
        self._update = (-1, -1)
        self._new: list[Tensor] = []
        self._slots: list[Tensor] = []

    def exchange(self, new: Tensor, draws: Draws) -> Tensor:
        """What the discriminator is to see instead of `new` `[N, C, H, W]`, of a micro-batch."""
        if not self.size:
            return new
        if self._update != (draws.step, draws.update):  # also after one that failed
            self._update, self._new, self._slots = (draws.step, draws.update), [], []
        coin, place = draws.named(f"history {self.name}").uniform(2).unbind(1)
        rows = torch.arange(draws.rows.start, draws.rows.stop, device=new.device)
        images, held = self.memory["images"], self.memory["held"]
        slots = (place * self.size).long().clamp(max=self.size - 1)
        exchanged = (coin > 0.5) & (held == self.size)
        filled = held + rows
        filling = (held < self.size) & (filled < self.size)
        self._new.append(new)
        self._slots.append(torch.where(filling, filled, torch.where(exchanged, slots, -1)))
        return torch.where(exchanged[:, None, None, None], images[slots], new)

    def follow(self) -> None:
        """Take in the new images of the update that is done; every rank calls it."""
        if not self._new:
            return
        new, slots = self.gather(torch.cat(self._new)), self.gather(torch.cat(self._slots))
        images, held = self.memory["images"], self.memory["held"]
        for image, slot in zip(new, slots.tolist()):  # of several in one place, the last row's
            if slot >= 0:
                images[slot].copy_(image)
        held.copy_((held + len(new)).clamp(max=self.size))
        self._new, self._slots = [], []
