"""Device-local code inside a sharded program: ``jax.shard_map`` by logical axis names."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from lclm_jax.errors import LclmError
from lclm_jax.parallel.sharding import LOGICAL_AXIS_RULES, checked_spec, spec_for

Axes = tuple[str | None, ...]
"""Logical names of all axes of one array; None: not sharded."""


def logical_shard_map(function: Callable[..., Any], in_axes: Sequence[Axes], out_axes: Any) -> Callable[..., Any]:
    """``function``, run by every device of the current mesh on its own pieces of the arguments.

    What it needs of other devices it asks for itself, by the mesh axes that ``axis_names`` gives. The partitioner
    cannot look into kernels: call them through this. An output that does not name a mesh axis must be equal on all
    devices along it; nothing checks that. Gradients pass (arguments' are summed over the axes they do not name).

    Args:
        function: takes one array or None per entry of ``in_axes``.
        in_axes: of each argument, what to call its axes, as in ``constrain``.
        out_axes: the same for the result: one tuple of names, or a pytree (a tuple of tuples) of them.

    Returns:
        A function of the same arguments, global arrays in and out; acts under ``use_mesh``.

    Raises:
        LclmError: (when called) as ``constrain``: no mesh, unknown name, wrong rank, indivisible size; or a number of
            arguments other than that of ``in_axes``.
    """
    out_specs = jax.tree.map(spec_for, out_axes, is_leaf=_is_axes)

    def call(*arguments: jax.Array | None) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            raise LclmError("logical_shard_map needs a mesh; run inside `with use_mesh(make_mesh(config.mesh)):`")
        if len(arguments) != len(in_axes):
            raise LclmError(f"{len(arguments)} arguments for in_axes of {len(in_axes)}; name the axes of each argument")
        in_specs = tuple(
            jax.sharding.PartitionSpec() if x is None else checked_spec(mesh, axes, x.shape, f"argument {number}")
            for number, (x, axes) in enumerate(zip(arguments, in_axes, strict=True))
        )
        # Without check_vma: kernels do not say along which axes their results vary.
        return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*arguments)

    return call


def axis_names(*logical_axes: str) -> tuple[str, ...]:
    """Mesh axes that shard these logical axes: what a collective inside ``logical_shard_map`` runs over.

    ``axis_names("batch", "seq")`` are those over which a loss per position is to be summed.
    """
    spec_for(logical_axes)
    return tuple(axis for name in logical_axes for axis in LOGICAL_AXIS_RULES[name])


def _is_axes(node: Any) -> bool:
    return isinstance(node, tuple) and all(name is None or isinstance(name, str) for name in node)
