"""Keys that had another name, or that are gone: what was written for them still loads, with a warning."""

import copy
import logging

from lclm_jax.errors import LclmError
from lclm_jax.types import JsonObject, ReadOnlyJson

logger = logging.getLogger(__name__)

RENAMED: dict[str, str] = {}
"""Dotted old key -> dotted new key; a part ``NAME`` stands for any name (of a stage, a source, a collection)."""

GONE: dict[str, str] = {"train.poison_steps": "faults are injected by lclm chaos alone"}
"""Dotted key that no longer exists -> why, and what to use; an empty value is dropped without a word."""


def renamed_key(dotted: str) -> str | None:
    """The key that ``dotted`` is called today, with a warning if that is another one; None if it is gone."""
    for old, new in RENAMED.items():
        if (rest := _rest(dotted, old)) is not None:
            current = _filled(new, dotted.split(".")) + rest
            logger.warning("the key %s is called %s now; please rename it", dotted, current)
            return current
    for old, why in GONE.items():
        if _rest(dotted, old) is not None:
            logger.warning("the key %s is gone and has no effect: %s", dotted, why)
            return None
    return dotted


def renamed(values: ReadOnlyJson, origin: str) -> JsonObject:
    """``values`` (a tree of plain values) with the keys of today; warns of old ones.

    Raises ``LclmError`` if a key is set under both names.
    """
    tree = copy.deepcopy(dict(values))
    for old, new in RENAMED.items():
        for path in _found(tree, old.split(".")):
            value = _pop(tree, path)
            current = _filled(new, path)
            _put(tree, current.split("."), value, f"{origin}: {'.'.join(path)} is the old name of {current}")
            logger.warning("%s: the key %s is called %s now; please rename it", origin, ".".join(path), current)
    for old, why in GONE.items():
        for path in _found(tree, old.split(".")):
            if _pop(tree, path) not in (None, "", [], (), {}, False):
                logger.warning("%s: the key %s is gone and has no effect: %s", origin, ".".join(path), why)
    return tree


def _rest(dotted: str, old: str) -> str | None:
    """What follows ``old`` in ``dotted``; None if it is another key."""
    parts, pattern = dotted.split("."), old.split(".")
    if len(parts) < len(pattern) or any(p not in (part, "NAME") for p, part in zip(pattern, parts, strict=False)):
        return None
    return "".join(f".{part}" for part in parts[len(pattern) :])


def _filled(new: str, path: list[str]) -> str:
    """``new`` with the names of ``path`` in the place of NAME."""
    return ".".join(path[at] if part == "NAME" else part for at, part in enumerate(new.split(".")))


def _found(tree: object, pattern: list[str]) -> list[list[str]]:
    """Paths of ``tree`` that ``pattern`` matches."""
    if not pattern:
        return [[]]
    if not isinstance(tree, dict):
        return []
    names = list(tree) if pattern[0] == "NAME" else [pattern[0]] if pattern[0] in tree else []
    return [[name, *rest] for name in names for rest in _found(tree[name], pattern[1:])]


def _pop(tree: JsonObject, path: list[str]) -> object:
    for name in path[:-1]:
        tree = tree[name]
    return tree.pop(path[-1])


def _put(tree: JsonObject, path: list[str], value: object, clash: str) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    if path[-1] in tree:
        raise LclmError(f"{clash}, which is set too; delete the old one")
    tree[path[-1]] = value
