"""A document as plain blocks, rendered as Markdown and as one HTML page, so that both say the same.

Text is plain but for `` `code` `` and ``**bold**``.
"""

import base64
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup, escape

_FENCE = "~~~~"


class Cell(NamedTuple):
    """A cell of a table; ``tone`` colours it in HTML: better, worse, tie, soft or nothing."""

    text: str
    tone: str = ""


class Text(NamedTuple):
    """A paragraph; ``tone`` lead or soft."""

    text: str
    tone: str = ""


class Table(NamedTuple):
    """A table under ``caption``; the first column names its row.

    ``words``: cells hold words rather than numbers, so they are aligned left and may break.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    words: bool = False


class Figure(NamedTuple):
    """A PNG, by its path relative to the document."""

    path: str
    title: str
    caption: str = ""


class Gallery(NamedTuple):
    """Small figures, side by side where there is room."""

    figures: Sequence[Figure]


class Card(NamedTuple):
    """A headline number: its name, and (value, what it belongs to)."""

    name: str
    values: Sequence[tuple[str, str]]


class Cards(NamedTuple):
    """Headline numbers."""

    cards: Sequence[Card]


class Passages(NamedTuple):
    """Quoted texts that belong together, each under a label."""

    title: str
    texts: Sequence[tuple[str, str]]


class Folded(NamedTuple):
    """Long text that is folded away under a title."""

    title: str
    text: str


Block = Text | Table | Figure | Gallery | Cards | Passages | Folded


class Section(NamedTuple):
    """Blocks under a title; a section without a title comes under the heading of the document."""

    title: str
    blocks: Sequence[Block]


def plain_table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", words: bool = False) -> Table:
    """A table of plain texts."""
    return Table(header, [[Cell(text) for text in row] for row in rows], caption, words)


def markdown(title: str, sections: Iterable[Section]) -> str:
    """The document as Markdown; sections without blocks are left out."""
    lines = [f"# {title}", ""]
    for section in sections:
        if section.title and section.blocks:
            lines += [f"## {section.title}", ""]
        for block in section.blocks:
            lines += [*_markdown(block), ""]
    return "\n".join(lines)


def html(title: str, sections: Iterable[Section], folder: Path) -> str:
    """The document as one page that needs no other file and no network; sections without blocks are left out.

    Args:
        title: heading.
        sections: content.
        folder: what the paths of figures are relative to.
    """

    def data_url(path: str) -> str:
        return "data:image/png;base64," + base64.b64encode((folder / path).read_bytes()).decode()

    page = template("document.html")
    return page.render(title=title, sections=[one for one in sections if one.blocks], data_url=data_url)


def template(name: str) -> jinja2.Template:
    """The template ``name`` of this package; all pages share ``base.html``."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lclm_jax.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = _inline
    environment.filters["kind"] = lambda block: type(block).__name__
    return environment.get_template(name)


def _markdown(block: Block) -> Iterator[str]:
    match block:
        case Text():
            yield block.text
        case Figure():
            yield f"![{block.title}]({block.path})"
            if block.caption:
                yield from ("", f"*{block.caption}*")
        case Gallery():
            yield from (f"![{one.title}]({one.path})" for one in block.figures)
        case Cards():
            named = any(name for card in block.cards for _, name in card.values)
            yield _row(["", *(name for _, name in block.cards[0].values)] if named else ["", ""])
            yield _row(["---"] * (1 + len(block.cards[0].values)))
            yield from (_row([card.name, *(value for value, _ in card.values)]) for card in block.cards)
        case Passages():
            yield f"**{block.title}**"
            for label, text in block.texts:
                yield from ("", label, "", _FENCE, text.strip("\n"), _FENCE)
        case Folded():
            yield from ("<details>", f"<summary>{block.title}</summary>", "")
            yield from (_FENCE, block.text.rstrip(), _FENCE, "</details>")
        case Table():
            if block.caption:
                yield from (f"**{block.caption}**", "")
            yield _row(block.header)
            yield _row(["---"] + ["---" if block.words else "---:"] * (len(block.header) - 1))
            yield from (_row([cell.text for cell in row]) for row in block.rows)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _inline(text: str) -> Markup:
    coded = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", coded))
