"""A Slurm cluster of Debian's packages on this machine, for tests: two nodes with host names of their own.

Each node's daemon has its own namespaces for the host name and for /etc/hosts, so what runs on it believes to be on
another machine, with this machine's disk as a shared one. Everything listens on 127.0.0.1 alone, and ends with the
tests. It needs root, as Slurm's daemons do.
"""

import contextlib
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence

NODES = ("jbnode1", "jbnode2")
_PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scontrol", "unshare")

# A requeued job starts 2 minutes later; KillWait: seconds until SIGKILL follows SIGTERM.
_CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
KillWait=5
{nodes}
PartitionName=all Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why no cluster can be started here; "" if one can."""
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        return f"Slurm is not installed ({', '.join(missing)}): apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    if subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True).returncode:
        return "this container may not make namespaces"
    return ""


@contextlib.contextmanager
def cluster(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Starts a cluster whose files are in `folder`; yields its slurm.conf, and ends its daemons at the end."""
    for name in ("munge", "state"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "munge").chmod(0o711)
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    host, ports = socket.gethostname().partition(".")[0], _free_ports(1 + len(NODES))
    (folder / "hosts").write_text(f"127.0.0.1 localhost {host} {' '.join(NODES)}\n")
    nodes = [
        f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs=4 State=UNKNOWN"
        for name, port in zip(NODES, ports[1:], strict=True)
    ]
    config = folder / "slurm.conf"
    config.write_text(
        _CONFIG.format(folder=folder, host=host, ports=ports, nodes="\n".join(nodes), names=",".join(NODES))
    )
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nConstrainCores=no\nConstrainRAMSpace=no\n")
    environment = {**os.environ, "SLURM_CONF": str(config)}
    try:
        munge = folder / "munge"
        _start(
            *("munged", "--force", f"--key-file={key}", f"--socket={munge}/socket", f"--pid-file={folder}/munged.pid"),
            *(f"--log-file={munge}/log", f"--seed-file={munge}/seed", "--num-threads=2"),
            environment=environment,
        )
        _start("slurmctld", "-c", environment=environment)
        for name in NODES:
            daemon = f"hostname {name} && mount --bind {folder}/hosts /etc/hosts && exec slurmd -c -N {name}"
            _start("unshare", "--uts", "--mount", "sh", "-c", daemon, environment=environment)
        _wait_for_nodes(folder, environment)
        yield config
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True, timeout=30)
        _end([folder / f"{name}.pid" for name in (*NODES, "slurmctld", "munged")])


def _start(*words: str, environment: dict[str, str]) -> None:
    """Starts a daemon, which leaves for the background by itself."""
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{words}: {done.stderr}"


def _wait_for_nodes(folder: pathlib.Path, environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 20
    while True:
        words = ["sinfo", "--noheader", "--partition=all", "--format=%T %D"]
        shown = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=30).stdout
        if shown.split() == ["idle", str(len(NODES))]:
            return
        logs = "\n".join(log.read_text(errors="replace")[-1500:] for log in folder.glob("*.log"))
        assert time.monotonic() < deadline, f"the nodes are not idle: {shown}\n{logs}"
        time.sleep(0.1)


def _end(pid_files: Sequence[pathlib.Path]) -> None:
    """Ends daemons, of which only this cluster's own pid files tell."""
    pids = [int(text) for file in pid_files if file.exists() and (text := file.read_text().strip()).isdecimal()]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + 10
        while (pids := [pid for pid in pids if _runs(pid)]) and time.monotonic() < deadline:
            time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
