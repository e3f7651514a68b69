"""Finds the processes of one launch: how many, which one this is, and where they meet."""

import dataclasses
import hmac
import re
import zlib
from collections.abc import Callable, Mapping

from jaxboost.errors import UserError

# Above the ports that Linux gives to connections (32768 to 60999), so that the ports are rarely taken.
_FIRST_PORT, _PORTS = 61440, 4096
# A launch whose port was not given tries these many.
_CANDIDATES = 8
DEFAULT_PORT = 61439
# Environment variable whose text, equal in all processes, nobody else knows.
SECRET = "JAXBOOST_SECRET"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """One launch of several processes, as this process sees it.

    Attributes:
      count: number of processes.
      index: number of this process, from 0. Process 0 is the coordinator: the others connect to it.
      host: of the coordinator.
      ports: the coordinator listens on the first of them that is free.
      key: equal in all processes of a launch, and different in other launches as far as the environment tells. With
        the environment variable JAXBOOST_SECRET, a stranger cannot guess it.
      found_by: where all this comes from, for messages.
    """

    count: int
    index: int
    host: str
    ports: tuple[int, ...]
    key: str
    found_by: str


def find(environ: Mapping[str, str], *, coordinator: str = "", process_count: int = 0, process_id: int = -1) -> Launch:
    """The launch that flags and the environment describe. Flags go first, then JAX's variables, then the launcher's.

    Args:
      environ: environment variables.
      coordinator: HOST:PORT, or HOST; empty: not given.
      process_count: 0: not given.
      process_id: -1: not given.

    Raises:
      UserError: they describe no launch, or contradict each other.
    """
    given = {
        "count": process_count or _number(environ, "JAX_NUM_PROCESSES"),
        "index": process_id if process_id >= 0 else _number(environ, "JAX_PROCESS_ID"),
        "address": coordinator or environ.get("JAX_COORDINATOR_ADDRESS", ""),
    }
    found = next((found for look in _LAUNCHERS if (found := look(environ))), None)
    count = given["count"] or (found and found.count)
    index = given["index"] if given["index"] is not None else (found and found.index)
    if not count or index is None:
        what = "how many processes there are" if not count else "which process this is"
        raise UserError(
            f"--distributed: nothing says {what}: start with srun, mpirun, a Kubernetes indexed Job or GKE's TPUs, or"
            " give each process --coordinator=HOST:PORT, --process_count and --process_id (from 0)"
        )
    if not 0 <= index < count:
        raise UserError(f"--distributed: process {index} of {count}: give --process_id from 0 to {count - 1}")
    names = [name for name, value in given.items() if value not in (None, "", 0)] or [""]
    found_by = found.found_by if found and names == [""] else "flags or JAX's environment variables"
    own_port = _port(text, "JAX_COORDINATOR_PORT") if (text := environ.get("JAX_COORDINATOR_PORT", "")) else None
    if given["address"]:
        host, port = address(str(given["address"]))
        ports = (port or own_port or DEFAULT_PORT,)
        key = f"{host}:{ports[0]}"
    elif found and found.host:
        host, key = found.host, found.key
        ports = (own_port,) if own_port else _derived(key)
    elif count == 1:
        host, ports, key = "127.0.0.1", (DEFAULT_PORT,), "alone"
    else:
        raise UserError(
            f"--distributed: {found.found_by if found else 'nothing'} does not say on which host process 0 runs: give"
            " --coordinator=HOST:PORT, the same to each process"
        )
    if secret := environ.get(SECRET):
        # The ports follow from what a launcher says; the key only then from the secret too.
        key = hmac.digest(secret.encode(), key.encode(), "sha256").hex()
    return Launch(count=int(count), index=int(index), host=host, ports=ports, key=key, found_by=found_by)


def address(text: str) -> tuple[str, int | None]:
    """Host and port of "HOST:PORT", "HOST" (None as port) or "[IPV6]:PORT"."""
    match = re.fullmatch(r"\[([^\[\]\s]+)\](?::(\w+))?|([^:\[\]\s]+)(?::(\w+))?", text)
    if not match:
        raise UserError(f"--coordinator: {text!r} is no HOST:PORT, such as node1:61439")
    host, port = match[1] or match[3], match[2] or match[4]
    return host, _port(port, "--coordinator") if port else None


def _derived(key: str) -> tuple[int, ...]:
    return tuple(_FIRST_PORT + zlib.crc32(f"{key} {k}".encode()) % _PORTS for k in range(_CANDIDATES))


def first_host(nodes: str) -> str:
    """The first host of a list as Slurm writes it: "node[001-003,7],other" gives "node001"."""
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodes).partition(",")[0].strip()


@dataclasses.dataclass(frozen=True)
class _Found:
    found_by: str
    count: int | None
    index: int | None
    host: str = ""
    key: str = ""


def _slurm(environ: Mapping[str, str]) -> _Found | None:
    """Slurm: a step that srun started. The batch script itself is none, though it has most of the variables."""
    count, index = _number(environ, "SLURM_STEP_NUM_TASKS"), _number(environ, "SLURM_PROCID")
    if count is None or index is None:
        return None
    nodes = environ.get("SLURM_STEP_NODELIST", "")
    # Names of hosts need not resolve on a single machine.
    host = "127.0.0.1" if environ.get("SLURM_STEP_NUM_NODES") == "1" else first_host(nodes)
    # The step too: two steps of a job may run on one node at the same time.
    key = f"slurm {environ.get('SLURM_JOB_ID')}.{environ.get('SLURM_STEP_ID')}"
    return _Found("Slurm", count, index, host, key)


def _open_mpi(environ: Mapping[str, str]) -> _Found | None:
    count, index = _number(environ, "OMPI_COMM_WORLD_SIZE"), _number(environ, "OMPI_COMM_WORLD_RANK")
    if count is None or index is None:
        return None
    uri = environ.get("OMPI_MCA_orte_hnp_uri", "")
    key = f"mpi {uri or environ.get('PMIX_NAMESPACE', '') or environ.get('OMPI_MCA_ess_base_jobid', '')}"
    host = ""
    if _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE") == count:
        host = "127.0.0.1"
    # "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911": the host of mpirun, which runs process 0 too.
    elif match := re.search(r"tcp://([^,:]+)|tcp6://\[([^,\]]+)", uri):
        host = match[1] or match[2]
    return _Found("Open MPI", count, index, host, key)


def _mpich(environ: Mapping[str, str]) -> _Found | None:
    count, index = _number(environ, "PMI_SIZE"), _number(environ, "PMI_RANK")
    if count is None or index is None:
        return None
    host = "127.0.0.1" if _number(environ, "MPI_LOCALNRANKS") == count else ""
    return _Found("mpiexec", count, index, host, f"pmi {environ.get('PMI_ID', '')} {environ.get('HYDRA_JOBID', '')}")


def _torchrun(environ: Mapping[str, str]) -> _Found | None:
    count, index, host = _number(environ, "WORLD_SIZE"), _number(environ, "RANK"), environ.get("MASTER_ADDR", "")
    if count is None or index is None or not host:
        return None
    # torchrun itself listens on MASTER_PORT.
    return _Found("torchrun", count, index, host, f"torchrun {host} {environ.get('MASTER_PORT')}")


def _tpu(environ: Mapping[str, str]) -> _Found | None:
    """A TPU slice: its hosts and the number of this one, as GKE gives them."""
    hosts, index = environ.get("TPU_WORKER_HOSTNAMES", ""), _number(environ, "TPU_WORKER_ID")
    if not hosts or index is None:
        return None
    names = hosts.split(",")
    return _Found("the TPU's environment", len(names), index, names[0], f"tpu {hosts}")


def _kubernetes(environ: Mapping[str, str]) -> _Found | None:
    """An indexed Job gives each pod its number alone."""
    index = _number(environ, "JOB_COMPLETION_INDEX")
    return None if index is None else _Found("the indexed Job", None, index)


_LAUNCHERS: tuple[Callable[[Mapping[str, str]], _Found | None], ...] = (
    *(_slurm, _open_mpi, _mpich, _torchrun, _tpu, _kubernetes),
)


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def _port(text: str, what: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 2**16):
        raise UserError(f"{what}: {text!r} is no port: give 1 to 65535")
    return int(text)
