"""What a pack was asked and has done: kept while it runs, and beside the shards after it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .aside import written_aside
from .writer import Facts, ShardRecord

_VERSION = 1


@dataclass
class Journal:
    """What was asked, and the shards that are complete.

    Attributes:
        asked: the source and the options that decide what the shards hold.
        classes: names of the classes, by number, where the source has names.
        shards: complete ones, in the order of their completion.
        skipped: what was left out, one line each with the reason.
        replaces: shards that were there before and are to go.
        complete: whether nothing more is to be written.
    """

    asked: Mapping[str, Any]
    classes: tuple[str, ...] = ()
    shards: list[ShardRecord] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    replaces: list[str] = field(default_factory=list)
    complete: bool = False

    def write(self, path: Path) -> None:
        """Writes it to `path`; a reader never sees half of it."""
        content = json.dumps({"version": _VERSION, **asdict(self)}, indent=1)
        with written_aside(path, sync=True) as file:
            file.write(f"{content}\n".encode())

    def of_split(self, split: str) -> list[ShardRecord]:
        """The complete shards of `split`."""
        return [record for record in self.shards if record.split == split]

    def differences(self, asked: Mapping[str, Any]) -> str:
        """In words, how what was asked differs from `asked`; empty if it does not."""
        return "; ".join(
            f"{key} was {self.asked.get(key)!r} and is {asked.get(key)!r}"
            for key in dict.fromkeys((*self.asked, *asked))
            if self.asked.get(key) != asked.get(key)
        )


def read_journal(path: Path) -> Journal | None:
    """The journal at `path`, or None if there is none, or one that means nothing to us."""
    try:
        content = json.loads(path.read_bytes())
        if content.pop("version") != _VERSION:
            return None
        records = [
            ShardRecord(**{**record, "facts": Facts(**record["facts"])})
            for record in content.pop("shards")
        ]
        journal = Journal(shards=records, **content)
        journal.classes = tuple(journal.classes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return journal


def journal_path(folder: Path, split: str) -> Path:
    """Where the journal of the shards of `split` in `folder` is kept once they are complete."""
    return folder / f"{split}.pack.json"


def find_record(shard: Path) -> tuple[ShardRecord, Journal] | None:
    """What the journal beside `shard` says of it, if one does."""
    for path in sorted(shard.parent.glob("*.pack.json")):
        if (journal := read_journal(path)) is not None:
            for record in journal.shards:
                if record.name == shard.name:
                    return record, journal
    return None
