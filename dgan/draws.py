"""Random numbers that depend on what they are for, never on which rank draws them.

A draw is a function of (run seed, purpose, step, row of the global batch). Every rank computes the
rows it needs and no other state exists: a run at another world size, or one that was resumed, sees
the same latents at the same step.
"""

import math
import zlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A NumPy generator for one purpose; equal arguments give equal streams on every machine."""
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(purpose.encode()), *counters]))


def seed_of(seed: int, purpose: str, *counters: int) -> int:
    """A seed of 63 bits for generators that take one number."""
    return int(generator(seed, purpose, *counters).integers(2**63))


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random numbers of one update, for the rows of the global batch that this rank holds.

    `purpose` says whose update it is; `update` tells several updates within a step apart.
    """

    seed: int
    purpose: str
    step: int
    rows: range
    device: torch.device
    dtype: torch.dtype = torch.float32
    update: int = 0

    def normal(self, size: int) -> Tensor:
        """Standard normal `[len(rows), size]`."""
        stream = generator(self.seed, self.purpose, self.step, self.update)
        # Row i is the same however many rows follow it: the stream is read in order.
        table = stream.standard_normal((self.rows.stop, size), dtype=np.float32)
        return torch.from_numpy(table[self.rows.start :]).to(self.device, self.dtype)

    def uniform(self, size: int) -> Tensor:
        """Uniform in [0, 1], `[len(rows), size]`; the numbers of `normal` in another form."""
        return torch.special.ndtr(self.normal(size).double()).to(self.dtype)

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal `[len(rows), *shape]`, made on the device: for numbers of many pixels."""
        return noise_from_seeds(seeds_from_latents(self.normal(4)), 0, shape).to(self.dtype)

    def named(self, name: str) -> "Draws":
        """Other numbers of the same rows, for another purpose within the update."""
        return replace(self, purpose=f"{self.purpose}/{name}")

    def several(self, count: int) -> "Draws":
        """The draws of `count` rows for each of these rows, one row's after another's."""
        return replace(self, rows=range(count * self.rows.start, count * self.rows.stop))

    def part(self, index: int, parts: int) -> "Draws":
        """The draws of micro-batch `index` of `parts` equal ones."""
        size = len(self.rows) // parts
        return replace(self, rows=self.rows[index * size : (index + 1) * size])


def latents(rows: int, size: int, *, seed: int, purpose: str) -> Tensor:
    """Standard normal float32 `[rows, size]`; row i does not depend on how many are asked for."""
    table = np.empty((rows, size), dtype=np.float32)
    for row in range(rows):
        table[row] = generator(seed, purpose, row).standard_normal(size, dtype=np.float32)
    return torch.from_numpy(table)


def truncated(z: Tensor, bound: float) -> Tensor:
    """Standard normal `z` as normal numbers that never leave ±`bound`; 0 makes all of them 0.

    The distribution of BigGAN's truncation trick (Brock et al. 2019, section 3.1), which redraws
    what lies outside. Here each component moves to the same quantile of the truncated normal: one
    latent moves smoothly with the bound, from 0 to where it is without one.
    """
    share = math.erf(bound / math.sqrt(2))
    quantile = torch.erf(z.double() / math.sqrt(2)) * share
    return (torch.erfinv(quantile) * math.sqrt(2)).to(z.dtype)


def seeds_from_latents(z: Tensor) -> Tensor:
    """A seed of 32 bits for each row of `z` `[N, size]`, from its float32 bits alone: int64 `[N]`.

    What a generator draws with it is decided by the latent: the same on every rank and device.
    """
    bits = z.detach().float().contiguous().view(torch.int32).long() & _32_BITS
    odd = 2 * _hashed(torch.arange(z.shape[1], device=z.device)) + 1
    # A sum of integers that wraps does not depend on the order in which a device adds.
    return _hashed((bits * odd).sum(1) & _32_BITS)


def noise_from_seeds(seeds: Tensor, purpose: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 `[N, *shape]` from int64 seeds `[N]`, other numbers for each purpose.

    Equal on every device up to the rounding of its logarithm and cosine.
    """
    count = math.prod(shape)
    keys = _hashed((seeds + purpose * 0x9E3779B9) & _32_BITS)
    counters = _hashed(torch.arange(2 * count, device=seeds.device))
    u, v = _hashed(keys[:, None] ^ counters).float().unflatten(1, (2, count)).unbind(1)
    # Box and Muller 1958; half a step keeps the logarithm finite.
    radius = (-2 * ((u + 0.5) / 2**32).log()).sqrt()
    return (radius * (v * (2 * math.pi / 2**32)).cos()).unflatten(1, shape)


_32_BITS = 0xFFFFFFFF


def _hashed(x: Tensor) -> Tensor:
    """MurmurHash3's finaliser: 32 bits to 32 bits, in int64, whose products may wrap."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B & _32_BITS
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & _32_BITS
    return x ^ (x >> 16)
