"""Items → shards: written aside, each complete or absent; a pack that was cut off goes on."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .encode import KEEP, Encoder, Failure
from .items import Item
from .journal import Journal, journal_path, read_journal
from .publish import all_there, existing_shards, publish
from .splits import Splits
from .workers import ordered_map
from .writer import Facts, Limits, SplitWriter, chain_keys

_LOCK = "lock"
_JOURNAL = "journal.json"


@dataclass(frozen=True)
class PackSummary:
    """What a pack wrote.

    Attributes:
        samples: how many.
        shards: the tars, in order.
        classes: the largest label and one; 0 without labels.
        resolution: height of the (first) pictures; 0 without pictures.
        width: width of the (first) pictures; 0 without pictures.
        channels: 3 if any of them has colour, else 1; 0 without pictures.
        skipped: what was left out, one line each with the reason.
        splits: of each split its samples.
        kept: shards that an earlier run of the same pack had completed.
    """

    samples: int
    shards: tuple[Path, ...]
    classes: int
    resolution: int
    width: int
    channels: int
    skipped: tuple[str, ...] = ()
    splits: Mapping[str, int] = field(default_factory=dict)
    kept: int = 0


@dataclass(frozen=True)
class Job:
    """How items become shards.

    Attributes:
        splits: which split a sample belongs to.
        limits: when a shard is full.
        encoder: makes samples of items.
        limit: stop after that many samples; None: never.
        skip_corrupt: leave out what cannot be packed, instead of stopping at it.
        workers: threads that read and encode.
        asked: the source and the options, as plain JSON: a pack that was cut off goes on only if
            they are the same. None: it never does.

    Raises:
        ValueError: if `limit` is less than 1.
    """

    splits: Splits
    limits: Limits
    encoder: Encoder
    limit: int | None = None
    skip_corrupt: bool = False
    workers: int = 1
    asked: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}")

    @property
    def name(self) -> str:
        """Of the splits together: of the journal and the folder for what is unfinished."""
        return "-".join(self.splits.names)


def pack_items(
    items: Iterable[Item],
    out: Path,
    job: Job,
    *,
    classes: tuple[str, ...] = (),
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> PackSummary:
    """Packs `items` into `out/<split>-000000.tar`, …; the same items give the same bytes.

    The shards appear in `out` once all of them are complete, so that a pack that was cut off never
    looks like a small data set. Until then they lie in `out/.packing-<split>`, and the same pack
    asked for again goes on after the complete ones.

    Args:
        items: what to pack, in a fixed order; read once.
        out: the folder, made if need be.
        job: how.
        classes: names of the classes, kept in the journal.
        overwrite: replace the shards of these splits that `out` already has.
        progress: called with the number of samples written so far.

    Raises:
        FileExistsError: if `out` has other shards of these splits and `overwrite` is False.
        ValueError: if an item cannot be packed (and `skip_corrupt` is False), samples do not fit
            together, there is none, or `out` holds an unfinished pack of something else.
    """
    final = journal_path(out, job.name)
    done = read_journal(final)
    same = done is not None and job.asked is not None and not done.differences(job.asked)
    if done and same and not overwrite and all_there(out, done):
        return _summary(done, out, kept=len(done.shards))
    aside = out / f".packing-{job.name}"
    with _locked(aside):
        journal, kept, published = _unfinished(aside, job, overwrite), 0, False
        try:
            if journal is None:
                old = _refuse_old(out, job, done, overwrite)
                journal = Journal(job.asked or {}, classes, replaces=[path.name for path in old])
            kept = len(journal.shards)
            if not journal.complete:
                _write(items, aside, job, journal, progress)
            publish(journal, aside / _JOURNAL, out, final)
            published = True
            return _summary(journal, out, kept=kept)
        finally:
            # Only what can be gone on with is worth its room.
            if published or job.asked is None or journal is None or not journal.shards:
                shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _locked(aside: Path) -> Iterator[None]:
    """Makes the folder `aside`, and keeps other packs out of it."""
    aside.mkdir(parents=True, exist_ok=True)
    with (aside / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another pack is writing to {aside.parent}: wait for it") from None
        yield


def _refuse_old(out: Path, job: Job, done: Journal | None, overwrite: bool) -> list[Path]:
    """The shards that the new ones will replace; raises unless that is asked for."""
    old = [path for split in job.splits.names for path in existing_shards(out, split)]
    if old and not overwrite:
        why = done.differences(job.asked) if done and job.asked is not None else ""
        raise FileExistsError(
            f"{out} already has {len(old)} shards of {job.name!r}, the first is {old[0].name}"
            + (f" (packed when {why})" if why else "")
            + "; pack into another folder, or ask to overwrite"
        )
    return old


def _unfinished(aside: Path, job: Job, overwrite: bool) -> Journal | None:
    """The journal of the pack to go on with; None, and `aside` is empty, if there is none."""
    journal = read_journal(aside / _JOURNAL)
    if journal is not None and job.asked is not None:
        different = journal.differences(job.asked)
        if different and not overwrite:
            raise ValueError(
                f"{aside} holds an unfinished pack of something else ({different}): finish it with "
                "the command that began it, or throw it away with --overwrite"
            )
        if not different:
            known = {record.name for record in journal.shards}
            for path in aside.glob("*.tar"):
                if path.name not in known:  # complete, but not yet in the journal
                    path.unlink()
            return journal
    for path in aside.iterdir():
        if path.name != _LOCK:
            path.unlink()
    return None


def _write(
    items: Iterable[Item], aside: Path, job: Job, journal: Journal, progress: Callable[[int], None]
) -> None:
    """Writes what `journal` lacks, a shard at a time, and completes it."""
    facts = Facts()
    for record in journal.shards:
        facts.merge(record.facts)
    writers = {
        split: SplitWriter(aside, split, job.limits, journal.of_split(split))
        for split in job.splits.names
    }
    packed_items = ordered_map(
        lambda item: (item.key, job.encoder(item)), _remaining(items, job, journal), job.workers
    )
    any_size = job.encoder.encoding == KEEP
    progress(facts.samples)
    try:
        for key, packed in packed_items:
            if facts.samples == job.limit:
                break
            writer = writers[job.splits.of(key)]
            if isinstance(packed, Failure):
                _leave_out(packed, job, journal)
                writer.pass_over(key)
                continue
            facts.add(packed, any_size=any_size)
            if record := writer.add(packed, any_size=any_size):
                journal.shards.append(record)
                journal.write(aside / _JOURNAL)
            progress(facts.samples)
        journal.shards += [record for w in writers.values() if (record := w.close())]
    finally:
        packed_items.close()
        for writer in writers.values():
            writer.abandon()
    if not facts.samples:
        raise ValueError("there is no sample to pack")
    journal.complete = True
    journal.write(aside / _JOURNAL)


def _leave_out(failure: Failure, job: Job, journal: Journal) -> None:
    line = f"{failure.name}: {failure.error}"
    if not job.skip_corrupt:
        raise ValueError(f"{line}; --skip-corrupt would leave it out") from failure.error
    if line not in journal.skipped:
        journal.skipped.append(line)


def _remaining(items: Iterable[Item], job: Job, journal: Journal) -> Iterator[Item]:
    """The items that no complete shard has taken.

    Raises:
        ValueError: if those that were taken are not the same any more.
    """
    last = {record.split: record for record in journal.shards}
    passed = {split: (0, "") for split in last}
    for item in items:
        split = job.splits.of(item.key)
        if (record := last.get(split)) is None:
            yield item
            continue
        count, keys = passed[split][0] + 1, chain_keys(passed[split][1], item.key)
        passed[split] = count, keys
        if count == record.taken:
            if keys != record.keys:
                raise _changed(journal)
            del last[split]
    if last:
        raise _changed(journal)


def _changed(journal: Journal) -> ValueError:
    return ValueError(
        f"{journal.asked.get('source')} has changed since this pack was begun: other samples were "
        "packed first; begin anew with --overwrite"
    )


def _summary(journal: Journal, out: Path, kept: int) -> PackSummary:
    facts, splits = Facts(), dict[str, int]()
    for record in journal.shards:
        facts.merge(record.facts)
        splits[record.split] = splits.get(record.split, 0) + record.facts.samples
    width, height = next(iter(facts.sizes.values()), [0, 0])
    return PackSummary(
        facts.samples,
        tuple(out / record.name for record in journal.shards),
        facts.classes,
        height,
        width,
        facts.channels,
        tuple(journal.skipped),
        splits,
        kept,
    )
