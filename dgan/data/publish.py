"""Shards that are complete: where they appear, and what they replace."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .index import sidecar_path
from .journal import Journal, read_journal


def existing_shards(out: Path, split: str) -> list[Path]:
    """The shards of `split` in `out`, sorted; none if there is no such folder."""
    name = re.compile(rf"{re.escape(split)}-\d+\.tar")
    return sorted(path for path in out.glob("*.tar") if name.fullmatch(path.name))


def publish(journal: Journal, written: Path, out: Path, final: Path) -> None:
    """Moves the shards of `journal` and itself (`written`) to `out` and `final`, for old ones.

    A publication that was cut off can be repeated.
    """
    aside = written.parent
    names = {record.name for record in journal.shards}
    for record in journal.shards:
        # A publication that was cut off has moved some already.
        if (source := aside / record.name).exists():
            os.replace(source, out / record.name)
        if (index := sidecar_path(source)).exists():
            os.replace(index, out / index.name)
    for name in set(journal.replaces) - names:
        (out / name).unlink(missing_ok=True)
        sidecar_path(out / name).unlink(missing_ok=True)
    for path in out.glob("*.pack.json"):
        other = read_journal(path)
        if path != final and other and names & {record.name for record in other.shards}:
            path.unlink()  # it speaks of shards that are no more
    os.replace(written, final)
    folder = os.open(out, os.O_RDONLY)
    try:
        os.fsync(folder)  # the names, too, must survive a power cut
    finally:
        os.close(folder)


def all_there(out: Path, journal: Journal) -> bool:
    """Whether the shards of `journal` are in `out`, as long as they were written."""
    paths = [(out / record.name, record.bytes) for record in journal.shards]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)
