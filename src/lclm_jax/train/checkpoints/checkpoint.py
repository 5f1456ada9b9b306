"""Checkpoints of one stage: asynchronous, atomic, restored on any mesh.

A checkpoint is a folder ``STEP/`` with three Orbax items: ``params`` (in ``model.param_dtype``, large leaves chunked by
layer so that one layer can be read alone: ``lazy_checkpoint``), ``rest`` (step, random key, optimizer state) and
``meta`` (JSON: the data position, the resolved configuration, its hash). Orbax commits it by renaming a temporary
folder, or in a bucket by an object that it writes last; what a killed save left is removed before the next
(``step_folders``).

A save is *sealed* in the background: its files are read back into a manifest of checksums, and only then do older
checkpoints go. A damaged one is renamed to ``damaged-STEP-...`` and the one before is used; nothing of it is deleted.
"""

import logging
import threading
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.tree_util import KeyEntry

from lclm_jax.config import CheckpointConfig
from lclm_jax.errors import LclmError
from lclm_jax.parallel import broadcast_from_process_0, gather_to_process_0
from lclm_jax.paths import StoreError, is_remote
from lclm_jax.train.checkpoints import step_folders
from lclm_jax.train.checkpoints.integrity import Sums, defect, fingerprint, has_manifest, read_back, write_manifest
from lclm_jax.train.checkpoints.replicas import from_first_replica, on_first_replica, one_reads_for_all, processes_of
from lclm_jax.train.checkpoints.storage_faults import STORAGE_ERRORS, hush_late_callbacks, line_of, remedy_of
from lclm_jax.train.core.freeze import path_name
from lclm_jax.train.core.state import TrainState
from lclm_jax.types import JsonObject, Params, PyTree

logger = logging.getLogger(__name__)
# Orbax logs tracebacks of failures that it also raises; one message, ours, is enough.
logging.getLogger("absl").setLevel(logging.CRITICAL)

# Layers below this size stay together: chunks cost time and space of their own.
CHUNK_BYTES = 2**20
# Tables and heads are cut to chunks of at most this size, so that they too can be read in pieces.
TABLE_CHUNK_BYTES = 2**24


class CheckpointError(LclmError):
    """A checkpoint that cannot be written, read or trusted; the message names the folder and the fix."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint whose files or values are not those that were saved; an older one may be intact."""


class Checkpoints:
    """The checkpoints below ``folder``; close it (or leave its ``with``) to wait for the last save.

    Args:
        folder: absolute or relative; made if it does not exist, unless read only.
        settings: which checkpoints are kept; None opens the folder for reading only.
    """

    def __init__(self, folder: Path, settings: CheckpointConfig | None = None):
        self.folder = folder.absolute()
        hush_late_callbacks()
        self._settings = settings
        self._manager: ocp.CheckpointManager | None = None
        self._sealing: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._undeletable: set[Path] = set()
        """Folders that were named as such."""
        if settings is None and not broadcast_from_process_0(f"is {self.folder}", self.folder.is_dir()):
            return
        options = ocp.CheckpointManagerOptions(
            create=settings is not None,
            read_only=settings is None,
            cleanup_tmp_directories=settings is not None and not is_remote(self.folder),
        )
        try:
            if settings is not None and (jax.process_index() == 0 or not is_remote(self.folder)):
                step_folders.prepare(self.folder)
            self._manager = ocp.CheckpointManager(str(self.folder), options=options)
        except StoreError:
            raise
        except (OSError, ImportError) as error:
            raise CheckpointError(f"cannot open {self.folder} for checkpoints: {line_of(error)}") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._manager is None:
            return
        try:
            self.wait()
        except CheckpointError as second:
            if error is None:
                raise
            logger.debug("the save in flight failed too: %s", second)  # the error on its way out is the one to report
        finally:
            self._close(self._manager)

    def _close(self, manager: ocp.CheckpointManager) -> None:
        try:
            manager.close()
        except STORAGE_ERRORS as error:  # Orbax raises the failure of a save once in every thread; we had it already
            logger.debug("closing after a failed save: %s", line_of(error))

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        if self._manager is None:
            return []
        return step_folders.complete_steps(self.folder)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, as process 0 sees it."""
        steps = self.steps()
        return broadcast_from_process_0(f"latest {self.folder}", steps[-1] if steps else None)

    def save(self, state: TrainState, step: int, meta: JsonObject) -> None:
        """Copy ``state`` to the host and write it in the background; first waits for the save before.

        Raises:
            CheckpointError: this save could not begin, or the one before failed; older checkpoints are intact.
        """
        assert self._manager is not None, "opened for reading only"
        self.wait()
        rest = {"step": state.step, "rng": state.rng, "opt_state": state.opt_state}
        meta = {**meta, "fingerprint": fingerprint({"params": state.params, **rest})}
        items = ocp.args.Composite(
            params=ocp.args.PyTreeSave(state.params, save_args=_by_layer(state.params)),
            rest=ocp.args.PyTreeSave(rest),
            meta=ocp.args.JsonSave(meta),
        )
        try:
            self._manager.reload()  # a checkpoint may have been set aside since
            # It is there if an earlier try failed after it was complete: then it is only sealed.
            if jax.process_count() > 1 or step not in self.steps():
                self._manager.save(step, args=items, force=True)
        except STORAGE_ERRORS as error:
            self._fail_save(error)
        self._sealing = threading.Thread(target=self._seal, args=(step,), name=f"seal checkpoint {step}")
        self._sealing.start()

    def wait(self) -> None:
        """Block until the last save is complete and sealed; raises ``CheckpointError`` if it failed."""
        if self._sealing is not None:
            self._sealing.join()
            self._sealing = None
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise ``CheckpointError`` if a save that ran in the background has failed; never blocks."""
        if (error := self._failure) is not None:
            self._failure = None
            self._fail_save(error)

    def _seal(self, step: int) -> None:
        """Wait for the save of ``step``, read it back into its manifest, then let older checkpoints go."""
        assert self._manager is not None and self._settings is not None
        try:
            self._manager.wait_until_finished()
            self._write_manifest(step)
            if jax.process_index() == 0:
                self._delete_old()
        except Exception as error:  # noqa: BLE001 - raised again by the thread that trains
            self._failure = error

    def _write_manifest(self, step: int) -> None:
        """Every process reads back what it wrote; process 0 writes down the sums of all."""
        folder, failure = self.folder / str(step), ""
        if jax.process_count() == 1:
            write_manifest(folder)
            return
        sums: Sums = {}
        try:
            sums = read_back(folder, jax.process_index(), jax.process_count())
        except OSError as error:
            failure = f"process {jax.process_index()}: {line_of(error)}"
        mine: JsonObject = {"sums": sums, "failure": failure}
        found = gather_to_process_0(f"sums in {self.folder}", mine) or [mine]
        if failures := [one["failure"] for one in found if one["failure"]]:
            raise OSError(f"{folder} cannot be read back ({'; '.join(failures)})")
        if jax.process_index() == 0:
            write_manifest(folder, {name: entry for one in found for name, entry in one["sums"].items()})

    def _delete_old(self) -> None:
        """Delete checkpoints that are not kept, and what could not be deleted before.

        One that stays is no fault of the new checkpoint: it is named once. Each is withdrawn first, so that one that is
        deleted in part does not count as a checkpoint.
        """
        assert self._settings is not None
        sealed = self._sealed_steps()
        keep = retained(sealed, self._settings.keep_last, self._settings.keep_every)
        old = [self.folder / str(step) for step in sealed if step not in keep]
        for path in [*old, *step_folders.half_deleted(self.folder)]:
            folder = path
            try:
                if path in old:
                    folder = step_folders.withdraw(path)
                step_folders.delete(folder)
            except OSError as error:
                if folder not in self._undeletable:
                    self._undeletable.add(folder)
                    logger.warning(
                        "the old checkpoint %s cannot be deleted (%s); training goes on: delete it by hand",
                        folder,
                        error.strerror or error,
                    )

    def seal(self, step: int) -> None:
        """Write the manifest of a checkpoint that was killed before it got one; call it once its values are checked."""
        if jax.process_index() == 0 and self._settings is not None and not has_manifest(self.folder / str(step)):
            write_manifest(self.folder / str(step))

    def _sealed_steps(self) -> list[int]:
        return [step for step in self.steps() if has_manifest(self.folder / str(step))]

    def check(self, step: int) -> None:
        """Raise ``DamagedCheckpoint`` on all processes if the files of ``step`` are not those that were written.

        Every process looks at its share of them.
        """
        mine = defect(self.folder / str(step), jax.process_index(), jax.process_count())
        self._raise_fault(f"checkpoint {self.folder / str(step)} is damaged: {mine}" if mine else "")

    def set_aside(self, step: int, why: str = "damaged") -> Path:
        """Rename the folder of ``step``, so that it no longer counts as a checkpoint; returns its new path."""
        # To the microsecond: a step can be set aside, reached again and set aside once more within a second.
        aside = self.folder / f"{why}-{step}-{datetime.now():%Y%m%d-%H%M%S-%f}"
        step_folders.move(self.folder / str(step), aside)
        if self._manager is not None:
            self._manager.reload()
        return aside

    def reached_preemption(self, step: int) -> bool:
        """Whether all processes have agreed to stop after ``step`` updates, because one was told to."""
        return self._manager is not None and self._manager.reached_preemption(step)

    def meta(self, step: int) -> JsonObject:
        """The JSON stored with the checkpoint of ``step``; ``DamagedCheckpoint`` if it is not what was written."""
        if step in self.steps():
            mine = defect(self.folder / str(step), below="meta/") if jax.process_index() == 0 else None
            self._raise_fault(f"checkpoint {self.folder / str(step)} is damaged: {mine}" if mine else "")
        return dict(self._restore(step, meta=ocp.args.JsonRestore())["meta"])

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of ``step`` in the shapes, dtypes and shardings of ``abstract`` (any mesh).

        Where the mesh has several replicas of whole processes, the first one reads, and the others get it from there.

        Raises:
            CheckpointError: damaged, of another model, or holding a value that is not finite.
        """
        rest = {"step": abstract.step, "rng": abstract.rng, "opt_state": abstract.opt_state}
        whole = {"params": abstract.params, "rest": rest}
        mesh = getattr(jax.tree.leaves(abstract)[0].sharding, "mesh", None)  # None: it lies on one device
        if isinstance(mesh, jax.sharding.Mesh) and one_reads_for_all(mesh):
            restored = self._restore_once(step, whole, reads=jax.process_index() in processes_of(mesh)[0])
        else:
            restored = self._restore(step, **{item: _onto(tree) for item, tree in whole.items()})
        state = TrainState(params=restored["params"], **restored["rest"])
        self._compare(step, {"params": state.params, **restored["rest"]})
        check_finite({"params": state.params, "opt_state": state.opt_state}, str(self.folder / str(step)))
        return state

    def restore_params(self, step: int, abstract: PyTree) -> PyTree:
        """The parameters of ``step`` alone, in the structure and shapes of ``abstract``.

        A leaf of ``abstract`` with a sharding comes back as a JAX array that lies so, one without as NumPy.

        Raises:
            CheckpointError: damaged, of another model, or holding a value that is not finite.
        """
        params = self._restore(step, params=_onto(abstract))["params"]
        check_finite(params, str(self.folder / str(step)))
        return params

    def _restore_once(self, step: int, items: dict[str, PyTree], reads: bool) -> dict[str, PyTree]:
        """The trees ``items``, which the first replica's processes read from storage for all."""
        # All processes take part in a restore of Orbax's; those that do not read ask it for nothing.
        mine = {
            item: _onto(jax.tree.map(on_first_replica, tree))
            if reads
            else ocp.args.PyTreeRestore(jax.tree.map(lambda _: ocp.PLACEHOLDER, tree))
            for item, tree in items.items()
        }
        found: dict[str, PyTree] = {}
        fault = ""
        try:
            found = dict(self._restore(step, **mine))
        except DamagedCheckpoint as error:
            fault = str(error)
        self._raise_fault(fault)
        if not reads:
            return jax.tree.map(lambda leaf: from_first_replica(leaf, None), items)
        return jax.tree.map(from_first_replica, items, found)

    def _raise_fault(self, mine: str) -> None:
        """Raise ``DamagedCheckpoint`` on all processes if one has found a fault; none: an empty text."""
        faults = gather_to_process_0(f"faults in {self.folder}", mine) or []
        if fault := broadcast_from_process_0(f"fault in {self.folder}", next(filter(None, faults), "")):
            raise DamagedCheckpoint(fault)

    def _restore(self, step: int, **items: ocp.args.CheckpointArgs) -> PyTree:
        if self._manager is None or step not in self.steps():
            known = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(f"{self.folder} has no checkpoint of step {step}; it has: {known}")
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except STORAGE_ERRORS as error:
            raise self._unreadable(step, error) from error

    def _compare(self, step: int, restored: PyTree) -> None:
        """Raise ``DamagedCheckpoint`` if a restored array differs from what was saved."""
        saved = self.meta(step).get("fingerprint", {})
        changed = [name for name, value in fingerprint(restored).items() if saved.get(name, value) != value]
        if changed:
            raise DamagedCheckpoint(
                f"checkpoint {self.folder / str(step)} is damaged: the values of {changed[0]} are not those saved"
            )

    def _unreadable(self, step: int, error: BaseException) -> CheckpointError:
        older = [other for other in self.steps() if other < step]
        way = f"delete that folder to resume from step {older[-1]}" if older else "delete that folder to start over"
        return DamagedCheckpoint(f"checkpoint {self.folder / str(step)} cannot be read ({line_of(error)}); {way}")

    def _fail_save(self, error: BaseException) -> NoReturn:
        if jax.process_index() == 0:
            step_folders.drop_partial(self.folder)
        kept = self.steps()
        intact = f"the checkpoint of step {max(kept)} is intact" if kept else "there is no earlier checkpoint"
        raise CheckpointError(
            f"a checkpoint could not be written to {self.folder} ({line_of(error)}); {intact}: {remedy_of(error)}, then"
            " rerun the same command to resume"
        ) from error


def retained(steps: list[int], keep_last: int, keep_every: int | None) -> set[int]:
    """Which of ``steps`` stay: the newest ``keep_last``, and every multiple of ``keep_every``.

    Example:
        ``retained([2, 4, 6, 8], 1, 4)`` is ``{4, 8}``.
    """
    return {step for step in steps if step in steps[-keep_last:] or (keep_every and step % keep_every == 0)}


def check_finite(tree: PyTree, where: str) -> None:
    """Raise ``CheckpointError`` naming the first leaf of ``tree`` that holds a NaN or an infinity."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    leaves = [(path_name(path), leaf) for path, leaf in flat if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if all(isinstance(leaf, np.ndarray) for _, leaf in leaves):
        finite = [bool(np.isfinite(leaf).all()) for _, leaf in leaves]
    else:
        finite = jax.device_get(_all_finite([leaf for _, leaf in leaves])).tolist()
    bad = [name for (name, _), good in zip(leaves, finite, strict=True) if not good]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise CheckpointError(
            f"checkpoint {where} holds a value that is not finite in {bad[0]}{more}; delete that folder to resume from"
            " an earlier one"
        )


@jax.jit
def _all_finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])


def _onto(abstract: PyTree) -> PyTree:
    """How to restore a tree of ``jax.ShapeDtypeStruct``: on the devices of its shardings, or on the host."""

    def how(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
        if leaf.sharding is None:
            return ocp.RestoreArgs(restore_type=np.ndarray)
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)

    return ocp.args.PyTreeRestore(abstract, restore_args=jax.tree.map(how, abstract))


def _by_layer(params: Params) -> PyTree:
    """Save arguments that cut large stacked leaves into one chunk a layer, and large tables into pieces."""

    def cut(path: tuple[KeyEntry, ...], leaf: jax.Array) -> ocp.SaveArgs:
        layer_bytes = leaf.nbytes // leaf.shape[0]
        if "layers" in path_name(path).split("/") and layer_bytes >= CHUNK_BYTES:
            return ocp.SaveArgs(chunk_byte_size=layer_bytes, shard_axes=(0,))
        return ocp.SaveArgs(chunk_byte_size=TABLE_CHUNK_BYTES if leaf.nbytes > TABLE_CHUNK_BYTES else None)

    return jax.tree_util.tree_map_with_path(cut, params)
