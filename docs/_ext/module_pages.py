"""Writes one page of docstrings for each package of ``lclm_jax``, by ``automodule``."""

import importlib
from pathlib import Path
from typing import TypeVar

from docutils import nodes
from sphinx.application import Sphinx

import lclm_jax

SOURCE = Path(lclm_jax.__file__).parent
_LEFT_OUT = {"__main__"}


def packages() -> dict[str, list[str]]:
    """Package -> its modules by full name, packages inside it included; single files of the root under "" ."""
    found: dict[str, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        package = parts[0] if len(parts) > 1 else ""
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if parts and parts[-1] not in _LEFT_OUT:
            found.setdefault(package, []).append(".".join(("lclm_jax", *parts)))
    return found


MODULES = {module for modules in packages().values() for module in modules}


def _page(package: str, modules: list[str]) -> str:
    title = f"lclm_jax.{package}" if package else "lclm_jax"
    lines = [title, "=" * len(title), ""]
    for module in modules:
        heading = module.removeprefix(f"{title}.")
        if module != title:
            lines += [heading, "-" * len(heading), ""]
        lines += [f".. automodule:: {module}", ""]
    return "\n".join(lines)


def _write(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "reference" / "generated" / "modules"
    folder.mkdir(parents=True, exist_ok=True)
    pages = {package or "root": _page(package, modules) for package, modules in packages().items()}
    for old in folder.glob("*.rst"):
        if old.stem not in pages:
            old.unlink()
    for package, text in pages.items():
        path = folder / f"{package}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


_ATTRIBUTES: dict[str, list[str]] = {}


def _keep(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Before Napoleon: a sentence after "Returns:" gets an empty type, since its first words would become one."""
    if what == "attribute":
        _ATTRIBUTES[name] = list(lines)
    for number, line in enumerate(lines[:-1]):
        if line.strip() in ("Returns:", "Yields:"):
            sentence = lines[number + 1]
            lines[number + 1] = f"{sentence[: len(sentence) - len(sentence.lstrip())]}: {sentence.lstrip()}"


def _restore(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Napoleon takes the words before a colon for the type of an attribute; here they begin a sentence."""
    if what == "attribute":
        lines[:] = _ATTRIBUTES.pop(name)


def _type_variable(app: Sphinx, env: object, node: nodes.Element, text: nodes.Node) -> nodes.Node | None:
    """A reference to a type variable, which has no entry, is its name alone."""
    module, _, name = node.get("reftarget", "").rpartition(".")
    if module not in MODULES:
        return None
    return text if isinstance(getattr(importlib.import_module(module), name, None), TypeVar) else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before Sphinx looks for them."""
    app.connect("builder-inited", _write)
    app.connect("autodoc-process-docstring", _keep, priority=400)  # Napoleon's priority is 500
    app.connect("autodoc-process-docstring", _restore, priority=600)
    app.connect("missing-reference", _type_variable)
    return {"parallel_read_safe": True}
