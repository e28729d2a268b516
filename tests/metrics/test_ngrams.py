"""Runs of characters against counting by hand, divergences against scipy's."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from dgan.metrics.ngrams import ORDERS, NgramCounts, jensen_shannon


def counted(codes: torch.Tensor, characters: int, n: int) -> torch.Tensor:
    runs = Counter(tuple(row[i : i + n]) for row in codes.tolist() for i in range(len(row) - n + 1))
    table = torch.zeros((characters,) * n, dtype=torch.int64)
    for run, times in runs.items():
        table[run] = times
    return table.flatten()


def test_counts_and_divergences() -> None:
    draw = torch.Generator().manual_seed(0)
    texts = [torch.randint(top, (6, 9), generator=draw) for top in (5, 3)]
    tables = []
    for codes in texts:
        found = NgramCounts(5)
        found.add(codes[:2])
        found.add(codes[2:])
        tables.append(found.counts)
        for n in ORDERS:
            assert torch.equal(found.counts[n], counted(codes, 5, n))
    for n in ORDERS:
        a, b = (table[n].numpy() for table in tables)
        wanted = jensenshannon(a, b) ** 2  # which takes the root, in nats
        assert jensen_shannon(*(table[n] for table in tables)) == pytest.approx(wanted, rel=1e-12)
    assert jensen_shannon(tables[0][2], 3 * tables[0][2]) == 0
    apart = torch.tensor([3, 0]), torch.tensor([0, 2])
    assert jensen_shannon(*apart) == pytest.approx(math.log(2), rel=1e-15)


def test_texts_shorter_than_a_run_have_none() -> None:
    found = NgramCounts(3)
    found.add(torch.tensor([[0, 2, 1]]))
    assert [int(found.counts[n].sum()) for n in ORDERS] == [3, 2, 1, 0]
    assert np.flatnonzero(found.counts[3].numpy()).tolist() == [0 * 9 + 2 * 3 + 1]


def test_too_large_an_alphabet_is_refused() -> None:
    with pytest.raises(ValueError, match="2 to 64 characters, not 65"):
        NgramCounts(65)
