"""A run's checkpoints on the disk: which there are, whether they are good, what they hold."""

import json
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from dgan.parallel.pieces import LoadPlanner
from dgan.parallel.replicas import State
from dgan.parallel.storage import DIGESTS, Reader, damage, digest_of
from dgan.scores import SCORES

FACTS = "facts.json"
FORMAT = 2
"""Of the folder: 2 has digests, 1 (which did not say so) has none."""


class DamagedCheckpoint(ValueError):
    """Files of a checkpoint are missing, cut off, or not what was written."""


def complete(directory: Path) -> list[Path]:
    """All complete checkpoints under `directory`, oldest first."""
    return [path for path in candidates(directory) if (path / FACTS).is_file()]


def latest(directory: Path) -> Path | None:
    """The newest complete checkpoint under `directory`, if there is one."""
    found = complete(directory)
    return found[-1] if found else None


def until(directory: Path, step: int) -> list[Path]:
    """What has a checkpoint's name, of `step` and before, oldest first."""
    return [path for path in candidates(directory) if int(path.name[5:]) <= step]


def facts_of(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; nothing if that is damaged."""
    with suppress(OSError, ValueError, AttributeError):
        facts = json.loads((path / FACTS).read_bytes())
        has_digests = (path / DIGESTS).exists()
        known = json.loads((path / DIGESTS).read_bytes()) if has_digests else {}
        if isinstance(facts, dict) and known.get(FACTS) in (None, digest_of(path / FACTS)):
            return facts
    return {}


COMPARABLE = ("features_digest", "samples", "real_samples", "shards")
"""What two scores must have been computed with alike."""


def best(paths: Sequence[Path], count: int, score: str = "fid") -> list[Path]:
    """The `count` checkpoints with the best `score`, best first, of those with one.

    Scores computed otherwise than the newest's, in other features or against other images, cannot
    be compared with it, and do not count. Of equal ones the newer is the better.

    Args:
        paths: of the checkpoints, oldest first.
        count: how many.
        score: of `dgan.scores.SCORES`, which says whether lower or higher is better.
    """
    sign = -1 if SCORES[score].better == "higher" else 1
    scored: list[tuple[float, int, Path, list[Any]]] = []
    for age, path in enumerate(paths):
        with suppress(AttributeError, TypeError):
            scores = facts_of(path).get("scores", {})
            if math.isfinite(scores.get(score, math.nan)):
                means = [scores.get(key) for key in COMPARABLE]
                scored.append((sign * scores[score], -age, path, means))
    comparable = [found[:3] for found in scored if found[3] == scored[-1][3]]
    return [path for *_, path in sorted(comparable)[:count]]


def load_newest(
    paths: Sequence[Path], tensors: State, *, distributed: bool, warn: Callable[[str], None]
) -> tuple[Path, dict[str, Any]]:
    """Read the newest good one of `paths`, ordered from old to new; see `load`.

    Args:
        warn: is told of each that is damaged.

    Returns:
        Its path and facts.

    Raises:
        DamagedCheckpoint: none is good.
        ValueError: the newest good one is of other networks.
    """
    problems: list[str] = []
    for path in reversed(paths):
        try:
            return path, load(path, tensors, distributed=distributed)
        except DamagedCheckpoint as error:
            problems.append(str(error))
            if path != paths[0]:
                warn(f"warning: {error}; going back to the checkpoint before it")
    raise DamagedCheckpoint(
        f"no checkpoint in {paths[-1].parent} can be read: {'; '.join(problems)}. Put a copy in "
        "its place, or move the folder away to start anew"
    )


def load(path: Path, tensors: State, *, distributed: bool) -> dict[str, Any]:
    """Read a checkpoint into `tensors`, whatever world size or sharding wrote it.

    Nothing in the checkpoint is executed.

    Args:
        path: of a complete checkpoint.
        tensors: what to read, filled in place; others in the checkpoint are left.
        distributed: every rank calls this together, or one process reads alone.

    Returns:
        The facts stored beside it.

    Raises:
        DamagedCheckpoint: on every rank; its files are not what was written. Without digests (of
            dgan before format 2) only what cannot be read is noticed.
        ValueError: a tensor is missing or of another shape: the networks are not those that
            wrote the checkpoint.
    """
    reader = Reader(path)
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    facts, problem = {}, None
    try:
        facts = _facts(path, rank, ranks)
        _compare(path, _metadata(path, reader), tensors)
    except ValueError as error:
        problem = error
    problems = [problem]
    if ranks > 1:
        problems = [None] * ranks
        dist.all_gather_object(problems, problem)
    # A damaged file may look like one of other networks, to those who did not check that file.
    for found in sorted(filter(None, problems), key=lambda p: not isinstance(p, DamagedCheckpoint)):
        raise found
    with warnings.catch_warnings():
        # One process that reads alone is what was asked for.
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        try:
            dcp.load(tensors, storage_reader=reader, planner=LoadPlanner(), no_dist=not distributed)
        except CheckpointException as error:
            raise DamagedCheckpoint(f"{path} cannot be read: {causes(error)}") from None
    return facts


def _facts(path: Path, rank: int, ranks: int) -> dict[str, Any]:
    """The facts of a checkpoint whose files are good, as far as this rank's share of them goes."""
    name = FACTS
    try:
        facts = json.loads((path / FACTS).read_bytes())
        name = DIGESTS
        has_digests = facts.pop("format", 1) >= FORMAT or (path / DIGESTS).exists()
        if has_digests and (problems := damage(path, rank=rank, ranks=ranks)):
            raise DamagedCheckpoint(f"{path} is damaged: {', '.join(problems)}")
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{path} is damaged: {name} is missing") from None
    except DamagedCheckpoint:
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{path} is damaged: {name} cannot be read ({error})") from None
    return facts


def _metadata(path: Path, reader: Reader) -> Metadata:
    try:
        return reader.read_metadata()
    except Exception as error:  # what a damaged pickle raises may be anything
        raise DamagedCheckpoint(f"{path} is damaged: .metadata cannot be read: {error}") from None


def _compare(path: Path, metadata: Metadata, tensors: State) -> None:
    stored = metadata.state_dict_metadata
    for name, tensor in tensors.items():
        if name not in stored:
            raise ValueError(f"{path} holds no {name!r}: it was written by other networks")
        entry = stored[name]
        if not isinstance(entry, TensorStorageMetadata):
            raise DamagedCheckpoint(f"{path} is damaged: {name} is no tensor; dgan wrote no such")
        if entry.size != torch.Size(tensor.shape):
            raise ValueError(
                f"{path}: {name} is {tuple(entry.size)}, the recipe's network has "
                f"{tuple(tensor.shape)}: was it made with other options?"
            )


def candidates(directory: Path) -> list[Path]:
    """What has a checkpoint's name and is not empty, oldest first."""
    return sorted(
        path for path in directory.glob("step-*") if path.is_dir() and any(path.iterdir())
    )


def causes(error: BaseException) -> str:
    """What went wrong, in words, on whichever ranks it did."""
    if not isinstance(error, CheckpointException):
        return str(error)
    # Each is an exception and its traceback.
    return "; ".join(sorted({_in_words(cause) for cause, _ in error.failures.values()}))


def _in_words(cause: BaseException) -> str:
    # PyTorch goes on to say how it would be executed.
    is_refused = "Weights only load failed" in str(cause)
    return "it holds more than tensors" if is_refused else str(cause)
