"""Mesh, the one sharding table, and multi-process start-up."""

from lclm_jax.parallel.mesh import AXES, make_mesh, row_parts, use_mesh
from lclm_jax.parallel.processes import EXIT_LOST, agreed, joined
from lclm_jax.parallel.shard_map import axis_names, mapped
from lclm_jax.parallel.sharding import ENCODER_ROWS, batch_sharding, constrain, params_sharding, spec_for, widest
from lclm_jax.parallel.validate_mesh import check_fits
from lclm_jax.parallel.xla_workarounds import avoid_known_faults

avoid_known_faults()

__all__ = [
    "AXES",
    "ENCODER_ROWS",
    "EXIT_LOST",
    "agreed",
    "axis_names",
    "batch_sharding",
    "check_fits",
    "constrain",
    "joined",
    "make_mesh",
    "mapped",
    "params_sharding",
    "row_parts",
    "spec_for",
    "use_mesh",
    "widest",
]
