"""Checkpoints that were damaged on the disk, or made to do harm."""

import io
import json
import os
import pickle
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from commands import checkpoint_of
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from broken import BrokenRun
from dgan.parallel.storage import DIGESTS, digest_of
from evidence import Try, attempts, check_equal, check_whole
from watched import EVERY

STEPS = 30
BROKEN_AT = 20
FILES = (".metadata", "__0_0.distcp", "facts.json", DIGESTS)


def damaged(
    broken: BrokenRun, undisturbed: BrokenRun, choose: Random, at: Sequence[int]
) -> list[Try]:
    """Files of the newest checkpoint are flipped, cut, emptied or gone; or of the newest two."""
    return [_damaged(part, undisturbed, choose) for part in _copies(broken, undisturbed, len(at))]


def _damaged(broken: BrokenRun, undisturbed: BrokenRun, choose: Random) -> Try:
    bad, names = choose.choice([1, 1, 2]), []
    for number in range(bad):
        path = checkpoint_of(broken.run, BROKEN_AT - number * EVERY)
        while not names[number:]:
            name, kind = choose.choice(FILES), choose.choice(sorted(DAMAGE))
            before = (path / name).read_bytes()
            DAMAGE[kind](path / name, choose)
            if name == DIGESTS and _same_json(path / name, before):
                (path / name).write_bytes(before)  # another blank is no damage
                continue
            names.append(f"{name}: {kind}")
    return _goes_back(broken, undisturbed, bad, ", ".join(names))


def _goes_back(broken: BrokenRun, undisturbed: BrokenRun, bad: int, note: str) -> Try:
    """Train on, over so many bad checkpoints: each is reported, kept aside, and made again."""
    begin = time.time()
    job = broken.single()
    assert job.end() == [0], job.said()[-4000:]
    text = (broken.run / "log.txt").read_text()
    for number in range(bad):
        path = checkpoint_of(broken.run, BROKEN_AT - number * EVERY)
        told = re.search(rf"warning: {path} (is damaged|cannot be read): .+ going back", text)
        assert told, f"no word of {path.name}"
        assert path.with_name(f"damaged-{path.name}").is_dir(), "the damaged one is not kept"
    check_whole(broken, STEPS)
    check_equal(broken, undisturbed, STEPS)
    (*_, last) = attempts(broken).values()
    good = BROKEN_AT - bad * EVERY
    assert last.first == good, f"it went on from {last.first}, {good} was good"
    return Try(True, BROKEN_AT - good, *last.goes_on(begin), note)


def _copies(broken: BrokenRun, undisturbed: BrokenRun, tries: int) -> list[BrokenRun]:
    """Runs of their own that were stopped at step `BROKEN_AT` of the undisturbed one."""
    found = []
    for number in range(tries):
        part = BrokenRun(broken.folder / str(number), broken.shards, broken.options, broken.recipe)
        shutil.copytree(undisturbed.run, part.run)
        shutil.copytree(undisturbed.folder / "notes", part.folder / "notes", dirs_exist_ok=True)
        part.launches = undisturbed.launches
        for path in (part.run / "checkpoints").glob("step-*"):
            if int(path.name[5:]) > BROKEN_AT:
                shutil.rmtree(path)
        found.append(part)
    return found


def _flip(path: Path, choose: Random) -> None:
    content = bytearray(path.read_bytes())
    content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
    path.write_bytes(content)


def _zeros(path: Path, choose: Random) -> None:
    """The last block, as after a crash of the machine."""
    content = path.read_bytes()
    path.write_bytes(content[:-512] + bytes(len(content[-512:])))


DAMAGE: dict[str, Callable[[Path, Random], Any]] = {
    "a bit": _flip,
    "torn": lambda path, choose: os.truncate(path, choose.randrange(path.stat().st_size)),
    "zeros": _zeros,
    "missing": lambda path, choose: path.unlink(),
}


def _same_json(path: Path, before: bytes) -> bool:
    try:
        return json.loads(path.read_bytes()) == json.loads(before)
    except (OSError, ValueError):
        return False


class Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def harmful(
    broken: BrokenRun, undisturbed: BrokenRun, choose: Random, at: Sequence[int]
) -> list[Try]:
    """The newest checkpoint executes code where pickle is trusted; its digests are right."""
    found = []
    for part in _copies(broken, undisturbed, len(at)):
        kind = choose.choice(sorted(HARM))
        path, canary = checkpoint_of(part.run, BROKEN_AT), part.folder / "canary"
        HARM[kind](path, canary, choose)
        names = [file.name for file in path.iterdir() if file.name != DIGESTS]
        (path / DIGESTS).write_text(json.dumps({name: digest_of(path / name) for name in names}))
        found.append(_goes_back(part, undisturbed, 1, kind))
        assert not canary.exists(), "the checkpoint executed code"
    return found


def _harmful_metadata(path: Path, canary: Path, choose: Random) -> None:
    (path / ".metadata").write_bytes(pickle.dumps(Harm(canary)))


def _harm_inside(path: Path, canary: Path, choose: Random) -> None:
    metadata = dcp.FileSystemReader(path).read_metadata()
    metadata.planner_data = Harm(canary)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))


def _harmful_object(path: Path, canary: Path, choose: Random) -> None:
    """A tensor that is said to be an object, which PyTorch's own loader unpickles."""
    metadata = dcp.FileSystemReader(path).read_metadata()
    name = choose.choice(sorted(metadata.state_dict_metadata))
    _harmful_item(path, canary, choose)
    metadata.state_dict_metadata[name] = BytesStorageMetadata()
    (path / ".metadata").write_bytes(pickle.dumps(metadata))


def _harmful_item(path: Path, canary: Path, choose: Random) -> None:
    """A tensor that is none: PyTorch's `weights_only` is what defends there."""
    metadata = dcp.FileSystemReader(path).read_metadata()
    place = metadata.storage_data[choose.choice(sorted(metadata.storage_data, key=str))]
    stream = io.BytesIO()
    torch.save(Harm(canary), stream)
    with (path / place.relative_path).open("ab") as file:
        place.offset, place.length = file.tell(), len(stream.getvalue())
        file.write(stream.getvalue())
    (path / ".metadata").write_bytes(pickle.dumps(metadata))


HARM: dict[str, Callable[[Path, Path, Random], None]] = {
    "the metadata": _harmful_metadata,
    "within the metadata": _harm_inside,
    "a tensor": _harmful_item,
    "an object": _harmful_object,
}
