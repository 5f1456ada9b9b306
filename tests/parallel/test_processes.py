import pytest

from lclm_jax.config import ProcessesConfig
from lclm_jax.parallel import broadcast_from_process_0, join_processes
from lclm_jax.parallel.processes import VARIABLES, find_process
from lclm_jax.parallel.rendezvous import StartError

SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[003-004]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
OPEN_MPI_4 = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
}
ADDRESS = {"JAX_COORDINATOR_ADDRESS": "first:1234"}


@pytest.fixture
def surroundings(monkeypatch):
    """Sets the variables of a launcher; none of another stays."""
    for name in (*VARIABLES, *SLURM, *OPEN_MPI_4, "KUBERNETES_SERVICE_HOST", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)

    def set_variables(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.mark.usefixtures("surroundings")
def test_a_single_process_needs_nothing():
    with join_processes(ProcessesConfig()) as process:
        assert process is None
        assert broadcast_from_process_0("what", [1, None]) == [1, None]


def test_plain_variables_win(surroundings):
    surroundings(**SLURM, **ADDRESS, JAX_NUM_PROCESSES="8", JAX_PROCESS_ID="5")
    assert find_process()[:3] == ("first:1234", 5, 8)


def test_slurm_and_its_devices(surroundings):
    surroundings(**SLURM)
    process = find_process()
    assert (process.coordinator.split(":")[0], process.rank, process.total) == ("node003", 3, 4)
    assert process.local_devices == [1]
    surroundings(SLURM_STEP_TASKS_PER_NODE="1(x4)")  # a task that has the node to itself has all of its devices
    assert find_process().local_devices is None
    surroundings(SLURM_STEP_TASKS_PER_NODE="2(x2)", CUDA_VISIBLE_DEVICES="3")
    assert find_process().local_devices is None
    surroundings(JAX_NUM_PROCESSES="1")  # a shell inside an allocation
    assert find_process() is None
    surroundings(SLURM_NTASKS="1", JAX_NUM_PROCESSES="")
    assert find_process() is None


def test_open_mpi(surroundings):
    surroundings(**OPEN_MPI_4)
    process = find_process()
    assert (process.coordinator.split(":")[0], process.rank, process.total) == ("10.96.0.1", 1, 2)
    assert process.local_devices is None


def test_open_mpi_5_needs_an_address(surroundings):
    numbers = {name: value for name, value in OPEN_MPI_4.items() if name != "OMPI_MCA_orte_hnp_uri"}
    surroundings(**numbers)
    with pytest.raises(StartError, match=r"JAX_COORDINATOR_ADDRESS"):
        find_process()
    surroundings(**ADDRESS)
    assert find_process()[:3] == ("first:1234", 1, 2)


def test_what_is_wrong_is_named(surroundings):
    surroundings(**ADDRESS)
    with pytest.raises(StartError, match="JAX_NUM_PROCESSES, JAX_PROCESS_ID is not set and no cluster tells"):
        find_process()
    surroundings(JAX_NUM_PROCESSES="two", JAX_PROCESS_ID="0")
    with pytest.raises(StartError, match="JAX_NUM_PROCESSES='two' is not a number"):
        find_process()
    surroundings(JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="2")
    with pytest.raises(StartError, match="process 2 of 2: numbers run from 0 to 1"):
        find_process()
    surroundings(JAX_PROCESS_ID="1", JAX_COORDINATOR_ADDRESS="first")
    with pytest.raises(StartError, match="'first' is not host:port"):
        find_process()
