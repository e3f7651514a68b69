"""The processes of a launch, as the environments of launchers describe them."""

import pytest

from jaxboost.errors import UserError
from jaxboost.processes import launch

SLURM = {
    "SLURM_JOB_ID": "712",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    # Of the job, not of the step.
    "SLURM_NTASKS": "8",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
URI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}


@pytest.mark.parametrize(
    ("environ", "count", "index", "host"),
    [
        (SLURM, 4, 2, "gpu03"),
        ({**SLURM, "SLURM_STEP_NUM_NODES": "1"}, 4, 2, "127.0.0.1"),
        ({**OPEN_MPI, **URI}, 4, 1, "10.96.0.1"),
        ({**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": "1.0;tcp6://[fe80::b9b,2620::3]:43370"}, 4, 1, "fe80::b9b"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 4, 1, "127.0.0.1"),
        ({"PMI_SIZE": "2", "PMI_RANK": "0", "MPI_LOCALNRANKS": "2"}, 2, 0, "127.0.0.1"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}, 2, 1, "node7"),
        ({"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "t-0,t-1,t-2"}, 3, 1, "t-0"),
        (
            {"JOB_COMPLETION_INDEX": "1", "JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": "job-0.svc:1234"},
            *(2, 1, "job-0.svc"),
        ),
    ],
)
def test_launchers(environ, count, index, host):
    found = launch.find(environ)
    assert (found.count, found.index, found.host) == (count, index, host)


def test_all_processes_of_a_step_meet_at_the_same_ports_and_others_do_not():
    first, last = (launch.find({**SLURM, "SLURM_PROCID": number}) for number in "03")
    assert (first.ports, first.key) == (last.ports, last.key)
    assert len(set(first.ports)) > 1
    assert all(61440 <= port <= 65535 for port in first.ports)
    # Two steps of a job may run on a node at the same time.
    other = launch.find({**SLURM, "SLURM_STEP_ID": "1"})
    assert other.key != first.key
    assert other.ports != first.ports


def test_a_secret_is_in_the_key_and_not_in_the_ports():
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_JOB_ID": "7"}
    open_, one, other = (launch.find({**step, "JAXBOOST_SECRET": text}) for text in ("", "a", "b"))
    assert open_.ports == one.ports == other.ports
    assert len({open_.key, one.key, other.key}) == 3
    assert launch.find({**step, "JAXBOOST_SECRET": "a"}).key == one.key


def test_flags_go_before_the_environment():
    found = launch.find(SLURM, coordinator="here:77", process_count=2, process_id=1)
    assert (found.count, found.index, found.host, found.ports) == (2, 1, "here", (77,))
    environ = {"JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "0", "JAX_COORDINATOR_ADDRESS": "there"}
    found = launch.find({**SLURM, **environ})
    assert (found.count, found.index, found.host, found.ports) == (3, 0, "there", (launch.DEFAULT_PORT,))
    assert launch.find({**SLURM, "JAX_COORDINATOR_PORT": "5000"}).ports == (5000,)
    assert launch.find({**environ, "JAX_COORDINATOR_PORT": "5000"}).ports == (5000,)


@pytest.mark.parametrize(
    ("environ", "flags", "message"),
    [
        ({}, {}, "nothing says how many processes there are: start with srun"),
        # The batch script of a job of four tasks is no step.
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, {}, "how many processes"),
        ({}, {"process_count": 2}, "which process this is"),
        ({"JOB_COMPLETION_INDEX": "1"}, {}, "how many processes"),
        ({}, {"process_count": 2, "process_id": 2}, "process 2 of 2: give --process_id from 0 to 1"),
        ({}, {"process_count": 2, "process_id": 1}, "on which host process 0 runs: give --coordinator=HOST:PORT"),
        (OPEN_MPI, {}, "Open MPI does not say on which host process 0 runs"),
        (SLURM, {"coordinator": "a:b:c"}, "'a:b:c' is no HOST:PORT"),
        (SLURM, {"coordinator": "a:0"}, "'0' is no port"),
        ({**SLURM, "JAX_COORDINATOR_PORT": "x"}, {}, "JAX_COORDINATOR_PORT: 'x' is no port"),
    ],
)
def test_mistakes(environ, flags, message):
    with pytest.raises(UserError) as error:
        launch.find(environ, **flags)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-015],host2", "node001"),
        ("node[001,007-015],host2", "node001"),
        ("rack[2-3]n[05,07]", "rack2n05"),
    ],
)
def test_lists_of_hosts(nodes, host):
    assert launch.first_host(nodes) == host


def test_addresses():
    assert launch.address("[fe80::1]:80") == ("fe80::1", 80)
    assert launch.address("host") == ("host", None)
