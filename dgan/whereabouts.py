"""Where the ranks of a run stand, told by small files, which no stuck collective blocks."""

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

SILENCE = 5
"""Times that a rank has not told where it stands, after which something stops the whole process."""

NAMED = 8
"""Ranks that a message names; of a thousand, it says how many more."""


@dataclass(frozen=True)
class Place:
    """Where a rank stands."""

    step: int = 0
    phase: str = "start"
    moves: int = 0
    """How often it has moved. Ranks do the same in the same order: one that has less is behind."""

    def __str__(self) -> str:
        return f"step {self.step}, phase {self.phase!r}"


class Whereabouts:
    """Tells every so often where this rank stands, and knows what the others told.

    Files rather than the process group's store: that one is gone with the rank that hosts it.
    A thread of its own writes them, since a file system too may hang.

    Args:
        folder: on a file system that all ranks see; made when needed, and removed at the end.
        rank: of this process.
        size: number of ranks.
        here: where this process stands.
        every_s: seconds between two files.
    """

    def __init__(
        self, folder: Path, *, rank: int, size: int, here: Callable[[], Place], every_s: float
    ) -> None:
        self.folder = folder
        self.rank, self.size = rank, size
        self.here = here
        self.every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="whereabouts", daemon=True)

    def start(self) -> None:
        """Begin to tell."""
        self._thread.start()

    def stop(self) -> None:
        """Tell no more, and remove what was told."""
        self._ended.set()
        self._thread.join(1.0)
        with suppress(OSError):
            (self.folder / str(self.rank)).unlink(missing_ok=True)
            self.folder.rmdir()  # by the last one

    def held_up_by(self) -> str:
        """Whom the others wait for, in words.

        Raises:
            OSError: the folder cannot be used.
        """
        self.tell()
        told = {rank: self._told(rank) for rank in range(self.size)}
        # By the clock of the file system, which all share.
        _, now = told[self.rank]
        ages = {rank: now - at for rank, (_, at) in told.items()}
        silent = {
            rank: f"{place}, {ages[rank]:.0f} s ago" if place else "never"
            for rank, (place, _) in told.items()
            if place is None or ages[rank] > SILENCE * self.every_s
        }
        if silent:
            return (
                f"{_names(silent)} no longer told where it stands: its process is stopped or dead, "
                "or its node is"
            )
        places = {rank: place for rank, (place, _) in told.items() if place}
        fewest, most = (f(place.moves for place in places.values()) for f in (min, max))
        if fewest == most:
            return (
                "All ranks stand at the same place: the one whose stacks show no exchange with the "
                "others is what they wait for"
            )
        behind = {r: str(place) for r, place in places.items() if place.moves == fewest}
        return f"{_names(behind)} is behind the others, which wait for it"

    def tell(self) -> None:
        """Write where this rank stands."""
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f"{self.rank}.tmp"
        aside.write_text(json.dumps(asdict(self.here())))
        aside.replace(self.folder / str(self.rank))

    def _go_on(self) -> None:
        while True:
            # A disk may be full for a while, and another rank may just remove the folder.
            with suppress(OSError):
                self.tell()
            if self._ended.wait(self.every_s):
                return

    def _told(self, rank: int) -> tuple[Place | None, float]:
        """What `rank` told last, and when."""
        path = self.folder / str(rank)
        try:
            return Place(**json.loads(path.read_text())), path.stat().st_mtime
        except FileNotFoundError:
            return None, 0.0


def _names(places: dict[int, str]) -> str:
    named = [f"rank {rank} ({place})" for rank, place in [*places.items()][:NAMED]]
    more = [f"{len(places) - NAMED} more"] if len(places) > NAMED else []
    text = ", ".join(named + more)
    return text[0].upper() + text[1:]
