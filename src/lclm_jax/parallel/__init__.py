"""Mesh, the one sharding table, and multi-process start-up."""

from lclm_jax.parallel.mesh import AXES, batch_parts, make_mesh, row_parts, use_mesh, without_context
from lclm_jax.parallel.processes import (
    EXIT_LOST,
    broadcast_from_process_0,
    gather_to_process_0,
    join_processes,
    wait_for_all,
)
from lclm_jax.parallel.sharding import (
    ENCODER_ROWS,
    axis_names,
    batch_sharding,
    constrain,
    logical_shard_map,
    params_sharding,
    spec_for,
    widest,
)
from lclm_jax.parallel.validate_mesh import validate_mesh
from lclm_jax.parallel.xla_workarounds import avoid_known_faults

avoid_known_faults()

__all__ = [
    "AXES",
    "ENCODER_ROWS",
    "EXIT_LOST",
    "axis_names",
    "batch_parts",
    "batch_sharding",
    "broadcast_from_process_0",
    "constrain",
    "gather_to_process_0",
    "join_processes",
    "logical_shard_map",
    "make_mesh",
    "params_sharding",
    "row_parts",
    "spec_for",
    "use_mesh",
    "validate_mesh",
    "wait_for_all",
    "widest",
    "without_context",
]
