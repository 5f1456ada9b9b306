"""The one table from logical axis names to mesh axes, and what is derived from it."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lclm_jax.batch import Batch
from lclm_jax.config.nearest import suggestion

# Activations first, then parameters. An empty tuple: the axis is not sharded.
TABLE: dict[str, tuple[str, ...]] = {
    "batch": ("replica", "fsdp"),
    "encoder_rows": ("replica", "fsdp"),
    "seq": ("context",),
    "kv_seq": (),
    "encoder_seq": (),
    "latents": (),
    "embed": (),
    "head_dim": (),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "layers": (),
    "param_embed": ("fsdp",),
    "param_latent": ("fsdp",),
    "param_out": ("tensor",),
    "memory_row": (),
    "lora_rank": (),
    "norm": (),
}


def spec_for(logical_axes: Sequence[str | None]) -> PartitionSpec:
    """Partition of an array with these logical axes; None is an axis that is not sharded.

    Raises:
        ValueError: a name is not in the table, or two axes would use the same mesh axis.
    """
    parts: list[Any] = []
    used: dict[str, str] = {}
    for name in logical_axes:
        if name is not None and name not in TABLE:
            raise ValueError(f"logical axis {name!r} is not in parallel.sharding.TABLE; {suggestion(name, TABLE)}")
        mesh_axes = () if name is None else TABLE[name]
        for axis in mesh_axes:
            if axis in used:
                raise ValueError(
                    f"logical axes {used[axis]!r} and {name!r} both use mesh axis {axis!r}; an array may use it once:"
                    " rename one of the two axes"
                )
            used[axis] = str(name)
        parts.append(None if not mesh_axes else mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes)
    return PartitionSpec(*parts)


def constrain(x: jax.Array, *logical_axes: str | None) -> jax.Array:
    """Pin the sharding of ``x`` by logical axis names; acts under ``use_mesh`` and raises without it.

    Raises:
        ValueError: no mesh, unknown name, wrong number of names, a mesh axis used twice, or a size that its mesh
            axes do not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        raise ValueError("constrain needs a mesh; run inside `with use_mesh(make_mesh(config.mesh)):`")
    spec = checked_spec(mesh, logical_axes, x.shape, "array")
    return jax.lax.with_sharding_constraint(x, spec)


def batch_sharding(mesh: Mesh, markers: bool = False) -> Batch:
    """Shardings of a batch: rows over replica and fsdp; ``markers``: the batch has ``marker_index`` (eos)."""
    rows = NamedSharding(mesh, spec_for(("batch",)))
    shardings = Batch(*[rows] * (len(Batch._fields) - 1))
    return shardings._replace(marker_index=rows) if markers else shardings


def params_sharding(mesh: Mesh, logical_axes: Any, shapes: Any) -> Any:
    """Shardings of a pytree of parameters from its ``logical_axes`` (tuples of names) and ``shapes``.

    ``shapes`` is a pytree of arrays or ``jax.ShapeDtypeStruct``. Raises ``ValueError`` as ``constrain`` does.
    """

    def place(path, axes, leaf):
        where = "/".join(str(getattr(entry, "key", entry)) for entry in path)
        return NamedSharding(mesh, checked_spec(mesh, axes, leaf.shape, where))

    return jax.tree_util.tree_map_with_path(place, logical_axes, shapes, is_leaf=lambda node: isinstance(node, tuple))


def checked_spec(mesh: Any, logical_axes: Sequence[str | None], shape: tuple[int, ...], what: str) -> PartitionSpec:
    """Partition of an array of ``shape`` on ``mesh``; errors, which call the array ``what``, as ``constrain``'s."""
    if len(logical_axes) != len(shape):
        raise ValueError(
            f"{what} of shape {tuple(shape)} has {len(shape)} axes and {len(logical_axes)} names {tuple(logical_axes)}"
            " were given; name every axis (None: not sharded)"
        )
    spec = spec_for(logical_axes)
    for name, size, part in zip(logical_axes, shape, spec, strict=True):
        mesh_axes = () if part is None else part if isinstance(part, tuple) else (part,)
        devices = math.prod(mesh.shape[axis] for axis in mesh_axes)
        if size % devices:
            raise ValueError(
                f"axis {name!r} of {what} {tuple(shape)} has size {size}, not a multiple of the {devices} devices of"
                f" mesh axes {mesh_axes}; change the size or mesh.{mesh_axes[-1]}"
            )
    return spec
