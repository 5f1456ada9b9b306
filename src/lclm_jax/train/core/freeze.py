"""Which parameters a stage trains: an ordered table of path patterns, first match wins.

The whole four-stage recipe is this mechanism. A frozen leaf is not part of the differentiated tree: it has no gradient
and no optimizer state.
"""

import re
from collections.abc import Mapping, Sequence

import jax
from jax.tree_util import KeyEntry

from lclm_jax.config import StageConfig
from lclm_jax.errors import LclmError
from lclm_jax.types import PyTree

FROZEN = None
"""Group of the leaves that do not train."""

Tree = Mapping[str, PyTree]
"""A nested dict of arrays, shapes, shardings or labels."""

Rule = tuple[str, str | None]
"""Pattern of a whole path (``adapter/.*``) and the group of its leaves, or ``FROZEN``."""

_PATTERNS = {
    "memory_rows": "decoder/memory_rows",  # before the decoder: the rows train in every stage
    "encoder_lora": r"encoder/.*/lora_[ab]",  # before the towers: the updates train without or beside their kernels
    "decoder_lora": r"decoder/.*/lora_[ab]",
    "adapter": "adapter/.*",
    "encoder": "encoder/.*",
    "decoder": "decoder/.*",
}


def stage_rules(stage: StageConfig, params: PyTree) -> tuple[Rule, ...]:
    """The freeze table of ``stage``: every part with a learning rate trains in a group of its own name.

    ``params`` (arrays or shapes) tell whether there is LoRA to freeze; a rate for one that is absent stays a rule.
    """
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    rules = []
    for part, pattern in _PATTERNS.items():
        trains = stage.peak_lr(part) is not None
        if trains or not part.endswith("_lora") or any(re.fullmatch(pattern, name) for name in names):
            rules.append((pattern, part if trains else FROZEN))
    return tuple(rules)


def label_leaves(rules: Sequence[Rule], params: PyTree) -> PyTree:
    """Tree of the structure of ``params`` with the group of each leaf (``FROZEN`` where it does not train).

    Example:
        With ``(("decoder/memory_rows", "memory_rows"), ("decoder/.*", FROZEN))`` the three memory rows train and the
        rest of the decoder does not; ``adapter/fc1/bias`` is an error, because no rule covers it.

    Raises:
        LclmError: a leaf matches no rule, a rule matches no leaf, or nothing trains.
    """
    used: set[str] = set()

    def label(path: tuple[KeyEntry, ...], _leaf: PyTree) -> str | None:
        name = path_name(path)
        for pattern, group in rules:
            if re.fullmatch(pattern, name):
                used.add(pattern)
                return group
        raise LclmError(f"parameter {name} matches no rule of the freeze table; add a rule for it")

    labels = jax.tree_util.tree_map_with_path(label, params)
    for pattern, _ in rules:
        if pattern not in used:
            raise LclmError(f"freeze rule {pattern!r} takes no parameter; correct the pattern or remove the rule")
    if not any(group is not FROZEN for group in jax.tree.leaves(labels, is_leaf=lambda x: x is None)):
        raise LclmError("the freeze table trains nothing; give one part of the stage a learning rate")
    return labels


def path_name(path: tuple[KeyEntry, ...]) -> str:
    """``("adapter", "fc1")`` as JAX key entries -> ``"adapter/fc1"``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def select(params: Tree, labels: Tree, groups: Sequence[str | None]) -> dict[str, PyTree]:
    """The leaves of ``params`` (nested dicts) whose label is one of ``groups``; empty branches are left out."""
    chosen: dict[str, PyTree] = {}
    for name, node in params.items():
        if isinstance(node, Mapping):
            branch = select(node, labels[name], groups)
            if branch:
                chosen[name] = branch
        elif labels[name] in groups:
            chosen[name] = node
    return chosen


def split(params: Tree, labels: Tree) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
    """``params`` as (trainable, frozen) nested dicts that ``merge`` puts together again."""
    return select(params, labels, groups_of(labels)), select(params, labels, (FROZEN,))


def merge(*branches: Tree) -> dict[str, PyTree]:
    """Nested dicts with disjoint leaves as one, keys sorted at every level as JAX sorts them.

    Raises:
        LclmError: two branches hold the same leaf.
    """
    merged: dict[str, PyTree] = {}
    for name in sorted({name for branch in branches for name in branch}):
        nodes = [branch[name] for branch in branches if name in branch]
        if len(nodes) == 1:
            merged[name] = nodes[0]
        elif all(isinstance(node, Mapping) for node in nodes):
            merged[name] = merge(*nodes)
        else:
            raise LclmError(f"parameter {name} is in more than one branch; each leaf either trains or is frozen")
    return merged


def groups_of(labels: PyTree) -> tuple[str, ...]:
    """Names of the groups that train, sorted."""
    return tuple(sorted(set(jax.tree.leaves(labels))))
