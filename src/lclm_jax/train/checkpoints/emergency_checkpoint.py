"""Emergency checkpoints on each machine's own disk, between the checkpoints on shared storage.

Each process writes the shards of its own devices to one safetensors file. The newest one that every process has whole,
on the same mesh, can be used: the usual restart after a crash, without the wait for, or the steps since, the last real
checkpoint. So can one that all processes of a replica have whole: the others, such as a new machine with an empty disk,
get it from there (``replicas``). Anything else falls back to the checkpoints.

The copies of a stage lie in ``LOCAL_DIR/RUN/STAGE/ID``. The id stands in the stage's folder, so neither a run that was
deleted and begun anew nor another run of the same name finds them.
"""

import contextlib
import json
import logging
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.tree_util import KeyEntry
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lclm_jax.config import Config, RunPaths
from lclm_jax.files import replacing, write_text
from lclm_jax.parallel import broadcast_from_process_0, gather_to_process_0
from lclm_jax.paths import is_remote
from lclm_jax.train.checkpoints.integrity import fingerprint
from lclm_jax.train.checkpoints.replicas import complete_replica, spread, steps_of_a_replica
from lclm_jax.train.core.freeze import path_name
from lclm_jax.train.core.state import TrainState
from lclm_jax.types import JsonObject, PyTree

logger = logging.getLogger(__name__)

NAME = "emergency-id.json"
"""In the stage's folder: the id of its copies, and the folder that it was made for."""
_OWNER = "stage-folder.txt"
"""Beside the copies: the stage's folder."""
_END = ".safetensors"
_MOST = 8
"""Copies of a process that are looked at, the newest; there are two."""

_Shards = dict[str, np.ndarray]
"""Shards of a process by ``_key``."""


class EmergencyCheckpoints:
    """The copies of one stage; ``folder=None`` keeps none."""

    def __init__(self, folder: Path | None):
        self._folder = folder
        self._writing: threading.Thread | None = None
        self._end = f".process-{jax.process_index()}-of-{jax.process_count()}{_END}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def due(self, done: int, every: int) -> bool:
        """Whether a copy is to be made after ``done`` updates."""
        return self._folder is not None and done % every == 0

    def save(self, state: TrainState, step: int, meta: JsonObject) -> None:
        """Bring this process's shards to the host and write them in the background; older copies go after it.

        Of several processes each keeps the copy before this one, too: some process may not complete this one.
        """
        assert self._folder is not None
        self.wait()
        self._keep_newest(1)
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

    def newest(self, mesh: Mesh, below: int | None = None) -> int | None:
        """Step of the newest copy (below step ``below``) that all of a replica have; all processes call it."""
        return max((step for step in self._common(mesh) if below is None or step < below), default=None)

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, JsonObject] | None:
        """(state, meta) of the copy of ``step``; None, with a warning, if it does not fit or is damaged.

        All processes call it. Each looks at its own file first, and nothing that takes all of them begins before they
        agree on what is used: every process's own file, or those of a replica that has all of its own.
        """
        found = self._read(step, abstract)
        source = None
        if not _all_agree(found is not None):
            source = complete_replica(jax.tree.leaves(abstract)[0].sharding.mesh, found is not None)
            if source is None:
                return None
        shards, meta = found or ({}, {})
        if source is not None:
            everyone = gather_to_process_0(f"copies in {self._folder}", meta)
            meta = broadcast_from_process_0(f"copy in {self._folder}", next(filter(None, everyone or []), {}))
            logger.info(
                "the emergency checkpoint of step %d is taken from replica %d, which has it whole", step, source
            )
        state = TrainState(**_assemble(shards, abstract._asdict(), source))
        if fingerprint(state._asdict()) != meta.pop("fingerprint"):
            logger.warning("the emergency checkpoint %s is damaged", self._path(step))
            return None
        return state, meta

    def delete_after(self, step: int) -> None:
        """Delete this process's copies of steps above ``step``, which are of a past that was undone."""
        self.wait()
        for newer in self._steps():
            if newer > step:
                self._delete(self._path(newer))

    def delete_all(self) -> None:
        """Delete this process's copies, and those of as many processes as there are no more; the stage is finished."""
        self.wait()
        if self._folder is None or not self._folder.is_dir():
            return
        for path in _copies(self._folder):
            if self._end in path.name or f"-of-{jax.process_count()}{_END}" not in path.name:
                self._delete(path)
        with contextlib.suppress(OSError):  # another process of this machine was faster
            _remove_empty(self._folder)

    def _keep_newest(self, count: int) -> None:
        for old in self._steps()[:-count]:
            self._delete(self._path(old))

    def _common(self, mesh: Mesh) -> set[int]:
        """Steps of which every process of some replica has a file."""
        mine = np.full(_MOST, -1, np.int64)
        steps = self._steps()[-_MOST:]
        mine[: len(steps)] = steps
        if jax.process_count() == 1:
            return set(steps)
        with jax.transfer_guard("allow"):
            everyone = np.asarray(multihost_utils.process_allgather(mine))
        return steps_of_a_replica(mesh, [{int(step) for step in row if step >= 0} for row in everyone])

    def _read(self, step: int, abstract: TrainState) -> tuple[_Shards, JsonObject] | None:
        """This process's shards of ``step``, and meta; None, with a warning, if they do not fit or cannot be read."""
        path = self._path(step)
        try:
            with safe_open(path, framework="numpy") as file:
                meta = json.loads(file.metadata()["meta"])
                names = set(file.keys())
                shards = {}
                for name, shape, dtype in _wanted(abstract._asdict()):
                    if name not in names:
                        raise KeyError(f"{name} is not in it: the mesh is another")
                    shards[name] = file.get_tensor(name)
                    if (shards[name].shape, shards[name].dtype) != (shape, dtype):
                        raise KeyError(f"{name} has another shape or type")
        except (OSError, KeyError, ValueError, TypeError, SafetensorError) as error:
            logger.warning("the emergency checkpoint %s cannot be used (%s)", path, error)
            return None
        return shards, meta

    def _path(self, step: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{step}{self._end}"

    def _steps(self) -> list[int]:
        """Steps of this process's files, ascending."""
        if self._folder is None or not self._folder.is_dir():
            return []
        names = (path.name.removesuffix(self._end) for path in self._folder.glob(f"*{self._end}"))
        return sorted(int(name) for name in names if name.isdigit())

    def _delete(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning(
                "the emergency checkpoint %s cannot be deleted (%s); delete it by hand", path, error.strerror
            )

    def _write(self, tensors: _Shards, step: int, meta: JsonObject) -> None:
        try:
            with replacing(self._path(step)) as partial:
                save_file(tensors, partial, metadata={"meta": json.dumps(meta)})
            self._keep_newest(1 if jax.process_count() == 1 else 2)
        except Exception as error:  # noqa: BLE001 - a copy less, and training goes on
            logger.warning("no emergency checkpoint of step %d: %s", step, error)


def emergency_checkpoints(config: Config, stage: str, begin: bool = False) -> EmergencyCheckpoints:
    """The emergency checkpoints of ``stage`` (none without ``train.checkpoint.local_dir``); all processes call it.

    ``begin``: the stage is going to write some; what an earlier run in the same folder left on this machine is deleted.
    """
    local = config.train.checkpoint.local_dir
    if local is None:
        return EmergencyCheckpoints(None)
    stage_folder = RunPaths(config).stage(stage)
    if not is_remote(stage_folder):
        stage_folder = Path(os.path.realpath(stage_folder))
    own = _id(stage_folder, begin) if jax.process_index() == 0 else None
    own = broadcast_from_process_0(f"id of {stage}", own)
    if own is None:
        return EmergencyCheckpoints(None)
    folder = Path(local) / config.name / stage / own
    if not begin:
        return EmergencyCheckpoints(folder)
    _delete_orphans(folder, stage_folder)
    try:
        write_text(folder / _OWNER, f"{stage_folder}\n", shared=True)
    except OSError as error:
        logger.warning("no emergency checkpoints in %s: %s", folder, error)
    return EmergencyCheckpoints(folder)


def _id(stage_folder: Path, make: bool) -> str | None:
    """The id of a stage's copies: stored, unless the stage is new or its folder is a copy of another's."""
    path = stage_folder / NAME
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["folder"] == str(stage_folder):
            return str(stored["id"])
    except (OSError, ValueError, KeyError, TypeError):
        logger.debug("%s gives no id", path)
    if not make:
        return None
    own = uuid.uuid4().hex[:12]
    write_text(path, json.dumps({"id": own, "folder": str(stage_folder)}) + "\n")
    return own


def _delete_orphans(folder: Path, stage_folder: Path) -> None:
    """Delete what lies beside ``folder`` and was made for the same stage's folder under another id."""
    if not folder.parent.is_dir():
        return
    for other in folder.parent.iterdir():
        with contextlib.suppress(OSError):  # another process of this machine deletes it as well
            if other != folder and (other / _OWNER).read_text(encoding="utf-8").strip() == str(stage_folder):
                for path in _copies(other):
                    path.unlink(missing_ok=True)
                _remove_empty(other)


def _copies(folder: Path) -> Iterator[Path]:
    return folder.glob(f"*{_END}*")


def _remove_empty(folder: Path) -> None:
    """Remove a folder that holds no copy any more."""
    if not any(_copies(folder)):
        (folder / _OWNER).unlink(missing_ok=True)
        folder.rmdir()


def _all_agree(mine: bool) -> bool:
    """Whether every process says so."""
    if jax.process_count() == 1:
        return mine
    with jax.transfer_guard("allow"):
        return bool(np.asarray(multihost_utils.process_allgather(np.array(mine))).all())


def _wanted(abstract: PyTree) -> Iterator[tuple[str, tuple[int, ...], np.dtype]]:
    """(key, shape, dtype) of every shard of ``abstract`` that this process's devices hold."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        shape = leaf.sharding.shard_shape(leaf.shape)
        for index in leaf.sharding.addressable_devices_indices_map(leaf.shape).values():
            yield _key(path_name(path), index), shape, np.dtype(leaf.dtype)


def _assemble(shards: _Shards, abstract: PyTree, source: int | None = None) -> PyTree:
    """Arrays in the shardings of ``abstract`` from the shards of this process, or of the replica ``source``."""

    def build(path: tuple[KeyEntry, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        where = leaf.sharding.addressable_devices_indices_map(leaf.shape)
        if source is not None:
            mine = [(device, shards.get(_key(path_name(path), index))) for device, index in where.items()]
            return spread(leaf, mine, source)
        pieces = [jax.device_put(shards[_key(path_name(path), index)], device) for device, index in where.items()]
        return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, pieces)

    return jax.tree_util.tree_map_with_path(build, abstract)


def _key(path: str, index: tuple[slice, ...]) -> str:
    return f"{path}@" + ",".join(f"{part.start or 0}:{'' if part.stop is None else part.stop}" for part in index)
