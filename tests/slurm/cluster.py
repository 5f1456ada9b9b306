"""A SLURM cluster of this machine alone, in a scratch folder: munged, slurmctld and slurmd."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")

CONFIGURATION = """
ClusterName=scratch
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=1,sched_interval=2
ReturnToService=2
KillWait=60
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:2
"""


def missing_programs() -> list[str]:
    """Programs of SLURM that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]


def _free_port() -> int:
    with contextlib.closing(socket.create_server(("", 0))) as server:
        return server.getsockname()[1]


class Cluster:
    """Running daemons; ``ask`` calls a client of SLURM and returns its output."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }
        self._daemons: list[subprocess.Popen] = []

    def start(self) -> None:
        """Start the daemons and wait until the node takes jobs."""
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        host = socket.gethostname().partition(".")[0]
        text = CONFIGURATION.format(
            host=host,
            folder=self.folder,
            controller=_free_port(),
            daemon=_free_port(),
            cpus=max(2, os.cpu_count() or 2),
        )
        (self.folder / "slurm.conf").write_text(text)
        socket_path = self.folder / "munge.socket"
        logs = (f"--{what}={self.folder}/munged.{what[:3]}" for what in ("log-file", "pid-file", "seed-file"))
        self._daemon("munged", "--foreground", "--force", f"--socket={socket_path}", f"--key-file={key}", *logs)
        wait_for(socket_path.exists, 20, "munged has no socket")
        self._daemon("slurmctld", "-D")
        self._daemon("slurmd", "-D", "-N", host)
        wait_for(
            lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T", check=False), 60, "the node does not become idle"
        )

    def _daemon(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("w") as out:
            self._daemons.append(
                subprocess.Popen(command, env=self.environment, stdout=out, stderr=out, start_new_session=True)
            )

    def ask(self, *command: str, check: bool = True) -> str:
        """Output of a client; an error if it fails."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if check and done.returncode:
            raise RuntimeError(f"{command}: {done.stderr}")
        return done.stdout.strip()

    def state(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` says."""
        return dict(part.split("=", 1) for part in self.ask("scontrol", "show", "job", job).split() if "=" in part)

    def stop(self) -> None:
        """End all jobs, then the daemons, the last started first."""
        self.ask("scancel", "--user=root", check=False)
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: not self.ask("squeue", "--noheader", check=False), 90, "jobs do not end")
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()


def wait_for(condition, seconds: float, message: str) -> None:
    """Return once ``condition()`` holds; ``TimeoutError`` if it does not within ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(message)
        time.sleep(0.3)
