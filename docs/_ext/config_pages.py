"""Writes the reference of every configuration key, from the tree that declares them.

``reference/generated/configuration.rst`` holds one ``confval`` for each key of ``lclm_jax.config.Config``, so
``{confval}`train.z_loss``` links to it; ``reference/generated/study.rst`` holds the keys of a study of ``lclm ablate``.
"""

import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import annotated_types
from pydantic import BaseModel
from sphinx.application import Sphinx

from lclm_jax.config import Config, StudyConfig, describe_keys

_HEAD = """\
Configuration keys
==================

Every key of a configuration file, with its type, default and meaning. ``lclm config keys PREFIX`` prints the same
list; ``lclm config show CONFIG`` prints a configuration with all defaults filled in. ``NAME`` stands for a name of your
own. An unknown key is an error that suggests the nearest known one.
"""
_STUDY_HEAD = """\
Study keys
==========

Every key of a study file, which ``lclm ablate`` reads. Paths in it are relative to the folder of the file.
"""
_LIMITS = {
    annotated_types.Gt: ("gt", ">"),
    annotated_types.Ge: ("ge", "≥"),
    annotated_types.Lt: ("lt", "<"),
    annotated_types.Le: ("le", "≤"),
}


def known_keys() -> set[str]:
    """Dotted names of all keys and branches of the configuration tree."""
    return {key for key, _, _ in describe_keys()}


def _type_name(annotation: object) -> str:
    """``annotation`` as a reader of YAML would say it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(json.dumps(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type_name(argument) for argument in arguments)
    if origin in (list, tuple):
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"mapping from {_type_name(arguments[0])} to {_type_name(arguments[1])}"
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping (" + ", ".join(annotation.model_fields) + ")"
    names = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)).lower())  # type: ignore[call-overload]


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted key, type, limits) of every leaf of ``model``."""
    for name, field in model.model_fields.items():
        dotted = prefix + name
        branch = _branch(field.annotation)
        if branch is not None:
            keyed = "NAME." if "dict" in str(field.annotation) else ""
            yield from _leaves(branch, f"{dotted}.{keyed}")
            continue
        limits = [
            f"{sign} {getattr(limit, attribute)}"
            for limit in field.metadata
            for kind, (attribute, sign) in _LIMITS.items()
            if isinstance(limit, kind)
        ]
        yield dotted, _type_name(field.annotation), ", ".join(limits)


def _branch(annotation: object) -> type[BaseModel] | None:
    """The tree below a key's type, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (dict, typing.Union, types.UnionType):
        for argument in typing.get_args(annotation):
            if (found := _branch(argument)) is not None:
                return found
    return None


def _page(head: str, model: type[BaseModel], directive: str) -> str:
    """The reference of ``model``; ``directive`` is ``confval``, or an object type that knows no options."""
    leaves = {key: (kind, limits) for key, kind, limits in _leaves(model)}
    lines = [head]
    for key, default, text in describe_keys(model):
        if key not in leaves:  # a branch
            if "." not in key:
                lines += [f".. _config-{key}:", "", key, "-" * len(key), "", text, ""]
            continue
        kind, limits = leaves.pop(key)
        kind = f"{kind} ({limits})" if limits else kind
        default = default if default == "required" else f"``{default}``"
        text = text.replace("*", "\\*")
        lines += [f".. {directive}:: {key}"]
        if directive == "confval":
            lines += [f"   :type: {kind}", f"   :default: {default}", "", f"   {text}", ""]
        else:
            lines += ["", f"   {text}", "", f"   :Type: {kind}", f"   :Default: {default}", ""]
    if leaves:
        raise ValueError(f"keys without documentation: {sorted(leaves)}; declare them with key() or required()")
    return "\n".join(lines)


def _write(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "reference" / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {
        "configuration": _page(_HEAD, Config, "confval"),
        "study": _page(_STUDY_HEAD, StudyConfig, "studykey"),
    }.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before Sphinx looks for them."""
    app.add_object_type("studykey", "studykey", objname="study key", indextemplate="pair: %s; study key")
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True}
