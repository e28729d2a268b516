"""Which moments may be the worst, of lives that can be drawn on a line."""

from dgan.planner.ledger import GRADIENTS, IN_FLIGHT, REST, Allocation
from dgan.planner.moments import worst_moments


def test_the_worst_moment_depends_on_how_much_there_is_of_each() -> None:
    lives = [
        Allocation(50, "weights", 1),
        Allocation(10, REST, 2, 5),  # a forward pass: event 3 has the most activations
        Allocation(8, REST, 3, 4),
        Allocation(30, GRADIENTS, 6, 9),  # a backward pass: event 7 has the most gradients
        Allocation(2, REST, 7, 8),
        Allocation(16, IN_FLIGHT, 9, 10),  # what is worst where no gradients are kept
    ]
    found = [dict(each) for each in worst_moments(lives, 2, 11)]
    assert {"weights": 50, REST: 18} in found
    assert {"weights": 50, GRADIENTS: 30, REST: 2} in found
    assert {"weights": 50, IN_FLIGHT: 16} in found
    assert len(found) == 3
    # Of a window, what was freed before it does not count.
    assert [dict(each) for each in worst_moments(lives, 7, 8)] == [
        {"weights": 50, GRADIENTS: 30, REST: 2}
    ]
