"""The one table from logical axis names to mesh axes, and what follows from it: partitions, constraints, shard_map."""

import math
from collections.abc import Callable, Collection, Sequence

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import KeyPath

from lclm_jax.batch import TEACHER_ARRAYS, Batch
from lclm_jax.config.base import suggestion
from lclm_jax.errors import LclmError
from lclm_jax.types import PyTree

Axes = tuple[str | None, ...]
"""Logical names of all axes of one array; None: not sharded."""

# Activations first, then parameters. An empty tuple: the axis is not sharded.
LOGICAL_AXIS_RULES: dict[str, tuple[str, ...]] = {
    "batch": ("replica", "fsdp"),
    # Encoder rows are independent of each other, so every device takes some; ``widest`` picks one of these names.
    "encoder_rows": ("replica", "fsdp", "context", "tensor"),
    "encoder_rows_context": ("replica", "fsdp", "context"),
    "encoder_rows_tensor": ("replica", "fsdp", "tensor"),
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
    # Devices that share positions hold different shards of the parameters, as those that share rows do.
    "param_embed": ("fsdp", "context"),
    "param_latent": ("fsdp", "context"),
    "param_out": ("tensor",),
    # The encoder computes nothing over ``tensor``: its parameters are cut along its width alone and gathered at use.
    "encoder_embed": ("fsdp", "context", "tensor"),
    # ``mlp`` and ``encoder_mlp`` cut into as many pieces as the width would be, see ``ROWS_FIRST``.
    "param_mlp": ("tensor", "fsdp", "context"),
    "encoder_param_mlp": ("fsdp", "context", "tensor"),
    "encoder_heads": (),
    "encoder_mlp": (),
    "encoder_vocab": (),
    "memory_row": (),
    "lora_rank": (),
    "norm": (),
}

ROWS_FIRST: dict[Axes, Axes] = {
    ("mlp", "param_embed"): ("param_mlp", "embed"),
    ("encoder_mlp", "encoder_embed"): ("encoder_param_mlp", "embed"),
}
"""Kernels whose pieces are whole rows where the devices divide them, by the two logical axes they are declared with.

Cut along the width a piece of ``mlp/down`` is a few columns (10 of 2,560 on 256 chips), and every gather is followed by
a copy that puts them side by side: 1.3 ms of 16.5 of a layer of Qwen3-4B on v6e, by the compiler's estimate. Pieces of
whole rows already lie in order.
"""


def stored_axes(mesh: Mesh | AbstractMesh, logical_axes: Axes, shape: Sequence[int]) -> Axes:
    """Logical names of a parameter as it is stored on ``mesh``: those declared, or rows first (``ROWS_FIRST``)."""
    rows_first = ROWS_FIRST.get(logical_axes[-2:])
    if rows_first is None or shape[-2] % _pieces(mesh, rows_first[0]):
        return logical_axes
    return (*logical_axes[:-2], *rows_first)


def spec_for(logical_axes: Sequence[str | None]) -> PartitionSpec:
    """Partition of an array with these logical axes; None is an axis that is not sharded.

    Raises:
        LclmError: a name is not in the table, or two axes would use the same mesh axis.
    """
    parts: list[str | tuple[str, ...] | None] = []
    used: dict[str, str] = {}
    for name in logical_axes:
        if name is not None and name not in LOGICAL_AXIS_RULES:
            raise LclmError(
                f"logical axis {name!r} is not in parallel.sharding.LOGICAL_AXIS_RULES;"
                f" {suggestion(name, LOGICAL_AXIS_RULES)}"
            )
        mesh_axes = () if name is None else LOGICAL_AXIS_RULES[name]
        for axis in mesh_axes:
            if axis in used:
                raise LclmError(
                    f"logical axes {used[axis]!r} and {name!r} both use mesh axis {axis!r}; an array may use it once:"
                    " rename one of the two axes"
                )
            used[axis] = str(name)
        parts.append(None if not mesh_axes else mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes)
    return PartitionSpec(*parts)


def constrain(x: jax.Array, *logical_axes: str | None) -> jax.Array:
    """Pin the sharding of ``x`` by logical axis names; acts under ``use_mesh`` and raises without it.

    Raises:
        LclmError: no mesh, unknown name, wrong number of names, a mesh axis used twice, or a size that its mesh
            axes do not divide.
    """
    mesh = _current_mesh("constrain")
    spec = checked_spec(mesh, logical_axes, x.shape, "array")
    return jax.lax.with_sharding_constraint(x, spec)


def constrain_stored(x: jax.Array, *logical_axes: str | None) -> jax.Array:
    """``constrain`` to the sharding that ``params_sharding`` gives a parameter with these logical axes."""
    return constrain(x, *stored_axes(_current_mesh("constrain_stored"), logical_axes, x.shape))


ENCODER_ROWS = ("encoder_rows", "encoder_rows_context", "encoder_rows_tensor", "batch")
"""How encoder rows may be spread, widest first."""


def widest(names: Sequence[str], size: int, mesh: Mesh | AbstractMesh | None = None) -> str:
    """The name of ``names`` whose axis of ``size`` is cut into most pieces, all equal; the first of equals.

    The names differ in their mesh axes. None divides: the last, which ``constrain`` then refuses. ``mesh``: None is
    the current one.
    """
    mesh = _current_mesh("widest") if mesh is None else mesh
    pieces = {name: _pieces(mesh, name) for name in names}
    fitting = [name for name in names if size % pieces[name] == 0]
    return max(fitting, key=pieces.__getitem__) if fitting else names[-1]


def batch_sharding(
    mesh: Mesh,
    markers: bool = False,
    objectives: bool = False,
    teacher: Collection[str] = (),
    span_ratios: bool = False,
) -> Batch:
    """Shardings of a batch: rows as ``batch``, positions of the decoder's arrays as ``seq``.

    Encoder arrays lie with their packed row, whole: they are small, and devices pick their encoder rows from them.
    ``markers``: the batch has ``marker_index`` (eos); ``objectives``: it has those; ``teacher``: which of
    ``TEACHER_ARRAYS`` it has; ``span_ratios``: it has ``latent_ratios``.
    """
    rows, positions = (NamedSharding(mesh, spec_for(axes)) for axes in (("batch",), ("batch", "seq")))
    decoder = ["decoder_tokens", "decoder_segments", "decoder_positions", "targets", "loss_weights", "latent_index"]
    decoder += ["objectives", *TEACHER_ARRAYS]
    absent = {"marker_index": markers, "latent_ratios": span_ratios, "objectives": objectives}
    absent |= {name: name in teacher for name in TEACHER_ARRAYS}
    shardings = Batch(**{name: positions if name in decoder else rows for name in Batch._fields})
    return shardings._replace(**{name: None for name, there in absent.items() if not there})


def params_sharding(mesh: Mesh, logical_axes: PyTree, shapes: PyTree) -> PyTree:
    """Shardings of a pytree of parameters from its ``logical_axes`` (tuples of names) and ``shapes``.

    ``shapes`` is a pytree of arrays or ``jax.ShapeDtypeStruct``. Raises ``LclmError`` as ``constrain`` does.
    """

    def place(path: KeyPath[object], axes: Axes, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        where = "/".join(str(getattr(entry, "key", entry)) for entry in path)
        return NamedSharding(mesh, checked_spec(mesh, stored_axes(mesh, axes, leaf.shape), leaf.shape, where))

    return jax.tree_util.tree_map_with_path(place, logical_axes, shapes, is_leaf=lambda node: isinstance(node, tuple))


def checked_spec(
    mesh: Mesh | AbstractMesh, logical_axes: Sequence[str | None], shape: tuple[int, ...], what: str
) -> PartitionSpec:
    """Partition of an array of ``shape`` on ``mesh``; errors, which call the array ``what``, as ``constrain``'s."""
    if len(logical_axes) != len(shape):
        raise LclmError(
            f"{what} of shape {tuple(shape)} has {len(shape)} axes and {len(logical_axes)} names {tuple(logical_axes)}"
            " were given; name every axis (None: not sharded)"
        )
    spec = spec_for(logical_axes)
    for name, size, part in zip(logical_axes, shape, spec, strict=True):
        mesh_axes = () if part is None else part if isinstance(part, tuple) else (part,)
        devices = math.prod(mesh.shape[axis] for axis in mesh_axes)
        if size % devices:
            raise LclmError(
                f"axis {name!r} of {what} {tuple(shape)} has size {size}, not a multiple of the {devices} devices of"
                f" mesh axes {mesh_axes}; change the size or mesh.{mesh_axes[-1]}"
            )
    return spec


def _pieces(mesh: Mesh | AbstractMesh, name: str | None) -> int:
    return 1 if name is None else math.prod(mesh.shape[axis] for axis in LOGICAL_AXIS_RULES[name])


def _current_mesh(who: str) -> AbstractMesh:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        raise LclmError(f"{who} needs a mesh; run inside `with use_mesh(make_mesh(config.mesh)):`")
    return mesh


def logical_shard_map(
    function: Callable[..., PyTree], in_axes: Sequence[Axes], out_axes: PyTree
) -> Callable[..., PyTree]:
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

    def call(*arguments: jax.Array | None) -> PyTree:
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

    ``axis_names("batch", "seq")`` are those over which a loss per position is to be summed. Axes of one device are left
    out: a collective over one is nothing, but XLA on CPUs copies for it.
    """
    spec_for(logical_axes)
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    names = (axis for name in logical_axes for axis in LOGICAL_AXIS_RULES[name])
    return tuple(axis for axis in names if sizes.get(axis) != 1)


def _is_axes(node: object) -> bool:
    return isinstance(node, tuple) and all(name is None or isinstance(name, str) for name in node)
