"""How many updates each player makes in a step, while that adapts."""

import torch

from dgan.schedule import Band, shifted


class Balance:
    """Follows the discriminator's lead; every rank decides alike, for metrics are global.

    Args:
        by: `accuracy` (of pairs), `wasserstein` (the difference of mean logits) or `none`: then the
            ratio stays.
        band: in which the measure is kept.

    Attributes:
        memory: the running mean and the lead, float64 scalars by name: part of a checkpoint.
    """

    def __init__(self, by: str = "none", band: Band | None = None) -> None:
        self.by, self.band = by, band or Band(low=0.6, high=0.9)
        mean = torch.tensor(self.band.middle, dtype=torch.float64)
        self.memory: dict[str, torch.Tensor] = {}
        if self.adapts:
            self.memory = {"balance_mean": mean, "balance_lead": torch.zeros_like(mean)}

    @property
    def adapts(self) -> bool:
        """Whether the ratio may change."""
        return self.by != "none"

    def updates(self, discriminator: int, generator: int) -> tuple[int, int]:
        """Both players' updates in the next step, where they make so many at first."""
        if not self.adapts:
            return discriminator, generator
        return shifted(discriminator, generator, int(self.memory["balance_lead"]))

    def follow(self, metrics: dict[str, float]) -> None:
        """Take in a step, of whose last discriminator update these are the metrics."""
        if not self.adapts:
            return
        measure = metrics["real_logits"] - metrics["fake_logits"]
        if self.by == "accuracy":
            measure = metrics["accuracy"]
        mean, lead = self.memory["balance_mean"], self.memory["balance_lead"]
        now = self.band.follow(mean.item(), int(lead), measure)
        mean.fill_(now[0])
        lead.fill_(now[1])
