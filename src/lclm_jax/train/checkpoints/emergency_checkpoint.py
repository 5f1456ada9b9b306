"""Emergency checkpoints on each machine's own disk, between the checkpoints on shared storage.

Each process writes the shards of its own devices to one safetensors file. One can be used when every process still
has its file of the same step and the mesh is the same: the usual restart after a crash, without the wait for, or the
steps since, the last real checkpoint. Anything else falls back to the checkpoints.
"""

import json
import logging
import threading
from pathlib import Path
from typing import Self

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.tree_util import KeyEntry
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lclm_jax.files import replacing
from lclm_jax.train.checkpoints.integrity import fingerprint
from lclm_jax.train.core.freeze import path_name
from lclm_jax.train.core.state import TrainState
from lclm_jax.types import JsonObject, PyTree

logger = logging.getLogger(__name__)


class EmergencyCheckpoints:
    """The copies of one stage; ``folder=None`` keeps none."""

    def __init__(self, folder: Path | None):
        self._folder = folder
        self._writing: threading.Thread | None = None
        self._end = f".process-{jax.process_index()}-of-{jax.process_count()}.safetensors"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def due(self, done: int, every: int) -> bool:
        """Whether a copy is to be made after ``done`` updates."""
        return self._folder is not None and done % every == 0

    def save(self, state: TrainState, step: int, meta: JsonObject) -> None:
        """Bring this process's shards to the host and write them in the background; older copies go after it."""
        assert self._folder is not None
        self.wait()
        shards: dict[str, jax.Array] = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(state._asdict()):
            for shard in leaf.addressable_shards:
                shards.setdefault(_key(path_name(path), shard.index), shard.data)
        tensors = {name: np.asarray(data) for name, data in jax.device_get(shards).items()}
        meta = {**meta, "fingerprint": fingerprint(state._asdict())}
        self._writing = threading.Thread(target=self._write, args=(tensors, step, meta), name="emergency checkpoint")
        self._writing.start()

    def wait(self) -> None:
        """Block until the copy in progress is written."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def newest(self) -> int | None:
        """Step of the newest copy, if every process has that of the same step."""
        mine = max(self._steps(), default=-1)
        if jax.process_count() == 1:
            return mine if mine >= 0 else None
        with jax.transfer_guard("allow"):
            everyone = np.asarray(multihost_utils.process_allgather(np.array(mine)))
        return mine if mine >= 0 and bool((everyone == mine).all()) else None

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, JsonObject] | None:
        """(state, meta) of the copy of ``step``; None, with a warning, if it does not fit or is damaged."""
        path = self._path(step)
        try:
            with safe_open(path, framework="numpy") as file:
                meta = json.loads(file.metadata()["meta"])
                state = TrainState(**_assemble(file, abstract._asdict()))
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            logger.warning("the emergency checkpoint %s cannot be used (%s)", path, error)
            return None
        if fingerprint(state._asdict()) != meta.pop("fingerprint"):
            logger.warning("the emergency checkpoint %s is damaged", path)
            return None
        return state, meta

    def _path(self, step: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{step}{self._end}"

    def _steps(self) -> list[int]:
        if self._folder is None or not self._folder.is_dir():
            return []
        names = (path.name.removesuffix(self._end) for path in self._folder.glob(f"*{self._end}"))
        return [int(name) for name in names if name.isdigit()]

    def _write(self, tensors: dict[str, np.ndarray], step: int, meta: JsonObject) -> None:
        path = self._path(step)
        try:
            with replacing(path, durable=False) as partial:
                save_file(tensors, partial, metadata={"meta": json.dumps(meta)})
            for old in self._steps():
                if old < step:
                    self._path(old).unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            logger.warning("no emergency checkpoint of step %d: %s", step, error)


def _assemble(file: safe_open, abstract: PyTree) -> PyTree:
    """Arrays in the shardings of ``abstract`` from stored shards; raises ``KeyError`` where the mesh is another."""
    names = set(file.keys())

    def build(path: tuple[KeyEntry, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        where, pieces = leaf.sharding.addressable_devices_indices_map(leaf.shape), []
        for device, index in where.items():
            name = _key(path_name(path), index)
            if name not in names:
                raise KeyError(f"{name} is not in it: the mesh is another")
            pieces.append(jax.device_put(file.get_tensor(name), device))
        return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, pieces)

    return jax.tree_util.tree_map_with_path(build, abstract)


def _key(path: str, index: tuple[slice, ...]) -> str:
    return f"{path}@" + ",".join(f"{part.start or 0}:{'' if part.stop is None else part.stop}" for part in index)
