"""One process at a time writes a run's folder: an advisory lock that ends with the process, however it ends."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from lclm_jax.config import Config, RunPaths, dump_config, parse_config, role_of
from lclm_jax.errors import LclmError
from lclm_jax.files import write_text
from lclm_jax.types import Json, JsonObject

logger = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` (made if absent) while the block runs.

    Raises:
        LclmError: another process holds it, or it cannot be written.
    """
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
def own_run(config: Config, force: bool = False, claim: bool = True) -> Iterator[None]:
    """Work alone in the run's folder.

    Args:
        config: of the run.
        force: whatever was changed.
        claim: claim the folder (``claim_run``) before anything is made. If not, a folder that is claimed already is
            compared, and a new one is left to the caller, who claims it when something is in it: settings with which a
            run fails at once can then be mended.

    Raises:
        LclmError: another process works in the folder, or it belongs to another configuration.
    """
    with locked(RunPaths(config).root):
        if claim or RunPaths(config).resolved_config.exists():
            claim_run(config, force)
        yield


def claim_run(config: Config, force: bool = False) -> None:
    """Store the resolved configuration in the run's folder, or (without ``force``) check that the stored one agrees.

    Raises:
        LclmError: the folder belongs to a run that differs in a key whose role is ``result``.
    """
    path = RunPaths(config).resolved_config
    if path.exists() and not force:
        # Parsed again, so that a key that this version added has its default on both sides.
        stored = flat_values(parse_config(_read_stored(path), str(path)).model_dump(mode="json"))
        mine = flat_values(config.model_dump(mode="json"))
        changed = [
            name
            for name in sorted(stored.keys() | mine.keys())
            if stored.get(name) != mine.get(name) and role_of(Config, name) in ("result", None)
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
