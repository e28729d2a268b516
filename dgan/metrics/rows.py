"""Feature vectors that metrics need one by one, in an order that does not depend on the ranks."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from dgan.metrics.reduction import all_rows, gather_rows

BLOCK_BYTES = 2**27
"""Of float64 values that are compared at once."""


class FeatureRows:
    """Feature vectors of this rank, and the place of each among those of all ranks.

    They stay on the CPU, float32, until they are gathered: 4·D bytes a sample over all ranks
    together; 50,000 samples of 2,048 features are 410 MB.
    """

    def __init__(self) -> None:
        self._features: list[Tensor] = []
        self._places: list[Tensor] = []
        self._labels: list[Tensor] = []

    def add(self, features: Tensor, begin: int, labels: Tensor | None = None) -> None:
        """Add vectors `[n, D]` of places `begin`, `begin + 1`, …, and perhaps their classes."""
        n = len(features)
        self._features.append(features.detach().float().cpu())
        self._places.append(torch.arange(begin, begin + n))
        self._labels.append(torch.full((n,), -1) if labels is None else labels.cpu())

    @property
    def features(self) -> Tensor:
        """This rank's, float32 `[n, D]`; `[0, 0]` if there are none."""
        return torch.cat(self._features) if self._features else torch.zeros(0, 0)

    @property
    def labels(self) -> Tensor:
        """Their classes, int64 `[n]`; −1 where there is none."""
        return torch.cat(self._labels) if self._labels else torch.zeros(0, dtype=torch.int64)

    def gather(
        self, at_most: int | None = None, *, seed: int = 0, group: dist.ProcessGroup | None = None
    ) -> Tensor:
        """All ranks' vectors by place, float32 `[N, D]`, on every rank; a collective call.

        Args:
            at_most: of more, this many are chosen at random, the same at any number of ranks.
            seed: of the choice.
            group: of the ranks.
        """
        features = self.features
        places = torch.cat(self._places) if self._places else torch.zeros(0, dtype=torch.int64)
        total = sum(count for (count,) in all_rows([len(places)], group))
        if at_most is not None and at_most < total:
            known = gather_rows(places[:, None], group)[:, 0].sort().values
            random = torch.Generator().manual_seed(seed)
            chosen = torch.isin(places, known[torch.randperm(total, generator=random)[:at_most]])
            features, places = features[chosen], places[chosen]
        order = gather_rows(places[:, None], group)[:, 0].argsort()
        return gather_rows(features, group)[order]


def require_rows(x: Tensor, name: str, least: int, dimension: int | None = None) -> None:
    """Raise `ValueError` unless `x` is `[N ≥ least, dimension]`, floating and finite."""
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"{name} features are {x.dtype} {list(x.shape)}; expected floating [N, D]")
    if len(x) < least:
        raise ValueError(f"{len(x)} {name} samples; at least {least} are needed")
    if dimension not in (None, x.shape[1]):
        raise ValueError(f"{name} features have {x.shape[1]} dimensions, the others {dimension}")
    if invalid := int((~x.isfinite().all(dim=1)).sum()):
        raise ValueError(f"{invalid} of {len(x)} {name} samples have NaN or infinite features")


def blocks(rows: range, columns: int) -> Iterator[slice]:
    """`rows` in slices, each of which against `columns` takes `BLOCK_BYTES` in float64 or less."""
    step = max(1, BLOCK_BYTES // (8 * max(1, columns)))
    for begin in range(rows.start, rows.stop, step):
        yield slice(begin, min(begin + step, rows.stop))
