"""One process at a time writes a run's folder: an advisory lock that ends with the process, however it ends."""

import errno
import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from lclm_jax.config import Config, RunPaths, dump_config, parse_config
from lclm_jax.errors import LclmError
from lclm_jax.files import write_text

logger = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` (made if absent) while the block runs.

    Raises:
        LclmError: another process holds it, or it cannot be written.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise LclmError(f"cannot write {path}: {error.strerror}; choose a run_dir that can be written") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                raise LclmError(
                    f"another process is working in {folder}; wait until it ends, or set run_dir to another folder"
                ) from None
            logger.debug("%s: this file system has no locks (%s)", folder, error.strerror)
        yield


# Keys that change where a run lies and how it is watched or measured, not what it learns: they may differ later.
FREE_KEYS = (
    "environment", "model.remat", "model.attention", "run_dir", "mesh.", "eval.",
    "train.log_every", "train.probe.", "train.trackers", "train.checkpoint.", "train.stop.", "train.spike.",
    "train.data_timeout_seconds", "train.watchdog_seconds", "train.profile_steps",
    "train.processes.", "data.workers", "data.prefetch", "data.cache", "data.cache_bytes",
)  # fmt: skip


@contextmanager
def own_run(config: Config, force: bool = False) -> Iterator[None]:
    """Work alone in the run's folder, which is claimed first (``claim_run``); ``force``: whatever was changed.

    Raises ``LclmError`` if another process works in it, or it belongs to another configuration.
    """
    with locked(RunPaths(config).root):
        claim_run(config, force)
        yield


def claim_run(config: Config, force: bool = False) -> None:
    """Store the resolved configuration in the run's folder, or (without ``force``) check that the stored one agrees.

    Raises:
        LclmError: the folder belongs to a run whose other keys than ``FREE_KEYS`` differ.
    """
    path = RunPaths(config).resolved_config
    if path.exists() and not force:
        # Parsed again, so that a key this version has added stands at its default on both sides.
        stored = _flatten(parse_config(_read_stored(path), str(path)).model_dump(mode="json"))
        mine = _flatten(config.model_dump(mode="json"))
        changed = [
            name
            for name in sorted(stored.keys() | mine.keys())
            if stored.get(name) != mine.get(name) and not _is_free(name)
        ]
        if changed:
            shown = ", ".join(f"{name}: {stored.get(name)!r} -> {mine.get(name)!r}" for name in changed[:4])
            more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
            raise LclmError(
                f"{path.parent} holds a run of another configuration ({shown}{more}); set run_dir to a new folder or"
                " delete this one"
            )
    write_text(path, dump_config(config))


def _is_free(name: str) -> bool:
    return name.startswith(FREE_KEYS) or name.endswith(".microbatches")


def _read_stored(path: Path) -> dict[str, Any]:
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        stored = None
    if not isinstance(stored, dict):
        raise LclmError(f"{path} is damaged; delete it if this configuration is the one that made the run")
    return stored


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}.")
    return flat
