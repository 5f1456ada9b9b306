"""The first stage's parameters from imported folders, straight into their places on the mesh.

Every device's shard is made on that device and filled block by block, so that the host holds one block (a layer of one
leaf, or some rows of a table) beside the parameters.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lclm_jax.config import BackboneConfig, Config, LoraConfig, MeshConfig, ModelConfig, RunPaths, result_values
from lclm_jax.interop.hf_config import read_backbone
from lclm_jax.interop.hf_weight_map import MEMORY_ROWS_PATH, Tensor, flatten, leaf, nest
from lclm_jax.interop.load import open_backbone, open_parts, read_model
from lclm_jax.interop.lora import FOLDER, TOWERS, read_peft
from lclm_jax.interop.param_source import FolderBlocks, LeavesInFolders
from lclm_jax.interop.safetensors_io import CheckpointError
from lclm_jax.model.lclm import init_params
from lclm_jax.parallel import make_mesh, use_mesh
from lclm_jax.paths import local_copy, to_path
from lclm_jax.text.sentencepiece import model_in
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.train.core.initial_state import params_shardings
from lclm_jax.types import JsonObject


def imported_params(config: Config, mesh: Mesh) -> JsonObject:
    """Sharded parameters from the folders of ``config.init``; leaves that no folder gives are random.

    Args:
        config: the run, ``model.memory_token_ids`` set.
        mesh: devices.

    Raises:
        CheckpointError: a folder is damaged, incomplete, of another shape than ``config.model``, or was made for
            another tokenizer than the run's; the message holds the full difference.
    """
    parts = _open_folders(config)
    shardings = dict(flatten(params_shardings(config.model, mesh)))
    leaves = LeavesInFolders(parts, config.model.memory_token_ids or ())
    small = read_peft(local_copy(to_path(config.init.lclm)), config.model) if config.init.lclm else {}
    if MEMORY_ROWS_PATH in leaves.shapes:
        small[MEMORY_ROWS_PATH] = leaves.read(MEMORY_ROWS_PATH)
    given = leaves.shapes.keys() | small.keys()
    found = _random_leaves(config, {path: at for path, at in shardings.items() if path not in given})
    tensors = [tensor for part in parts for tensor in part.table]
    found |= _fill(leaves, tensors, shardings, config.model.param_dtype)
    for path, array in small.items():
        array = array.astype(config.model.param_dtype)
        found[path] = jax.make_array_from_callback(array.shape, shardings[path], array.__getitem__)
    return nest({path: found[path] for path in shardings})


def _open_folders(config: Config) -> list[FolderBlocks]:
    init, model, paths = config.init, config.model, RunPaths(config)
    root = local_copy(to_path(init.lclm)) if init.lclm else None
    folders = {
        "decoder": (root / "decoder" if root else init.decoder, model.decoder, paths.decoder_tokenizer),
        "encoder": (root / "encoder" if root else init.encoder, model.encoder, paths.encoder_tokenizer),
    }
    for role, (folder, backbone, tokenizer) in folders.items():
        if folder is not None:
            _check_backbone(local_copy(to_path(folder)), role, backbone)
            _check_tokenizer(local_copy(to_path(folder)), role, tokenizer)
    if root is not None:
        stored = read_model(root)
        for name in ("pooling", "adapter") + (("ratio",) if model.pooling_row.width == "ratio" else ()):
            if getattr(stored, name) != getattr(model, name):
                raise CheckpointError(
                    f"{root} was made with {name}={getattr(stored, name)!r}, the run says {getattr(model, name)!r};"
                    f" set model.{name} to the former"
                )
        _check_lora(root, stored, model)
        return open_parts(root, model)
    return [
        open_backbone(local_copy(to_path(folder)), backbone, role)
        for role, (folder, backbone, _) in folders.items()
        if folder is not None
    ]


def _check_backbone(folder: Path, role: str, backbone: BackboneConfig) -> None:
    stored = result_values(read_backbone(folder))
    wanted = result_values(backbone)
    if role == "encoder":  # it has no output head
        stored["tie_embeddings"] = wanted["tie_embeddings"]
    lines = [f"model.{role}.{k}={wanted[k]!r}, the folder has {stored[k]!r}" for k in stored if stored[k] != wanted[k]]
    if lines:
        text = "\n  ".join(lines)
        raise CheckpointError(f"{folder} is another model than model.{role} says; set the folder's values:\n  {text}")


def _check_lora(root: Path, stored: ModelConfig, model: ModelConfig) -> None:
    """LoRA that a folder brings is never dropped; LoRA that it lacks starts fresh."""
    for tower in TOWERS:
        theirs, ours = getattr(stored.lora, tower), getattr(model.lora, tower)
        if theirs is not None and (ours is None or _without_dropout(theirs) != _without_dropout(ours)):
            raise CheckpointError(
                f"{root / FOLDER / tower} is LoRA of another kind than model.lora.{tower}={ours!r}; set that to"
                f" {json.dumps(theirs.model_dump(mode='json'))}, or merge it first: lclm export {root} OUT"
            )


def _without_dropout(lora: LoraConfig) -> JsonObject:
    return {"rank": lora.rank, "alpha": lora.alpha, "targets": set(lora.targets)}


def _check_tokenizer(folder: Path, role: str, tokenizer: Path) -> None:
    """The weights only know the ids of the tokenizer beside them; the run's may have more."""
    if not (folder / "tokenizer.json").is_file() and model_in(folder) is None:
        return
    theirs = Tokenizer(folder, memory_tokens=False).backend().get_vocab(with_added_tokens=True)
    ours = Tokenizer.from_folder(tokenizer).backend().get_vocab(with_added_tokens=True)
    moved = [token for token, index in theirs.items() if ours.get(token) != index]
    if moved:
        raise CheckpointError(
            f"{len(moved)} of {len(theirs)} tokens of {folder} have another id in the run's tokenizer {tokenizer}"
            f" ({moved[0]!r}: {theirs[moved[0]]}, not {ours.get(moved[0])}); set tokenizer.{role} to {folder}"
        )


def _random_leaves(config: Config, shardings: dict[str, NamedSharding]) -> dict[str, jax.Array]:
    """The leaves of ``shardings``, with the values that they would have in a wholly random model."""

    def init() -> dict[str, jax.Array]:
        params = init_params(config.model, jax.random.key(config.seed))
        return {path: leaf(params, path) for path in shardings}

    return jax.jit(init, out_shardings=shardings)() if shardings else {}


def _fill(
    leaves: LeavesInFolders, table: Sequence[Tensor], shardings: dict[str, NamedSharding], dtype: str
) -> dict[str, jax.Array]:
    by_path: dict[str, list[Tensor]] = {}
    for tensor in table:
        by_path.setdefault(tensor.path, []).append(tensor)
    found = {}
    for path, tensors in by_path.items():
        growing = _Shards(leaves.shapes[path], shardings[path], dtype)
        for index in _indices(tensors):
            growing.put(index, leaves.read(path, index))
        found[path] = growing.array()
    return found


class _Shards:
    """A leaf in the making: zeros on every device, filled block by block."""

    def __init__(self, shape: tuple[int, ...], sharding: NamedSharding, dtype: str):
        self._shape, self._sharding = shape, sharding
        places = sharding.addressable_devices_indices_map(shape)
        self._places = {device: place for device, place in places.items() if place is not None}
        # A shard is filled by its own device alone, whatever mesh the caller has entered.
        self._meshes = {device: make_mesh(MeshConfig(), [device]) for device in self._places}
        size = sharding.shard_shape(shape)
        self._shards = {device: jnp.zeros(size, dtype, device=device) for device in self._places}

    def put(self, index: tuple[int | slice, ...], block: np.ndarray) -> None:
        """Write ``block`` to ``leaf[index]`` and wait: dispatch that runs ahead would pile blocks up on the host."""
        for device, place in self._places.items():
            piece = _overlap(place, index, self._shape, block)
            if piece is not None:
                with use_mesh(self._meshes[device]):
                    self._shards[device] = _put(self._shards[device], *piece)
        jax.block_until_ready(list(self._shards.values()))

    def array(self) -> jax.Array:
        """The leaf."""
        shards = list(self._shards.values())
        return jax.make_array_from_single_device_arrays(self._shape, self._sharding, shards)


def _indices(tensors: Sequence[Tensor]) -> Iterator[tuple[int | slice, ...]]:
    for tensor in tensors:
        for rows in tensor.row_blocks():
            yield tensor.index(rows)


def _box(index: tuple[int | slice, ...], shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """(starts, sizes) of ``leaf[index]``, an index by an integer kept as an axis of size one."""
    starts, sizes = [0] * len(shape), list(shape)
    for axis, cut in enumerate(index):
        if isinstance(cut, int):
            starts[axis], sizes[axis] = cut, 1
        elif cut != slice(None):
            starts[axis], sizes[axis] = cut.start, cut.stop - cut.start
    return starts, sizes


def _overlap(
    place: Sequence[slice], index: tuple[int | slice, ...], shape: tuple[int, ...], block: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """The part of ``block`` (``leaf[index]``) that lies in the shard at ``place``, and where in it; None if nowhere."""
    starts, sizes = _box(index, shape)
    block = block.reshape(sizes)
    inside, cuts = [], []
    for start, size, axis, length in zip(starts, sizes, place, shape, strict=True):
        low, high, _ = axis.indices(length)
        first, last = max(start, low), min(start + size, high)
        if first >= last:
            return None
        inside.append(first - low)
        cuts.append(slice(first - start, last - start))
    return block[tuple(cuts)], np.array(inside, np.int32)


@functools.partial(jax.jit, donate_argnums=0)
def _put(shard: jax.Array, piece: jax.Array, at: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice(shard, piece.astype(shard.dtype), [at[axis] for axis in range(shard.ndim)])
