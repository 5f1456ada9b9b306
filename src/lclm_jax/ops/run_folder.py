"""One process at a time writes a run's folder: an advisory lock that ends with the process, or runs out in a bucket."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import yaml
from filelock import FileLock, Timeout

from lclm_jax.config import Config, RunPaths, dump_config, parse_config, role_of
from lclm_jax.errors import LclmError
from lclm_jax.files import write_text
from lclm_jax.paths import is_remote, store_errors
from lclm_jax.train.checkpoints.step_folders import complete_steps
from lclm_jax.train.logging import events
from lclm_jax.types import Json, JsonObject

logger = logging.getLogger(__name__)

Resume = Literal["required", "auto", "never"]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` (made if absent) while the block runs.

    Raises:
        LclmError: another process holds it, or it cannot be written.
    """
    if is_remote(folder):
        from lclm_jax.ops.lease import lease_of  # tensorstore: `lclm status` does not wait for it

        with lease_of(folder).hold():
            yield
        return
    path = folder / ".lock"
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise LclmError(f"cannot write {path}: {error.strerror}; choose a run_dir that can be written") from None
    try:
        lock.acquire()
    except Timeout:
        raise LclmError(
            f"another process is working in {folder}; wait until it ends, or set run_dir to another folder"
        ) from None
    except OSError as error:
        logger.debug("%s: this file system has no locks (%s)", folder, error.strerror)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def own_run(config: Config, force: bool = False, claim: bool = True, resume: Resume = "auto") -> Iterator[None]:
    """Work alone in the run's folder.

    Args:
        config: of the run.
        resume: what has to be there already, see ``check_resume``.
        force: whatever was changed.
        claim: claim the folder (``claim_run``) before anything is made. If not, a folder that is claimed already is
            compared, and a new one is left to the caller, who claims it when something is in it: settings with which a
            run fails at once can then be mended.

    Raises:
        LclmError: another process works in the folder, it belongs to another configuration, or ``resume`` forbids it.
    """
    with store_errors(RunPaths(config).root):
        check_resume(config, resume)
    with locked(RunPaths(config).root):
        if claim or RunPaths(config).resolved_config.exists():
            claim_run(config, force)
        yield


def check_resume(config: Config, resume: Resume) -> None:
    """Whether the run may begin, or go on, as ``resume`` says; looks at its folder and changes nothing.

    ``required``: the folder has to be this run's. A launcher that restarts a run says so: an empty folder is then one
    that was not mounted, or another one. ``never``: nothing may have been trained in it. ``auto``: both may be. In any
    case a stage that has written a checkpoint does not begin again because its checkpoints are gone.

    Raises:
        LclmError: it may not; the message says what would do.
    """
    paths = RunPaths(config)
    if resume == "required" and not paths.resolved_config.exists():
        raise LclmError(
            f"--resume required: run_dir={paths.root} holds no run, so this would start from step 0; mount the storage"
            " that the run was begun on, or use --resume auto if nothing was trained yet"
        )
    for stage in config.stages:
        folder = paths.stage(stage)
        happened = list(events.read_events(folder))
        checkpoints = folder / "checkpoints"
        names = [path.name for path in checkpoints.iterdir()] if checkpoints.exists() else []
        saved = complete_steps(checkpoints)
        if resume == "never" and (saved or happened):
            step = f"step {saved[-1]}" if saved else "begun"
            raise LclmError(
                f"--resume never: run_dir={paths.root} holds a run (stage {stage}: {step}); set run_dir to a new"
                " folder, or use --resume auto to go on with it"
            )
        lost = _committed(happened, config.train.checkpoint.local_dir is not None)
        if lost and not saved and not any(name.startswith(("damaged-", "rewound-")) for name in names):
            raise LclmError(
                f"stage {stage} had a checkpoint of step {lost}, and {checkpoints} is empty; restore it, or delete"
                f" {folder} to train the stage again from step 0"
            )


def _committed(happened: list[JsonObject], copies: bool) -> int:
    """Newest step of which the events of a stage prove that a checkpoint was written whole; 0: of none.

    The last save may not have been completed. What a rewind set aside is not missed.

    Args:
        happened: events of the stage, in order.
        copies: the stage also resumes from copies on local disks, so that a resumption proves no checkpoint.
    """
    newest, begun = 0, 0
    for event in happened:
        match event["kind"]:
            case "save":
                newest, begun = max(newest, begun, event["step"] if event.get("final") else 0), event["step"]
            case "save_failed":
                begun = 0
            case "begin" if event["step"] and not copies:
                newest, begun = max(newest, event["step"]), 0
            case "begin":
                begun = 0
            case "rewind":
                newest, begun = 0, 0
    return newest


def claim_run(config: Config, force: bool = False) -> None:
    """Store the resolved configuration in the run's folder, or (without ``force``) check that the stored one agrees.

    Where the weights come from (``init``) may change until a stage has begun: data is often prepared earlier.

    Raises:
        LclmError: the folder belongs to a run that differs in a key whose role is ``result``.
    """
    path = RunPaths(config).resolved_config
    if path.exists() and not force:
        # Parsed again, so that a key that this version added has its default on both sides.
        stored = flat_values(parse_config(_read_stored(path), str(path)).model_dump(mode="json"))
        mine = flat_values(config.model_dump(mode="json"))
        begun = any(True for stage in config.stages for _ in events.read_events(RunPaths(config).stage(stage)))
        changed = [
            name
            for name in sorted(stored.keys() | mine.keys())
            if stored.get(name) != mine.get(name)
            and role_of(Config, name) in ("result", None)
            and (begun or not name.startswith("init."))
        ]
        if changed:
            shown = ", ".join(f"{name}: {stored.get(name)!r} -> {mine.get(name)!r}" for name in changed[:4])
            more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
            raise LclmError(
                f"{path.parent} holds a run of another configuration ({shown}{more}); set them back, set run_dir to a"
                " new folder, or continue with the new values anyway: lclm train --force"
            )
    write_text(path, dump_config(config))


def _read_stored(path: Path) -> JsonObject:
    try:
        with store_errors(path):
            stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        stored = None
    if not isinstance(stored, dict):
        raise LclmError(f"{path} is damaged; delete it if this configuration is the one that made the run")
    return stored


def flat_values(tree: Json, prefix: str = "") -> dict[str, Json]:
    """Dotted key -> value of every leaf of a tree of plain values; an empty mapping has none."""
    if not isinstance(tree, Mapping):
        return {prefix[:-1]: tree}
    flat: dict[str, Json] = {}
    for name, value in tree.items():
        flat |= flat_values(value, f"{prefix}{name}.")
    return flat
