"""The `dgan` command as a person gives it, and what a run left on the disk."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from tiny import tiny
from torch import Tensor

from dgan import cli
from dgan.checkpoint import load
from dgan.recipe_file import to_toml

ROOT = Path(__file__).parents[1]


@dataclass
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    def error(self) -> str:
        """The one message of a command that failed; fails if there are more, or a traceback."""
        assert self.code == 2, (self.code, self.out, self.err)
        assert "Traceback" not in self.err + self.out
        messages = [part for part in self.err.split("dgan: error: ") if part.strip()]
        assert len(messages) == self.err.count("dgan: error: ") == 1, self.err
        return messages[0].strip()


def dgan(capsys: pytest.CaptureFixture[str], *arguments: Any) -> Outcome:
    """Run a command in this process."""
    capsys.readouterr()
    path = list(sys.path)
    code: Any = 0
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.path[:] = path
    captured = capsys.readouterr()
    if not isinstance(code, int):
        return Outcome(1, captured.out, captured.err + str(code))
    return Outcome(code, captured.out, captured.err)


def start(*arguments: Any, ranks: int = 0, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start a command as a process of its own, under torchrun if `ranks` are asked for."""
    launcher = ["-m", "dgan"]
    if ranks:
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
        launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "dgan"]
    return subprocess.Popen(
        [sys.executable, *launcher, *map(str, arguments)],
        cwd=cwd or ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str], timeout_s: float = 120) -> Outcome:
    """Wait for a process; one that does not end is killed, and the test fails."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"did not end in {timeout_s} s\n{out}\n{err}") from None
    return Outcome(process.returncode, out, err)


def wait_until(
    condition: Callable[[], bool], process: subprocess.Popen[str], timeout_s: float = 120
) -> None:
    """Wait for something that a running process does."""
    limit = time.monotonic() + timeout_s
    while not condition():
        if process.poll() is not None or time.monotonic() > limit:
            process.kill()
            raise AssertionError(f"it did not come about: {process.communicate()}")
        time.sleep(0.02)


def write_recipe(folder: Path, name: str, shards: str, family: str = "mlp", **changes: Any) -> Path:
    """A file with the tiny recipe, whose run is `folder/name`."""
    path = folder / f"{name}.toml"
    path.write_text(to_toml(tiny(shards, str(folder / name), family, **changes)))
    return path


def checkpoint_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:09d}"


def steps_kept(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").iterdir())


def stored(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, whole."""
    metadata = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    tensors = {
        name: torch.full(tuple(entry.size), -7).to(entry.properties.dtype)
        for name, entry in metadata.items()
    }
    load(checkpoint, tensors, distributed=False)
    return tensors


def facts(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "facts.json").read_text())


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, without the speed."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def assert_same_checkpoint(a: Path, b: Path) -> None:
    """Weights, buffers, moments, average and data position are equal bit for bit."""
    ours, theirs = stored(a), stored(b)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert facts(a) == facts(b)
