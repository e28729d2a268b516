"""What is here, whether the ranks can work together, and what is wrong, in words."""

import os
import platform
import shutil
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.cuda.nccl
import torch.distributed as dist

import dgan
from dgan.environment import PACKAGES, device_of, version_of
from dgan.parallel.world import World, launch

CLOCKS_APART_S = 2.0
"""From which on times in the logs of different nodes cannot be compared."""
FREE_GIB = 5.0
SHARED_MEMORY_GIB = 0.5


@dataclass
class Report:
    """What was found: lines for a person, and what is wrong."""

    rows: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    is_first: bool = True
    """Whether this rank speaks for all; a rank that did not meet the others for itself."""

    def lines(self) -> list[str]:
        """The report as it is printed."""
        width = max(map(len, self.rows))
        rows = [f"{key:{width}}  {value}" for key, value in self.rows.items()]
        return rows + ([f"WRONG: {p}" for p in self.problems] or ["nothing is wrong"])


def examine(folder: Path, timeout_s: float) -> Report:
    """Join the other ranks, if there are any, and look at everything; every rank calls this.

    Args:
        folder: where runs are written, which all ranks must see.
        timeout_s: how long to wait for another rank.
    """
    report = Report()
    versions(report)
    disk(report, folder)
    leftovers(report)
    started = time.monotonic()
    try:
        with launch(timeout_s=timeout_s) as world:
            report.rows["ranks"] = f"{world.size}, met in {time.monotonic() - started:.1f} s"
            devices(report, world)
            agreement(report, world)
            exchange(report, world)
            shared_folder(report, world, folder)
            clocks(report, world)
            everyone = [problem for found in world.gather(report.problems) for problem in found]
            report.problems = list(dict.fromkeys(everyone))
            report.is_first = world.is_first
    except ConnectionError as error:
        report.problems.append(unreachable(error.__cause__ or error, timeout_s))
    return report


def versions(report: Report) -> None:
    """dgan, Python, what dgan stands on, and what carries messages."""
    report.rows["dgan"] = f"{dgan.__version__}, Python {platform.python_version()}"
    for package in PACKAGES:
        report.rows[package] = version_of(package) or "not installed"
    cuda = torch.cuda.is_available()
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if cuda else "none, there is no GPU"
    report.rows["NCCL"] = f"{nccl} (CUDA {torch.version.cuda})" if cuda else nccl
    report.rows["gloo"] = "yes" if dist.is_gloo_available() else "no"
    if not dist.is_gloo_available():
        report.problems.append("this torch has no gloo, which carries flags and checkpoints")
    if not cuda and shutil.which("nvidia-smi"):
        report.problems.append(
            "there is a GPU (nvidia-smi) that torch does not see: torch is built for "
            f"CUDA {torch.version.cuda or '(none)'}; install the build for this driver"
        )


def devices(report: Report, world: World) -> None:
    """What every rank computes on; two ranks on one GPU are wrong."""
    found = world.gather(device_of(world))
    kinds = [f"{host}: {what}" for host, what, _ in found]
    report.rows["devices"] = "; ".join(
        f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds)
    )
    taken = [(host, identity) for host, _, identity in found if identity]
    for host, gpu in dict.fromkeys(taken):
        if taken.count((host, gpu)) > 1:
            report.problems.append(
                f"{taken.count((host, gpu))} ranks of {host} share one GPU: start one rank a GPU"
            )


def agreement(report: Report, world: World) -> None:
    """Ranks with other versions read the same recipe differently."""
    mine = {key: report.rows[key] for key in ("dgan", "NCCL", *PACKAGES)}
    everyone = world.gather(mine)
    for key in mine:
        found = {other[key] for other in everyone}
        if len(found) > 1:
            report.problems.append(
                f"{key} differs between ranks ({', '.join(sorted(found))}): install the same"
            )


def exchange(report: Report, world: World) -> None:
    """A sum over all ranks that is known, and how fast a large one is."""
    total = torch.tensor(float(world.rank + 1), device=world.device)
    expected = world.size * (world.size + 1) / 2
    if float(world.total(total)) != expected:
        report.problems.append(f"a sum over all ranks is {float(total)}; it should be {expected}")
    if world.size == 1:
        report.rows["all-reduce"] = "nothing to exchange: one rank"
        return
    mebibytes = 256 if world.device.type == "cuda" else 16
    values = torch.ones(mebibytes * 2**18, device=world.device)
    seconds = statistics.median(_seconds(values, world) for _ in range(5))
    # A ring sends, and receives, so much of the tensor through every rank.
    gigabytes = 2 * (world.size - 1) / world.size * values.nbytes / 1e9
    report.rows["all-reduce"] = (
        f"{gigabytes / seconds:.2f} GB/s a rank ({mebibytes} MiB in {1000 * seconds:.1f} ms)"
    )


def _seconds(values: torch.Tensor, world: World) -> float:
    world.barrier()
    started = time.perf_counter()
    world.total(values)
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def shared_folder(report: Report, world: World, folder: Path, patience_s: float = 5.0) -> None:
    """Rank 0 writes a file; every rank must see it, if late."""
    token = world.gather(f"{os.getpid()}-{time.time_ns()}")[0]
    probe = folder / f".doctor-{token}"
    problem = ""
    if world.is_first:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.write_text(token)
        except OSError as error:
            problem = f"{folder} cannot be written ({error}): name another --folder"
    if problem := world.gather(problem)[0]:
        report.problems.append(problem)
        return
    waiting_since = time.monotonic()
    while not (seen := _holds(probe, token)) and time.monotonic() - waiting_since < patience_s:
        time.sleep(0.05)
    blind = [rank for rank, sees in enumerate(world.gather(seen)) if not sees]
    if world.is_first:
        probe.unlink(missing_ok=True)
    report.rows["shared folder"] = f"{folder}: seen by {world.size - len(blind)} of {world.size}"
    if blind:
        report.problems.append(
            f"rank {', '.join(map(str, blind))} does not see in {folder} what rank 0 writes "
            "there: checkpoints need a file system that all nodes share; name it by --run.dir"
        )


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except OSError:
        return False


def clocks(report: Report, world: World) -> None:
    """How far the ranks' clocks are apart: the least of several looks, since waiting adds to it."""
    apart = []
    for _ in range(5):
        world.barrier()
        times = world.gather(time.time())
        apart.append((max(times) - min(times), times))
    least, times = min(apart)
    report.rows["clocks"] = f"apart by at most {1000 * least:.0f} ms"
    if least > CLOCKS_APART_S:
        late, early = times.index(max(times)), times.index(min(times))
        report.problems.append(
            f"the clock of rank {late} is {least:.1f} s ahead of that of rank {early}: "
            "logs cannot be compared and S3 refuses requests; run NTP on all nodes"
        )


def disk(report: Report, folder: Path) -> None:
    """Room for checkpoints, and the shared memory that NCCL works in."""
    existing = next((p for p in (folder, *folder.absolute().parents) if p.exists()), Path("/"))
    free = shutil.disk_usage(existing).free / 2**30
    report.rows["free disk"] = f"{free:.0f} GiB at {folder}"
    if free < FREE_GIB:
        report.problems.append(f"only {free:.1f} GiB are free at {folder}: checkpoints need room")
    if torch.cuda.is_available() and Path("/dev/shm").exists():
        memory = shutil.disk_usage("/dev/shm").total / 2**30
        if memory < SHARED_MEMORY_GIB:
            report.problems.append(
                f"/dev/shm holds {memory:.2f} GiB, too little for NCCL: give the container more "
                "(docker run --ipc=host, or a Memory volume at /dev/shm)"
            )


def leftovers(report: Report) -> None:
    """Locks of builds that were killed: everyone who builds the same waits for them in silence."""
    cache = Path(
        os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache" / "torch_extensions")
    )
    for lock in sorted(cache.glob("**/lock")):
        minutes = (time.time() - lock.stat().st_mtime) / 60
        if minutes > 10:
            report.problems.append(
                f"{lock} is {minutes:.0f} minutes old: a build that was killed left it, and "
                "DeepSpeed waits for it without end; delete it"
            )


def unreachable(error: BaseException, timeout_s: float) -> str:
    """Why the ranks did not meet, in words."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    settings: dict[str, Any] = {name: os.environ.get(name, "not set") for name in names}
    where = f"{settings['MASTER_ADDR']}:{settings['MASTER_PORT']}"
    return (
        f"rank {settings['RANK']} of {settings['WORLD_SIZE']} does not reach the others within "
        f"{timeout_s:.0f} s: are all started, is {where} open to them in every firewall, is "
        "GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME) the network that joins the nodes? "
        f"{str(error).splitlines()[0]}"
    )
