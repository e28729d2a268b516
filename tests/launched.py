"""The files of launch/, started as a person starts them, in small."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

LAUNCH = Path(__file__).parents[1] / "launch"


def environment(**variables: str) -> dict[str, str]:
    """This one's, with this Python's programs first and two ranks a node."""
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    small = {"PATH": programs, "OMP_NUM_THREADS": "1", "RANKS": "2", "PET_SHUTDOWN_TIMEOUT": "5"}
    return {**os.environ, **small, **variables}


def launched(
    name: str, *arguments: Any, within: Sequence[str] = (), **variables: str
) -> subprocess.Popen[str]:
    """Start a script of launch/, perhaps by a command that puts it somewhere else."""
    return subprocess.Popen(
        [*within, str(LAUNCH / name), *map(str, arguments)],
        cwd=LAUNCH.parent,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(parent: int) -> list[int]:
    """The processes that `parent` started (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it may end while we look
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found


def rank_of(launcher: int, rank: int) -> int:
    """The process that is `rank` under a torchrun (Linux)."""
    for worker in children(launcher):
        variables = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in variables:
            return worker
    raise AssertionError(f"no rank {rank} under {launcher}")


def alive(process: int) -> bool:
    """Whether it runs; one that nobody has waited for does not (Linux)."""
    with suppress(OSError):
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    return False
