"""What every branch of the configuration tree shares: frozen, typed, closed to unknown keys, each key with a role."""

import difflib
import json
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from lclm_jax.types import JsonObject, ReadOnlyJson

Role = Literal["result", "layout", "logging", "place"]
"""What a key decides.

``result``: losses, rows or weights depend on it, so it may not change within a run. ``layout``: how the same arithmetic
is laid out over devices, memory and processes. ``logging``: how a run is named, watched, saved and measured, and
shorthands whose effect other keys record. ``place``: where things lie; what they hold is compared by digest.
"""


class Tree(BaseModel):
    """A frozen node of the configuration tree; unknown keys and wrong types are errors.

    ``class MeshConfig(Tree, role="layout")`` gives all its keys that role, but for those that name one themselves.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
    role_of_keys: ClassVar[Role | None] = None

    def __init_subclass__(cls, role: Role | None = None, **settings: Any):
        super().__init_subclass__(**settings)
        cls.role_of_keys = role


def key(default: Any, doc: str, role: Role | None = None, added: bool = False, **limits: Any) -> Any:
    """Declare one key: its only default, its documentation, its role, and its limits (``gt``, ``ge``, ``le``...).

    ``added``: the key came after the first release. At its default it is left out of ``result_values``, so that what
    was made before it existed keeps its digest.
    """
    return Field(default, description=doc, json_schema_extra={"role": role, "added": added}, **limits)


def required(doc: str, role: Role | None = None, **limits: Any) -> Any:
    """Declare one key that a YAML must set."""
    return Field(description=doc, json_schema_extra={"role": role}, **limits)


class Key(NamedTuple):
    """One key of the tree, as the documentation lists it."""

    name: str
    """Dotted; NAME stands for the names of stages, sources and collections."""
    default: str
    """As JSON, ``required``, or empty for a branch."""
    doc: str
    role: Role | None
    """None for a branch."""


def describe_keys(tree: type[Tree], prefix: str = "") -> Iterator[Key]:
    """Every key of ``tree``, in the order of its declaration, branches before what they hold."""
    for name, field in tree.model_fields.items():
        dotted, doc = f"{prefix}{name}", field.description or ""
        branch, keyed = branch_of(field.annotation)
        if branch is not None:
            yield Key(dotted, "", doc, None)
            yield from describe_keys(branch, f"{dotted}.{'NAME.' if keyed else ''}")
        else:
            default = "required" if field.is_required() else json.dumps(field.default)
            yield Key(dotted, default, doc, _role(tree, field))


def role_of(tree: type[Tree], dotted: str) -> Role | None:
    """Role of the key ``a.b.c`` (or of the key that holds it, as ``mixture`` holds its sources); None for a branch."""
    parts = iter(dotted.split("."))
    for part in parts:
        field = tree.model_fields.get(part)
        if field is None:
            return None
        branch, keyed = branch_of(field.annotation)
        if branch is None:
            return _role(tree, field)
        if keyed:
            next(parts, None)
        tree = branch
    return None


def result_values(node: Tree) -> JsonObject:
    """``node`` as plain values, less the keys that no result depends on and ``added`` ones at their default."""
    return _kept(type(node), node.model_dump(mode="json"), ("result",))


def first_release_values(node: Tree) -> JsonObject:
    """``node`` as plain values, less ``added`` keys at their default: what versions that lack them would give."""
    return _kept(type(node), node.model_dump(mode="json"), (*typing.get_args(Role), None))


def _kept(tree: type[Tree], values: ReadOnlyJson, roles: tuple[Role | None, ...]) -> JsonObject:
    kept = {}
    for name, value in values.items():
        field = tree.model_fields[name]
        branch, keyed = branch_of(field.annotation)
        if branch is None:
            if _role(tree, field) in roles and not (_is_added(field) and value == field.default):
                kept[name] = value
        elif value is None:
            if not _is_added(field):
                kept[name] = None
        elif keyed:
            kept[name] = {inner: _kept(branch, one, roles) for inner, one in value.items()}
        elif found := _kept(branch, value, roles):
            kept[name] = found
    return kept


def _is_added(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("added"))


def _role(tree: type[Tree], field: FieldInfo) -> Role | None:
    extra = field.json_schema_extra
    own = extra.get("role") if isinstance(extra, dict) else None
    return typing.cast(Role | None, own) or tree.role_of_keys


def branch_of(annotation: object) -> tuple[type[Tree] | None, bool]:
    """The tree below a key's type, and whether it is a mapping of named trees."""
    if isinstance(annotation, type) and issubclass(annotation, Tree):
        return annotation, False
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is dict:
        return branch_of(arguments[1])[0], True
    if origin in (typing.Union, types.UnionType):
        for argument in arguments:
            if branch_of(argument)[0] is not None:
                return branch_of(argument)
    return None, False


def suggestion(name: str, known: Iterable[str]) -> str:
    """A clause such as ``did you mean 'steps'?``, or the list of what is known."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"


def one_of(registry: Iterable[str], *others: str) -> Callable[[str], str]:
    """A validator that lets the names of ``registry``, and ``others``, pass."""

    def check(name: str) -> str:
        if name not in (*others, *registry):
            raise ValueError(f"{name!r} is unknown; use one of {', '.join((*others, *registry))}")
        return name

    return check
