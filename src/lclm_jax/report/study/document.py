"""A report as plain blocks, rendered as Markdown and as one HTML page, so that both say the same.

Text is plain but for `` `code` `` and ``**bold**``.
"""

import base64
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup, escape


class Cell(NamedTuple):
    """A cell of a table; ``tone`` colours it in HTML: better, worse, tie, soft or nothing."""

    text: str
    tone: str = ""


class Text(NamedTuple):
    """A paragraph; ``tone`` lead or soft."""

    text: str
    tone: str = ""


class Table(NamedTuple):
    """A table under ``caption``; the first column names its row."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


class Figure(NamedTuple):
    """A PNG, relative to the report."""

    path: str
    title: str
    caption: str


class Folded(NamedTuple):
    """Long text that is folded away under a title."""

    title: str
    text: str


Block = Text | Table | Figure | Folded


class Section(NamedTuple):
    """Blocks under a title."""

    title: str
    blocks: Sequence[Block]


def markdown(title: str, sections: Iterable[Section]) -> str:
    """The report as Markdown; a section without a title comes under the heading of the report."""
    lines = [f"# {title}", ""]
    for section in sections:
        if section.title:
            lines += [f"## {section.title}", ""]
        for block in section.blocks:
            lines += [*_markdown(block), ""]
    return "\n".join(lines)


def html(title: str, sections: Sequence[Section], folder: Path) -> str:
    """The report as one page that needs no other file and no network.

    Args:
        title: heading.
        sections: content.
        folder: where the figures lie.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lclm_jax.report", "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["inline"] = _inline
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.filters["data_url"] = lambda path: (
        "data:image/png;base64," + base64.b64encode((folder / path).read_bytes()).decode()
    )
    return environment.get_template("study.html").render(title=title, sections=sections)


def _markdown(block: Block) -> list[str]:
    if isinstance(block, Text):
        return [block.text]
    if isinstance(block, Figure):
        return [f"![{block.title}]({block.path})", "", f"*{block.caption}*"]
    if isinstance(block, Folded):
        return ["<details>", f"<summary>{block.title}</summary>", "", "~~~~", block.text.rstrip(), "~~~~", "</details>"]
    rows = [[cell.text for cell in row] for row in block.rows]
    table = [_row(block.header), _row(["---"] + ["---:"] * (len(block.header) - 1)), *(_row(row) for row in rows)]
    return [f"**{block.caption}**", "", *table] if block.caption else table


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _inline(text: str) -> Markup:
    coded = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", coded))
