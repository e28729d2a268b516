"""A real Slurm on this machine: two nodes, two partitions, all of it in one folder."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from launched import environment
from ports import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "sinfo")

CONFIGURATION = """
ClusterName=dgan
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
SwitchType=switch/none
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
InactiveLimit=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=2000
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=2000
PartitionName=low Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """Why there can be no Slurm here; empty if there can."""
    if absent := [name for name in PROGRAMS if shutil.which(name, path=_search()) is None]:
        return f"{', '.join(absent)} not installed (Debian: slurmctld slurmd slurm-client munge)"
    if os.geteuid() != 0:
        return "Slurm's daemons need root here"
    try:
        socket.gethostbyname(socket.gethostname())
    except OSError:
        return "the ranks meet at this machine's name, which has no address"
    return ""


def _search() -> str:
    return f"{environment()['PATH']}:/usr/sbin:/sbin"


class Slurm:
    """The cluster; jobs run in `folder`.

    Every node is this machine: the first is called as it is, so that ranks find their meeting
    point by its name, and the addresses at which they listen are said by variables.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables = environment(
            PATH=_search(),
            SLURM_CONF=str(folder / "slurm.conf"),
            PET_LOCAL_ADDR="127.0.0.1",
            GLOO_SOCKET_IFNAME="lo",
            RANKS="1",
            RESTARTS="0",
            PET_SHUTDOWN_TIMEOUT="20",
            DS_ACCELERATOR="cpu",
        )

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Start the daemons; stop them, and every job, at the end."""
        host = socket.gethostname()
        nodes = [host, f"{host}-2"]
        for name in ("state", *(f"spool-{node}" for node in nodes)):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        settings = CONFIGURATION.format(
            folder=self.folder, host=host, nodes=nodes, ports=free_ports(3)
        )
        (self.folder / "slurm.conf").write_text(settings)
        own = [f"--{name}-file={self.folder}/munged.{name}" for name in ("pid", "log", "seed")]
        own += [f"--key-file={key}", f"--socket={self.folder}/munge.sock"]
        try:
            self("munged", "--force", *own)
            self("slurmctld", "-f", self.folder / "slurm.conf")
            for node in nodes:
                self("slurmd", "-f", self.folder / "slurm.conf", "-N", node)
            self.wait_for(lambda: self("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D") == "2")
            yield self
        finally:
            with suppress(AssertionError):
                self(
                    "scancel", "--full", "--signal=KILL", *self("squeue", "-h", "-o", "%i").split()
                )
            for path in sorted(self.folder.glob("*.pid"), key=lambda path: "munge" in path.name):
                with suppress(ProcessLookupError, ValueError):
                    os.kill(int(path.read_text()), signal.SIGTERM)

    def __call__(self, *command: Any) -> str:
        """What one of Slurm's programs prints."""
        done = subprocess.run(
            list(map(str, command)),
            cwd=self.folder,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """RUNNING, PENDING, COMPLETED …"""
        fields = self("scontrol", "show", "job", job, "-o").split()
        return next(word[9:] for word in fields if word.startswith("JobState="))

    def start_again(self, job: str) -> None:
        """A job that was queued again waits for two minutes; not here.

        Slurm refuses its credential within the second in which the one before was revoked.
        """
        self.wait_for(lambda: self.state(job) == "PENDING")
        self("scontrol", "update", f"JobId={job}", "StartTime=now+2")
        self.wait_for(lambda: self.state(job) in ("RUNNING", "COMPLETED", "FAILED"))

    def log(self, job: str) -> str:
        """What the job has printed, of all its starts."""
        path = self.folder / f"dgan-{job}.log"
        return path.read_text() if path.exists() else ""

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 240) -> None:
        """Wait for something that Slurm, or a job, does."""
        limit = time.monotonic() + timeout_s
        while not _is_so(condition):
            logs = "\n".join(path.read_text()[-3000:] for path in self.folder.glob("*.log"))
            assert time.monotonic() < limit, f"it did not come about\n{logs}"
            time.sleep(0.2)


def _is_so(condition: Callable[[], bool]) -> bool:
    # The controller may still be starting.
    with suppress(AssertionError):
        return condition()
    return False


@contextmanager
def cluster() -> Iterator[Slurm]:
    """A running cluster in a folder that munge, which has its own idea of safe paths, accepts."""
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        with Slurm(Path(name)).running() as slurm:
            yield slurm
