"""Several processes that form one run: how they find each other, and what happens when one is lost."""

import atexit
import itertools
import json
import logging
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, TypeVar, cast

import jax
from jax._src import distributed  # its client stores small values for all processes; there is no public door to it
from jax._src.clusters import ClusterEnv  # the public jax.distributed.initialize detects and connects in one go

from lclm_jax.config.train import ProcessesConfig
from lclm_jax.parallel.rendezvous import GRACE_SECONDS, ProcessInfo, StartError, rendezvous

logger = logging.getLogger(__name__)

EXIT_LOST = 75
"""Exit status of a process that stopped because another is lost; 75 (EX_TEMPFAIL) always means: start again."""

Value = TypeVar("Value")

_FOREVER_MS = 7 * 24 * 3600 * 1000
_agreements: dict[str, Iterator[int]] = defaultdict(itertools.count)

_ADDRESS, _COUNT, _RANK = VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# Open MPI 5 gives every process its number, but no address that JAX 0.10 and 0.11 know.
_MPI_COUNT, _MPI_RANK = "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"


@contextmanager
def join_processes(settings: ProcessesConfig) -> Iterator[ProcessInfo | None]:
    """Join the other processes of a run on entry, leave them on exit.

    Call it before anything else touches JAX's devices. Yields what this process knows of itself; None: it is
    alone. When another process is lost, this one logs which and ends with status 75 (``EXIT_LOST``).

    Raises:
        StartError: the environment is incomplete, or not all processes connected in time.
    """
    process = find_process(settings.start_timeout_seconds)
    if process is None:
        yield None
        return
    logger.info(
        "process %d of %d (%s), coordinator %s", process.rank, process.total, process.source, process.coordinator
    )
    watch = rendezvous(process, settings.start_timeout_seconds, settings.lost_timeout_seconds, _stop)
    failure: str | None = None
    try:
        _connect(process, settings)
        yield process
    except jax.errors.JaxRuntimeError as error:
        watch.wait_for_cause(GRACE_SECONDS)
        failure = _failed(error)
        raise
    except (Exception, KeyboardInterrupt) as error:
        failure = _failed(error)
        raise
    finally:
        watch.leave(failure)
        if failure is not None:
            # JAX's own shutdown waits for all, and aborts a process whose peers have exited. (Handlers registered last
            # run first, so this comes before it.)
            atexit.register(_end, 1)
            atexit.register(watch.outlast_peers)


def broadcast_from_process_0(what: str, value: Value) -> Value:
    """The value that process 0 passed, in every process, so that all decide alike on what only disks and clocks tell.

    All processes call it equally often for the same ``what``, with values that JSON can hold. It waits for process 0
    however long that takes: ``join_processes`` ends the process if process 0 is lost.
    """
    if jax.process_count() == 1:
        return value
    client = distributed.global_state.client
    assert client is not None, "several processes are connected by jax.distributed"
    key = f"lclm/agreed/{what}/{next(_agreements[what])}"
    if jax.process_index() == 0:
        client.key_value_set(key, json.dumps(value))
        return value
    return cast(Value, json.loads(client.blocking_key_value_get(key, _FOREVER_MS)))


def gather_to_process_0(what: str, value: Value) -> list[Value] | None:
    """In process 0 the values of all processes, in the order of their numbers; None in the others.

    All processes call it equally often for the same ``what``, with values that JSON can hold. Process 0 waits for all:
    ``join_processes`` ends it if one is lost.
    """
    if jax.process_count() == 1:
        return [value]
    client = distributed.global_state.client
    assert client is not None, "several processes are connected by jax.distributed"
    key = f"lclm/gathered/{what}/{next(_agreements[what])}"
    if jax.process_index() != 0:
        client.key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
        return None
    others = [client.blocking_key_value_get(f"{key}/{rank}", _FOREVER_MS) for rank in range(1, jax.process_count())]
    client.key_value_delete(f"{key}/")  # of thousands of processes, often: they would fill the service's memory
    return [value, *(cast(Value, json.loads(text)) for text in others)]


def wait_for_all(what: str) -> None:
    """Return once all processes have come here; nothing but the coordination service takes part."""
    if jax.process_count() == 1:
        return
    client = distributed.global_state.client
    assert client is not None, "several processes are connected by jax.distributed"
    client.wait_at_barrier(f"lclm/barrier/{what}/{next(_agreements[what])}", _FOREVER_MS)


def find_process(timeout: float = 300) -> ProcessInfo | None:
    """What this process knows of itself among the others; None if it is alone.

    The plain variables ``JAX_COORDINATOR_ADDRESS`` (host:port of process 0), ``JAX_NUM_PROCESSES`` and
    ``JAX_PROCESS_ID`` win; what they leave open is read from SLURM, Open MPI, Kubernetes or Cloud TPU, as JAX detects
    them. ``JAX_NUM_PROCESSES=1`` alone says that this process is alone, whatever the cluster says.

    Raises:
        StartError: only a part of this is known, or a number is not one.
    """
    address, count, rank = os.environ.get(_ADDRESS) or None, _number(_COUNT), _number(_RANK)
    if count == 1:
        return None
    if address is not None and count is not None and rank is not None:
        return _checked(address, rank, count, "plain variables")
    plain = [name for name in VARIABLES if os.environ.get(name)]
    if count is None and rank is None:
        count, rank = _number(_MPI_COUNT), _number(_MPI_RANK)
        if count == 1:
            return None
        if address is not None and count is not None and rank is not None:
            own = _number("OMPI_COMM_WORLD_LOCAL_RANK")
            return _checked(address, rank, count, "Open MPI", _own_devices(None if own is None else [own]))
    try:
        detect = ClusterEnv.auto_detect_unset_distributed_params
        address, count, rank, local = detect(address, count, rank, None, None, int(timeout))
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise StartError(
            f"the cluster's description of this process cannot be read ({error}); set {', '.join(VARIABLES)}"
        ) from error
    if count == 1 or (not plain and count is None):
        return None
    if address is None or count is None or rank is None:
        known = zip((address, count, rank), VARIABLES, strict=True)
        missing = [name for value, name in known if value is None]
        raise StartError(
            f"this is one of several processes ({', '.join(plain) or _MPI_COUNT} says so), but {', '.join(missing)} is"
            " not set and no cluster tells; set it, or JAX_NUM_PROCESSES=1 for a process on its own"
        )
    return _checked(address, rank, count, "found by JAX's cluster detection", _own_devices(local))


def _own_devices(detected: Sequence[int] | None) -> list[int] | None:
    """GPUs of this process. JAX gives every task of SLURM or Open MPI one, even a task that has the machine to itself.

    A task that sees one GPU only was given it by the launcher, as number 0.
    """
    alone = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    if tasks := os.environ.get("SLURM_STEP_TASKS_PER_NODE", os.environ.get("SLURM_TASKS_PER_NODE")):
        alone = {part.partition("(")[0] for part in tasks.split(",")} == {"1"}  # such as "1(x8)" or "2,1"
    bound = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return None if detected is None or alone or (bound and "," not in bound) else list(detected)


def _checked(address: str, rank: int, count: int, source: str, local: list[int] | None = None) -> ProcessInfo:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise StartError(f"coordinator address {address!r} is not host:port; set {_ADDRESS}=HOST:PORT")
    if rank >= count:
        raise StartError(f"process {rank} of {count}: numbers run from 0 to {count - 1}; set {_RANK} or {_COUNT}")
    return ProcessInfo(address, rank, count, source, local)


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    if not text.isdigit():
        raise StartError(f"{name}={text!r} is not a number; set it to an integer from 0")
    return int(text)


def _connect(process: ProcessInfo, settings: ProcessesConfig) -> None:
    jax.distributed.initialize(
        process.coordinator,
        process.total,
        process.rank,
        local_device_ids=process.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=settings.start_timeout_seconds,
        heartbeat_timeout_seconds=settings.lost_timeout_seconds,
    )


def _failed(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return f"failed: {text.splitlines()[0][:300]}"


def _stop(what: str) -> NoReturn:
    """End this process at once: its main thread may wait for the lost one for ever."""
    logger.critical("%s; stopping. Start all processes again: they go on from the last checkpoint", what)
    _end(EXIT_LOST)


def _end(status: int) -> NoReturn:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
