"""The sizes that operators are measured at."""

from collections.abc import Iterator

FEW = ((1, 512, 32, 32), (4, 64, 16, 16))
"""So small that starting a kernel takes longer than running it."""


def discriminator() -> Iterator[tuple[int, ...]]:
    """The layers of a discriminator, 134 MB each in 16 bits: beyond every cache."""
    for channels, side in ((1024, 8), (512, 32), (256, 64), (128, 128), (64, 256), (32, 512)):
        yield 2**26 // (channels * side**2), channels, side, side
