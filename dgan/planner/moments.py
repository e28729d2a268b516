"""Which moments of a rehearsal may be the worst: at other sizes it is not the one that it was."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from dgan.planner.ledger import GRADIENTS, REST, Allocation

SCALES = [2.0**power for power in range(-10, 11)]


def worst_moments(allocations: Iterable[Allocation], start: int, end: int) -> list[Counter[str]]:
    """Bytes by label at the worst moments between two events, without moments that never are.

    Activations grow with the batch, gradients are kept whole or in part or not, what else is held
    stays. With few samples a backward pass is at its worst at its end, when all gradients are
    there; with many at its beginning.
    """
    alive = [a for a in allocations if a.birth <= end and (a.death is None or a.death > start)]
    labels = (REST, GRADIENTS)
    sizes = np.zeros((3, end - start + 1))  # of these and of all else, at each event
    for each in alive:
        row = sizes[labels.index(each.label) if each.label in labels else 2]
        row[max(each.birth - start, 0)] += each.size
        if each.death is not None and each.death <= end:
            row[each.death - start] -= each.size
    activations, gradients, held = sizes.cumsum(axis=1)
    worst = {
        start + int((held + kept * gradients + scale * activations).argmax())
        for kept in (0, 1)
        for scale in SCALES
    }
    return [composition(alive, at) for at in sorted(worst)]


def composition(allocations: Iterable[Allocation], at: int) -> Counter[str]:
    """Bytes by label of what lived at an event."""
    found: Counter[str] = Counter()
    for each in allocations:
        if each.birth <= at and (each.death is None or at < each.death):
            found[each.label] += each.size
    return found
