"""Writes the reference of every ``lclm`` command, from the click tree that runs them."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click
from sphinx.application import Sphinx

from lclm_jax.cli.main import cli

_HEAD = """\
Commands
========

Every ``lclm`` command and its options. ``lclm COMMAND --help`` prints the same text.
"""


def commands() -> dict[str, click.Command]:
    """Every command by its full name (``"data prepare"``), groups included, in the order of ``--help``."""
    return dict(_walk("", cli))


def _walk(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None and not found.hidden:
                full = f"{name} {child}".strip()
                yield full, found
                yield from _walk(full, found)


def _paragraphs(text: str) -> list[str]:
    """The help text as reStructuredText; a paragraph that begins with a backspace keeps its lines, as click has it."""
    lines: list[str] = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.lstrip().startswith("\b"):
            lines += ["| " + line for line in _escape(paragraph.replace("\b", "").strip("\n")).split("\n")]
        else:
            lines += _escape(paragraph).split("\n")
        lines.append("")
    return lines


def _escape(text: str) -> str:
    return re.sub(r"([*|])", r"\\\1", re.sub(r"`([^`]+)`", r"``\1``", text))


def _command(name: str, command: click.Command) -> list[str]:
    title = f"lclm {name}"
    context = click.Context(command, info_name=title)
    usage = " ".join(command.get_usage(context).split()).removeprefix("Usage: ")
    level = "-" if " " not in name else "~"
    lines = [f".. _lclm-{name.replace(' ', '-')}:", "", title, level * len(title), "", f".. program:: {title}", ""]
    lines += ["::", "", f"    {usage}", "", *_paragraphs(command.help or "")]
    for parameter in command.params:
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None and not getattr(parameter, "hidden", False):
            spelling, text = record
            lines += [f".. option:: {spelling}", "", f"   {_escape(text)}", ""]
    return lines


def _write(app: Sphinx) -> None:
    lines = [_HEAD]
    for name, command in commands().items():
        lines += _command(name, command)
    folder = Path(app.srcdir) / "reference" / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / "commands.rst", "\n".join(lines)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the page before Sphinx looks for it."""
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True}
