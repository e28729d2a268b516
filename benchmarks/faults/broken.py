"""A run that is there to be broken: started again and again, and never waited for without end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from launched import alive, children
from ports import free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STILL_S = 180.0
LIMIT_S = 1800.0
"""Of a wait; see `Job`."""
PAUSE_S = 0.002


class Hang(AssertionError):
    """Something did not come about in time; says where every thread stood."""


@dataclass
class BrokenRun:
    """One run of the campaign's recipe, over all the processes that try to make it.

    Args:
        folder: of its own; the run is `folder/run`.
        shards: that it trains on.
        options: of `dgan train`, for every launch.
        recipe: a function of `watched`.
    """

    folder: Path
    shards: str
    options: tuple[str, ...] = ()
    recipe: str = "recipe"
    launches: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for name in ("notes", "logs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    @property
    def run(self) -> Path:
        """The directory that dgan writes."""
        return self.folder / "run"

    def single(self, *options: str) -> "Job":
        """One process, without a launcher."""
        job = Job(self, [self._start(["-m", "dgan"], "one", options=options)])
        self.launches += 1
        return job

    def ranks(
        self, size: int = 2, *options: str, at: Sequence["Node"] = (), address: str = "127.0.0.1"
    ) -> "Job":
        """One process a rank, as srun starts them; each at its node, if these are given."""
        port = str(free_port())
        processes = []
        for rank in range(size):
            node = at[rank] if at else Node(local_rank=rank, local_size=size)
            variables = {
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_RANK": str(node.local_rank),
                "LOCAL_WORLD_SIZE": str(node.local_size),
                "MASTER_ADDR": address,
                "MASTER_PORT": port,
                **node.variables,
            }
            processes.append(
                self._start(
                    ["-m", "dgan"],
                    f"rank{rank}",
                    options=options,
                    within=node.within,
                    **variables,
                )
            )
        self.launches += 1
        return Job(self, processes)

    def torchrun(self, *, restarts: int, size: int = 2) -> "Job":
        """launch/torchrun.sh, which starts all ranks again when one ends."""
        variables = {
            "RANKS": str(size),
            "RESTARTS": str(restarts),
            "PET_SHUTDOWN_TIMEOUT": "10",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        script = [str(ROOT / "launch" / "torchrun.sh")]
        job = Job(self, [self._start([], "torchrun", program=script, **variables)], launcher=True)
        self.launches += 1
        return job

    def _start(
        self,
        module: Sequence[str],
        name: str,
        *,
        options: Sequence[str] = (),
        program: Sequence[str] = (sys.executable,),
        within: Sequence[str] = (),
        **variables: str,
    ) -> "Started":
        log = self.folder / "logs" / f"{self.launches:03d}-{name}.txt"
        fixed = ("--data.shards", self.shards, "--run.dir", str(self.run))
        arguments = ["train", f"watched:{self.recipe}", *fixed, *self.options, *options]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "CAMPAIGN_NOTES": str(self.folder / "notes"),
            "CAMPAIGN_LAUNCH": str(self.launches),
            **variables,
        }
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*within, *program, *module, *arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return Started(process, log)

    def steps_done(self) -> int:
        """As far as is recorded: of this attempt, and of those that it goes on from."""
        with suppress(FileNotFoundError):
            return (self.run / "metrics.jsonl").read_bytes().count(b"\n")
        return 0

    def reach(self, step: int, job: "Job") -> None:
        """Wait until `job` has done `step`."""
        job.until(lambda: self.steps_done() >= step, f"step {step}")

    def processes(self) -> list[int]:
        """All of them that are alive, told by their environment."""
        mark = f"CAMPAIGN_NOTES={self.folder}/".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                entries = path.read_bytes().split(b"\0")
                if any(e.startswith(mark) for e in entries) and alive(int(path.parent.name)):
                    found.append(int(path.parent.name))
        return found

    def clear(self) -> None:
        """End what is left of it."""
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


@dataclass(frozen=True)
class Node:
    """Where a rank runs."""

    within: tuple[str, ...] = ()
    """The command that puts it there."""
    variables: dict[str, str] = field(default_factory=dict)
    local_rank: int = 0
    local_size: int = 1


@dataclass(frozen=True)
class Started:
    """A process, and the file that gets what it says."""

    process: subprocess.Popen[bytes]
    log: Path


class Job:
    """One launch of a run: its ranks, or the launcher that has them for children.

    Every wait ends: by `Hang` when no process has taken a batch or said a line for `STILL_S`
    seconds, or after `LIMIT_S` (a machine may be so busy that all is slow).
    """

    def __init__(
        self, broken: BrokenRun, started: list[Started], *, launcher: bool = False
    ) -> None:
        self.broken = broken
        self.started = started
        self.launcher = launcher

    def ranks(self) -> list[int]:
        """The processes of the ranks, in order; fewer while they are being started."""
        if not self.launcher:
            return [started.process.pid for started in self.started]
        found = {}
        for worker in children(self.started[0].process.pid):
            with suppress(OSError):
                for entry in Path(f"/proc/{worker}/environ").read_bytes().split(b"\0"):
                    if entry.startswith(b"RANK="):
                        found[int(entry[5:])] = worker
        return [found[rank] for rank in sorted(found)]

    def said(self) -> str:
        """What all processes wrote to the terminal."""
        return "\n".join(started.log.read_text(errors="replace") for started in self.started)

    def over(self) -> bool:
        """Whether all processes have ended."""
        return all(started.process.poll() is not None for started in self.started)

    def until(
        self,
        condition: Callable[[], bool],
        what: str,
        *,
        limit_s: float = LIMIT_S,
        pause_s: float = PAUSE_S,
    ) -> None:
        """Wait for `condition`, which is looked at every `pause_s`.

        Raises:
            Hang: it does not come about.
            AssertionError: a process ended before.
        """

        came = False

        def over() -> bool:
            nonlocal came  # it may hold for a moment only
            came = condition()
            return came or any(started.process.poll() is not None for started in self.started)

        self._wait(over, what, limit_s, pause_s)
        codes = [started.process.poll() for started in self.started]
        assert came or condition(), f"{what}: ended before, with {codes}\n{self.said()[-4000:]}"

    def end(self) -> list[int]:
        """Wait until all processes have ended; their exit codes."""
        self._wait(self.over, "the end")
        return [started.process.returncode for started in self.started]

    def until_dead(self, ranks: Sequence[int]) -> None:
        """Wait until none of the processes `ranks` is alive, under a launcher that lives on."""
        self._wait(lambda: not any(map(alive, ranks)), "the end of all ranks")

    def _wait(
        self,
        condition: Callable[[], bool],
        what: str,
        limit_s: float = LIMIT_S,
        pause_s: float = PAUSE_S,
    ) -> None:
        begin = moved = looked = time.monotonic()
        written = -1
        while not condition():
            now = time.monotonic()
            if now - looked > 1.0:
                looked = now
                if (size := self._written()) != written:
                    written, moved = size, now
            if now - begin > limit_s or now - moved > STILL_S:
                self._hang(
                    f"{what}: not in {now - begin:.0f} s, {now - moved:.0f} s without a move"
                )
            if pause_s:
                time.sleep(pause_s)

    def _written(self) -> int:
        """Bytes of all batches' notes and all lines, which grow while anything moves."""
        files = [*self.broken.folder.glob("notes/*"), *self.broken.folder.glob("logs/*")]
        return sum(file.stat().st_size for file in files)

    def _hang(self, what: str) -> None:
        """Every rank shows its stacks (dgan enables faulthandler) and is ended."""
        for rank in self.ranks():
            with suppress(ProcessLookupError):
                os.kill(rank, signal.SIGABRT)
        time.sleep(3)
        self.broken.clear()
        for started in self.started:
            started.process.wait()
        raise Hang(f"{what}\n{self.said()[-20_000:]}")
