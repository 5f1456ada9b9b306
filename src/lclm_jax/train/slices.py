"""Parameters of a checkpoint read slice by slice, so that no more of them is in memory than is asked for.

Export of a model that no single host could hold goes through here; training restores through ``train.checkpoint``.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from lclm_jax.train.checkpoint import CheckpointError


class SavedParams:
    """The leaves of ``STEP/params`` of a checkpoint that Orbax wrote; nothing is read until ``read``.

    Args:
        folder: the checkpoint's folder, named by its step.

    Raises:
        CheckpointError: the folder is no checkpoint, or is damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder.absolute() / "params"
        try:
            self._metadata = json.loads((self.folder / "_METADATA").read_text(encoding="utf-8"))
            names = [_name(entry["key_metadata"]) for entry in self._metadata["tree_metadata"].values()]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder} holds no readable parameters ({error}); use another checkpoint") from None
        self._stores = {name: self._open(name) for name in names}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Path of every leaf and its shape."""
        return {name: tuple(store.shape) for name, store in self._stores.items()}

    def read(self, path: str, index: tuple[int | slice, ...] = ()) -> np.ndarray:
        """``leaf[index]``, float32; an empty ``index``: the whole leaf.

        Raises:
            CheckpointError: it cannot be read, or holds a value that is not finite.
        """
        try:
            array = self._stores[path][index].read().result() if index else self._stores[path].read().result()
        except (ValueError, OSError) as error:
            raise self._damaged(path, error) from error
        if not np.isfinite(array).all():
            where = f"checkpoint {self.folder.parent} holds a value that is not finite in {path}"
            raise CheckpointError(f"{where}; use an earlier one")
        return np.asarray(array, np.float32)

    def _open(self, path: str) -> Any:
        name = path.replace("/", ".")
        store: dict[str, Any] = {"driver": "file", "path": f"{self.folder}/{name}/"}
        if self._metadata.get("use_ocdbt"):
            store = {"driver": "ocdbt", "base": f"file://{self.folder}", "path": f"{name}/"}
        driver = "zarr3" if self._metadata.get("use_zarr3") else "zarr"
        try:
            return ts.open({"driver": driver, "kvstore": store}, open=True, read=True).result()
        except (ValueError, OSError) as error:
            raise self._damaged(path, error) from error

    def _damaged(self, path: str, error: BaseException) -> CheckpointError:
        line = str(error).splitlines()[0][:300]
        return CheckpointError(f"{self.folder.parent}: {path} cannot be read ({line}); use another checkpoint")


def _name(keys: list[dict[str, Any]]) -> str:
    return "/".join(str(entry["key"]) for entry in keys)
