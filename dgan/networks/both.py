"""Two networks of a kind as one: what plays with two of them stays a game of two players."""

from torch import Tensor, nn


class Both(nn.Module):
    """Two networks, each with an input of its own, called at once.

    CycleGAN's generators, from `a` to `b` and from `b` to `a`, and its discriminators of `a` and of
    `b` (Zhu et al. 2017). One module is sharded, optimised, averaged and saved as any other; every
    call goes through all of its weights, in the same order.

    Args:
        first: of the first input.
        second: of the other.
    """

    z_dim = 0

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        parts = (first, second)
        self.couples_samples = any(getattr(part, "couples_samples", True) for part in parts)

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return [
            block for part in (self.first, self.second) for block in getattr(part, "blocks", ())
        ]

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, ...]` each → what the first makes of `x`, and the second of `y`."""
        return self.first(x), self.second(y)
