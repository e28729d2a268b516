"""What all ranks together leave out because it does not decode: said, counted and limited."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from dgan.data.errors import REASONS
from dgan.data.skips import SkipLimit
from dgan.opening import Stream
from dgan.parallel.world import World


class Skips:
    """Counts since the run began, the same on every rank.

    Args:
        stream: this rank's.
        world: the ranks, all of which ask at the same steps.
        max_skipped: as `SkipLimit` has it, over all ranks.
        say: is told each sample.
    """

    def __init__(
        self, stream: Stream, world: World, max_skipped: float, say: Callable[[str], None]
    ) -> None:
        self._stream, self._world, self._say = stream, world, say
        self._reasons: Counter[str] = Counter()
        self._told: Counter[str] = Counter()  # of what the stream counted
        self._limit = SkipLimit(stream.num_samples, max_skipped)

    def collect(self) -> dict[str, float]:
        """What was skipped so far, in all and by reason, as metrics.

        Raises:
            dgan.data.errors.DecodeError: if it is too much; on every rank, in the same step.
        """
        stream = self._stream
        new, latest = stream.skipped - self._told, []
        self._told += new
        reports = self._world.gather((stream.drain_skipped(), new))
        for rank, (skipped, counts) in enumerate(reports):
            self._reasons.update(counts)
            latest += skipped
            for shard, key, reason in skipped:
                self._say(f"skipped sample {key} of {shard} on rank {rank}: {reason}")
        self._limit.check(self._reasons.total(), stream.position, latest)
        return self.metrics()

    def metrics(self) -> dict[str, float]:
        """The counts under their names: those of reasons are few, as each becomes a curve."""
        counts = {"data/skipped": float(self._reasons.total())}
        for reason, count in sorted(self._reasons.items()):
            short = reason if reason in REASONS else "unreachable"
            name = f"data/skipped/{short.replace(' ', '_')}"
            counts[name] = counts.get(name, 0.0) + count
        return counts

    def state_dict(self) -> dict[str, Any]:
        """What it takes to go on counting, after `collect` at the same step."""
        return {"reasons": dict(self._reasons), "before": self._limit.before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken; the stream stands there already."""
        self._reasons = Counter(state.get("reasons", {}))
        self._limit.restart(state.get("before", 0), self._stream.position)
