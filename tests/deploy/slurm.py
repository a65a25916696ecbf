"""A private Slurm of one node on this machine for tests, from Debian's package `slurm-wlm`. Its GPUs are made up."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy.postgres import free_port

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel")
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
KillWait=5
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=32 RealMemory=400000 Gres=gpu:4 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """A cluster.

    Attributes:
        folder: of its state and its logs.
    """

    folder: Path

    def environment(self) -> dict[str, str]:
        """What its commands read."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def do(self, *command: str, more: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """What a command prints, which must end well."""
        environment = os.environ | self.environment() | dict(more or {})
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=cwd)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}\n{self.log()}"
        return done.stdout

    def log(self) -> str:
        """What its daemons said last."""
        found = [path for path in sorted(self.folder.glob("*.log")) if path.is_file()]
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in found)

    def waiting(self) -> str:
        """Jobs that have not ended."""
        return self.do("squeue", "--noheader", "--array", "--format", "%i %j %T %r")


@contextmanager
def serving_slurm(folder: Path) -> Iterator[Cluster]:
    """A cluster in a folder; the test is skipped where Slurm is not installed, or may not be run."""
    if not all(shutil.which(program) for program in PROGRAMS):
        pytest.skip("no Slurm: apt-get install slurm-wlm")
    if os.geteuid() != 0:
        pytest.skip("a node of Slurm has to be run by root")
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().split(".")[0]
    ports = {"controller_port": free_port(), "node_port": free_port()}
    (folder / "slurm.conf").write_text(CONF.format(host=host, user="root", folder=folder, **ports))
    for number in range(4):
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-3]\n")
    cluster = Cluster(folder)
    environment = os.environ | cluster.environment()
    daemons = [
        subprocess.Popen([shutil.which(name) or name, "-D"], env=environment, stdout=log, stderr=log)
        for name, log in (
            ("slurmctld", (folder / "controller.out").open("w")),
            ("slurmd", (folder / "node.out").open("w")),
        )
    ]
    try:
        deadline = time.monotonic() + 60
        while (
            "idle"
            not in subprocess.run(
                ["sinfo", "--noheader", "--format", "%T"], capture_output=True, text=True, check=False, env=environment
            ).stdout
        ):
            assert time.monotonic() < deadline, cluster.log()
            time.sleep(0.5)
        yield cluster
        subprocess.run(["scancel", "--user", "root"], env=environment, check=False)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(timeout=60)
