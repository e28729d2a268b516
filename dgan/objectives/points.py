"""Where gradient penalties are taken: at the samples, between them, around them.

R1 takes real samples, R2 generated ones (Mescheder et al. 2018). The numbers are the caller's, one
row a sample, so that they can be those of the global batch's rows at every world size.
"""

from torch import Tensor

import dgan_kernels
from dgan.objectives.losses import OverRanks, alone


def between(real: Tensor, fake: Tensor, mix: Tensor, *, backend: str | None = None) -> Tensor:
    """fake + mix · (real − fake), where WGAN-GP takes its penalty.

    Gulrajani et al. 2017, algorithm 1. `real` and `fake` are `[N, ...]`; `mix` `[N]` is uniform
    in [0, 1], one number a pair; `backend` as in `dgan_kernels.interpolate`. Detached.
    """
    mix = mix.to(real.dtype)
    return dgan_kernels.interpolate(real.detach(), fake.detach(), mix, backend=backend)


def around(real: Tensor, uniform: Tensor, spread: Tensor) -> Tensor:
    """x + ½ · spread · uniform, where DRAGAN takes its penalty.

    Kodali et al. 2017, with the perturbation of their published code: `uniform` in
    [0, 1] of the samples' shape, and `spread` the standard deviation of the batch. Detached.
    """
    return real.detach() + 0.5 * spread.to(real.dtype) * uniform.to(real.dtype)


def spread_of(real: Tensor, over_ranks: OverRanks = alone) -> Tensor:
    """The standard deviation of all numbers of the global batch, a scalar, without gradient."""
    x = real.detach()
    centre = over_ranks(x.mean())
    return over_ranks((x - centre).square().mean()).sqrt()
