"""Start-up of several processes that form one run."""

import os

import jax

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialise() -> bool:
    """Join the other processes if the environment names a coordinator; whether it did.

    Reads ``JAX_COORDINATOR_ADDRESS`` (host:port), ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``. Call it before
    anything else touches JAX's devices.

    Raises:
        ValueError: only some of the three variables are set, or a number is not one.
    """
    given = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    if not given:
        return False
    missing = [name for name in _VARIABLES if name not in given]
    if missing:
        raise ValueError(f"{', '.join(given)} is set but {', '.join(missing)} is not; set all three or none")
    numbers = {}
    for name in _VARIABLES[1:]:
        if not given[name].isdigit():
            raise ValueError(f"{name}={given[name]!r} is not a number; set it to an integer from 0")
        numbers[name] = int(given[name])
    jax.distributed.initialize(
        coordinator_address=given["JAX_COORDINATOR_ADDRESS"],
        num_processes=numbers["JAX_NUM_PROCESSES"],
        process_id=numbers["JAX_PROCESS_ID"],
    )
    return True
