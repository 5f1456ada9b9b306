"""Writes the reference of every configuration key, from the tree that declares them.

``reference/generated/configuration.rst`` holds one ``confval`` for each key of ``lclm_jax.config.Config``, so that a
literal such as ``train.z_loss`` can be linked to it; ``reference/generated/study.rst`` holds the keys of a study.
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
from lclm_jax.config.base import Tree, branch_of
from lclm_jax.config.renames import GONE, RENAMED
from lclm_jax.suite.spec import SuiteConfig

_HEAD = """\
Configuration keys
==================

Every key of a configuration file, with its type, default, role and meaning. ``lclm config keys PREFIX`` prints the same
list; ``lclm config show CONFIG`` prints a configuration with all defaults filled in. ``NAME`` stands for a name of your
own. An unknown key is an error that suggests the nearest known one.

The role says what a key decides:

- *result*: losses, rows or weights depend on it, so it may not change within a run;
- *layout*: how the same arithmetic is laid out over devices, memory and processes;
- *logging*: how a run is named, watched, saved and measured;
- *place*: where things are stored.

"""
_STUDY_HEAD = """\
Study keys
==========

Every key of a study file, which ``lclm ablate`` reads. Paths in it are relative to the folder of the file.

"""
_SUITE_HEAD = """\
Suite keys
==========

Every key of a suite file, which ``lclm suite`` reads. Paths in it are relative to the working directory.

"""
_LIMITS = {
    annotated_types.Gt: ("gt", ">"),
    annotated_types.Ge: ("ge", "≥"),
    annotated_types.Lt: ("lt", "<"),
    annotated_types.Le: ("le", "≤"),
}
_SCALARS = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null"}


def known_keys() -> set[str]:
    """Dotted names of all keys and branches of the configuration tree."""
    return {key.name for key in describe_keys(Config)}


def _type_name(annotation: object) -> str:
    """``annotation`` as a reader of YAML would say it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(f"``{json.dumps(value)}``" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type_name(argument) for argument in arguments)
    if origin in (list, tuple):
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"mapping from {_type_name(arguments[0])} to {_type_name(arguments[1])}"
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"mapping ({', '.join(annotation.model_fields)})"
    for scalar, name in _SCALARS.items():
        if annotation is scalar:
            return name
    return getattr(annotation, "__name__", str(annotation)).lower()


def _types(tree: type[Tree], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, its type and limits) of every leaf of ``tree``."""
    for name, field in tree.model_fields.items():
        branch, keyed = branch_of(field.annotation)
        if branch is not None:
            yield from _types(branch, f"{prefix}{name}.{'NAME.' if keyed else ''}")
            continue
        limits = [
            f"{sign} {getattr(limit, attribute)}"
            for limit in field.metadata
            for kind, (attribute, sign) in _LIMITS.items()
            if isinstance(limit, kind)
        ]
        yield f"{prefix}{name}", _type_name(field.annotation) + (f" ({', '.join(limits)})" if limits else "")


def _page(head: str, tree: type[Tree], directive: str) -> str:
    """The reference of ``tree``; ``directive`` describes one key."""
    kinds, lines = dict(_types(tree)), [head]
    for key in describe_keys(tree):
        if key.name not in kinds:  # a branch
            if "." not in key.name:
                lines += [f".. _config-{key.name}:", "", key.name, "-" * len(key.name), "", key.doc, ""]
            continue
        default = key.default if key.default == "required" else f"default ``{key.default}``"
        role = f"; role: *{key.role}*" if key.role else ""
        lines += [f".. {directive}:: {key.name}", "", f"   {kinds[key.name]}; {default}{role}", ""]
        lines += [f"   {_escape(key.doc)}", ""]
    return "\n".join([*lines, ""])


def _escape(text: str) -> str:
    return text.replace("*", r"\*")


def _old_keys() -> str:
    """Keys of earlier versions, as a section; empty if there are none."""
    rows = [f"- **{old}**: now ``{new}``" for old, new in RENAMED.items()]
    rows += [f"- **{old}**: gone; {_escape(why)}" for old, why in GONE.items() if why]
    head = ["", "Keys of earlier versions", "-" * 24, "", "They still load, with a warning.", ""]
    return "\n".join([*head, *rows, ""]) if rows else ""


def _write(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "reference" / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {
        "configuration": _page(_HEAD, Config, "confval") + _old_keys(),
        "study": _page(_STUDY_HEAD, StudyConfig, "studykey"),
        "suite": _page(_SUITE_HEAD, SuiteConfig, "suitekey"),
    }.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before Sphinx looks for them."""
    app.add_object_type("studykey", "studykey", objname="study key", indextemplate="pair: %s; study key")
    app.add_object_type("suitekey", "suitekey", objname="suite key", indextemplate="pair: %s; suite key")
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True}
