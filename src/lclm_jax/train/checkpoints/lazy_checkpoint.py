"""Parameters of a checkpoint read slice by slice, so that no more of them is in memory than is asked for.

Export of a model that no single host could hold goes through here; training restores through ``checkpoint``.
"""

import json
from pathlib import Path

import jax
import numpy as np
import tensorstore as ts
from jax.tree_util import KeyEntry

from lclm_jax.paths import kvstore_spec
from lclm_jax.train.checkpoints.checkpoint import CheckpointError
from lclm_jax.train.core.freeze import path_name
from lclm_jax.train.core.optimizer import EMA
from lclm_jax.types import JsonObject, PyTree


class LazyCheckpoint:
    """The leaves of ``STEP/params`` of a checkpoint that Orbax wrote; nothing is read until ``read``.

    Args:
        folder: the checkpoint's folder, named by its step.
        ema: read the averages (``rest/opt_state/ema``) of the leaves that have one: those that the stage trained.

    Raises:
        CheckpointError: the folder is no checkpoint, is damaged, or has no averages.
    """

    def __init__(self, folder: Path, ema: bool = False):
        self._stores = _Item(folder.absolute() / "params").stores()
        self.folder = folder.absolute() / "params"
        if ema:
            averages = _Item(folder.absolute() / "rest").stores(f"opt_state/{EMA}/")
            if not averages:
                raise CheckpointError(f"{folder} has no averages: train.optimizer.ema_decay was null; leave out --ema")
            self._stores |= averages

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Path of every leaf and its shape."""
        return {name: tuple(store.shape) for name, store in self._stores.items()}

    def placed(self, abstract: PyTree) -> PyTree:
        """All leaves of a tree of ``jax.ShapeDtypeStruct``: on the devices of their shardings, or on the host."""

        def place(path: tuple[KeyEntry, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array | np.ndarray:
            name = path_name(path)
            if leaf.sharding is None:
                return self.read(name).astype(leaf.dtype)

            def piece(index: tuple[int | slice, ...] | None) -> np.ndarray:
                return self.read(name, index or ()).astype(leaf.dtype)

            return jax.make_array_from_callback(leaf.shape, leaf.sharding, piece)

        return jax.tree_util.tree_map_with_path(place, abstract)

    def read(self, path: str, index: tuple[int | slice, ...] = ()) -> np.ndarray:
        """``leaf[index]``, float32; an empty ``index``: the whole leaf.

        Raises:
            CheckpointError: it cannot be read, or holds a value that is not finite.
        """
        try:
            array = self._stores[path][index].read().result() if index else self._stores[path].read().result()
        except (ValueError, OSError) as error:
            raise _damaged(self.folder, path, error) from error
        if not np.isfinite(array).all():
            where = f"checkpoint {self.folder.parent} holds a value that is not finite in {path}"
            raise CheckpointError(f"{where}; use an earlier one")
        return np.asarray(array, np.float32)


class _Item:
    """One Orbax item of a checkpoint."""

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            self._metadata = json.loads((folder / "_METADATA").read_text(encoding="utf-8"))
            self._names = [_name(entry["key_metadata"]) for entry in self._metadata["tree_metadata"].values()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{folder.parent} holds no readable parameters ({error}); use another checkpoint"
            ) from None

    def stores(self, prefix: str = "") -> dict[str, ts.TensorStore]:
        """Leaves whose path begins with ``prefix``, opened, by the rest of their path."""
        return {name.removeprefix(prefix): self._open(name) for name in self._names if name.startswith(prefix)}

    def _open(self, path: str) -> ts.TensorStore:
        name = path.replace("/", ".")
        store = kvstore_spec(self.folder / name)
        if self._metadata.get("use_ocdbt"):
            store = {"driver": "ocdbt", "base": kvstore_spec(self.folder), "path": f"{name}/"}
        driver = "zarr3" if self._metadata.get("use_zarr3") else "zarr"
        try:
            return ts.open({"driver": driver, "kvstore": store}, open=True, read=True).result()
        except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: a name that is no text
            raise _damaged(self.folder, path, error) from error


def _damaged(folder: Path, path: str, error: BaseException) -> CheckpointError:
    line = str(error).splitlines()[0][:300]
    return CheckpointError(f"{folder.parent}: {path} cannot be read ({line}); use another checkpoint")


def _name(keys: list[JsonObject]) -> str:
    return "/".join(str(entry["key"]) for entry in keys)
