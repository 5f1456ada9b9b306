"""Where parameters come from, behind one small interface: memory, or a folder of safetensors, block by block."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from lclm_jax.interop.hf_weight_map import MEMORY_ROWS_PATH, TABLE_PATH, Tensor, flatten, leaf
from lclm_jax.interop.safetensors_io import CheckpointError, TensorFolder
from lclm_jax.types import Params


class Leaves(Protocol):
    """Parameters that can be read piece by piece (``LazyCheckpoint`` is one)."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Path of every leaf and its shape."""
        ...

    def read(self, path: str, index: tuple[int | slice, ...] = ()) -> np.ndarray:
        """``leaf[index]``."""
        ...


class LeavesInMemory:
    """Nested parameters: NumPy or JAX arrays."""

    def __init__(self, params: Params):
        self._params = params

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Path of every leaf and its shape."""
        return {path: tuple(value.shape) for path, value in flatten(self._params)}

    def read(self, path: str, index: tuple[int | slice, ...] = ()) -> np.ndarray:
        """``leaf[index]``, on the host."""
        value = leaf(self._params, path)
        return np.asarray(value[index] if index else value)


class FolderBlocks:
    """Tensors of one folder of safetensors, checked against the table, read in blocks as float32.

    Args:
        source: the folder.
        table: the tensors that it must hold.

    Raises:
        CheckpointError: with the full difference if tensors are missing, unexpected or misshaped, or if a tied
            decoder is stored with a head that is not its table.
    """

    def __init__(self, source: TensorFolder, table: Sequence[Tensor]):
        compare_with_table(source, table)
        self.source, self.table = source, table

    def read(self, tensor: Tensor, rows: slice) -> np.ndarray:
        """``rows`` of the file's tensor in our layout; raises ``CheckpointError`` if a value is not finite."""
        return tensor.to_ours(self.stored(tensor, rows).astype(np.float32))

    def stored(self, tensor: Tensor, rows: slice) -> np.ndarray:
        """``rows`` of the file's tensor as they are stored; raises ``CheckpointError`` if a value is not finite."""
        array = self.source.read(tensor.name, None if rows == slice(0, tensor.shape[0]) else rows)
        if not np.isfinite(array.astype(np.float32, copy=False)).all():
            folder = self.source.folder
            raise CheckpointError(f"{folder}: {tensor.name} holds NaN or infinity; use an undamaged checkpoint")
        return array


class LeavesInFolders:
    """The leaves of a complete model in ``FolderBlocks`` of its parts; the memory rows are rows of the table."""

    def __init__(self, parts: Sequence[FolderBlocks], memory_ids: Sequence[int]):
        self._memory_ids = memory_ids
        self._at = {(tensor.path, tensor.layer): (part, tensor) for part in parts for tensor in part.table}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Path of every leaf and its shape."""
        return shapes_of([tensor for _, tensor in self._at.values()])

    def read(self, path: str, index: tuple[int | slice, ...] = ()) -> np.ndarray:
        """``leaf[index]``, float32, for the indices that ``Tensor.index`` makes."""
        if path == MEMORY_ROWS_PATH:
            part, tensor = self._at[TABLE_PATH, None]
            rows = np.concatenate([part.read(tensor, slice(row, row + 1)) for row in self._memory_ids])
            return rows[index] if index else rows
        layer = index[0] if index and isinstance(index[0], int) else None
        part, tensor = self._at[path, layer]
        cuts = [cut for cut in index if isinstance(cut, slice) and cut != slice(None)]
        return part.read(tensor, cuts[0] if cuts else slice(0, tensor.shape[0]))


class JoinedLeaves:
    """``leaves``, and those of ``memory`` (path -> array) beside them."""

    def __init__(self, leaves: Leaves, memory: Mapping[str, np.ndarray]):
        self._leaves, self._memory = leaves, memory

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Path of every leaf and its shape."""
        return {**self._leaves.shapes, **{path: array.shape for path, array in self._memory.items()}}

    def read(self, path: str, index: tuple[int | slice, ...] = ()) -> np.ndarray:
        """``leaf[index]``."""
        return self._memory[path][index] if path in self._memory else self._leaves.read(path, index)


def shapes_of(table: Sequence[Tensor]) -> dict[str, tuple[int, ...]]:
    """Path and shape of the leaves of ``table``, ``decoder/memory_rows`` with them if its table is there."""
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in table:
        layers = () if tensor.layer is None else (tensor.layer + 1,)
        shapes[tensor.path] = (*layers, *tensor.our_shape)
    if TABLE_PATH in shapes:
        shapes[MEMORY_ROWS_PATH] = (3, shapes[TABLE_PATH][1])
    return shapes


def compare_with_table(source: TensorFolder, table: Sequence[Tensor]) -> None:
    """Raise ``CheckpointError`` with the full difference unless ``source`` holds exactly the tensors of ``table``."""
    expected = {tensor.name: tensor.shape for tensor in table}
    found = {name: shape for name, shape in source.shapes.items() if not name.endswith("rotary_emb.inv_freq")}
    if "lm_head.weight" in found and "lm_head.weight" not in expected:
        _check_spare_head(source, table)
        del found["lm_head.weight"]
    lines = [f"missing {name} {expected[name]}" for name in sorted(expected.keys() - found.keys())]
    lines += [f"unexpected {name} {found[name]}" for name in sorted(found.keys() - expected.keys())]
    both = sorted(expected.keys() & found.keys())
    lines += [
        f"{n} has shape {found[n]}, the configuration says {expected[n]}" for n in both if found[n] != expected[n]
    ]
    if lines:
        text = "\n  ".join(lines)
        raise CheckpointError(f"{source.folder} does not hold the tensors that its configuration says:\n  {text}")


def _check_spare_head(source: TensorFolder, table: Sequence[Tensor]) -> None:
    """A tied decoder may be stored with its head, if that is the table; an encoder's head is never used."""
    tensor = next(tensor for tensor in table if tensor.path.endswith("embed/table"))
    if tensor.folder != "decoder" or tensor.name not in source.shapes:
        return
    same = source.shapes["lm_head.weight"] == source.shapes[tensor.name] and all(
        np.array_equal(source.read("lm_head.weight", rows), source.read(tensor.name, rows))
        for rows in tensor.row_blocks()
    )
    if not same:
        raise CheckpointError(
            f"{source.folder}: tie_word_embeddings is true, but lm_head.weight differs from {tensor.name};"
            " set tie_word_embeddings to false in config.json if the head is the model's"
        )
