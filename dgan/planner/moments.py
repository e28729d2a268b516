"""Which moments of a rehearsal may be the worst: at other sizes it is not the one that it was."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from dgan.planner.ledger import REST, Allocation

SCALES = [2.0**power for power in range(-10, 11)]


def worst_moments(allocations: Iterable[Allocation], start: int, end: int) -> list[Counter[str]]:
    """Bytes by label at the worst moments between two events, without moments that never are.

    Activations grow with the batch, what is held does not. With few samples a backward pass is at
    its worst at its end, when all gradients are there; with many at its beginning.
    """
    alive = [a for a in allocations if a.birth <= end and (a.death is None or a.death > start)]
    sizes = np.zeros((2, end - start + 1))  # of all but activations, and of these; at each event
    for each in alive:
        row = sizes[int(each.label == REST)]
        row[max(each.birth - start, 0)] += each.size
        if each.death is not None and each.death <= end:
            row[each.death - start] -= each.size
    held, activations = sizes.cumsum(axis=1)
    worst = {start + int((held + scale * activations).argmax()) for scale in SCALES}
    return [composition(alive, at) for at in sorted(worst)]


def composition(allocations: Iterable[Allocation], at: int) -> Counter[str]:
    """Bytes by label of what lived at an event."""
    found: Counter[str] = Counter()
    for each in allocations:
        if each.birth <= at and (each.death is None or at < each.death):
            found[each.label] += each.size
    return found
