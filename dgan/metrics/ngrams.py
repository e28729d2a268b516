"""How often short runs of characters occur, and how far two texts are apart in that."""

import torch
from torch import Tensor

ORDERS = (1, 2, 3, 4)
"""Lengths of the runs."""
LARGEST_ALPHABET = 64
"""Runs of four of so many characters are counted in 134 MB."""


class NgramCounts:
    """Counts of all runs of 1 to 4 characters within samples.

    Args:
        characters: of the alphabet, at most 64.

    Attributes:
        counts: for each order n, int64 `[characters ** n]`, by the runs' codes in base
            `characters`; sums over ranks are exact.
    """

    def __init__(self, characters: int) -> None:
        if not 1 < characters <= LARGEST_ALPHABET:
            raise ValueError(
                f"an alphabet has 2 to {LARGEST_ALPHABET} characters, not {characters}"
            )
        self.characters = characters
        self.counts = {n: torch.zeros(characters**n, dtype=torch.int64) for n in ORDERS}

    def add(self, codes: Tensor) -> None:
        """Count the runs of texts, int64 `[N, L]`; of those shorter than a run there are none."""
        codes = codes.cpu()
        for n, counts in self.counts.items():
            length = codes.shape[1] - n + 1
            if length < 1:
                continue
            runs = torch.zeros_like(codes[:, :length])
            for offset in range(n):
                runs = runs * self.characters + codes[:, offset : offset + length]
            counts += torch.bincount(runs.flatten(), minlength=len(counts))


def jensen_shannon(a: Tensor, b: Tensor) -> float:
    """½ KL(p ‖ m) + ½ KL(q ‖ m) in nats, m = ½ (p + q), of two tables of counts; 0 … ln 2.

    Lin 1991, "Divergence measures based on the Shannon entropy", equation 4.1 with equal weights.
    """
    p, q = (counts.double() / counts.sum() for counts in (a, b))
    m = (p + q) / 2
    parts = [torch.where(x > 0, x * (x / m).log(), 0.0).nan_to_num(0.0).sum() for x in (p, q)]
    return float(sum(parts) / 2)
