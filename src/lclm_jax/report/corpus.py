"""What a prepared corpus holds, for people: tables of the terminal, and one page with figures."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter
from rich.console import Console
from rich.table import Table

from lclm_jax.data.inspect.stats import PERCENTILES, CorpusStats, SplitStats
from lclm_jax.report import document
from lclm_jax.report.formatting import NOTHING, count
from lclm_jax.report.plots import CYCLE, save, styled

_LANGUAGES = 20
"""Languages with most tokens, which are shown by name."""


class PlainTable(NamedTuple):
    """A table of texts; the first column names its row."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(stats: CorpusStats) -> Iterator[PlainTable]:
    """The tables of both forms; those without rows are left out."""
    for make in (_sizes, _lengths, _sources, _languages, _duplicates, _fills, _left_out):
        if (table := make(stats)).rows:
            yield table


def show_corpus(stats: CorpusStats, terminal: bool) -> None:
    """Print the tables; where there is no ``terminal`` the width is free: narrow columns would break numbers in two."""
    console = Console(width=None if terminal else 160)
    for one in tables(stats):
        table = Table(title=one.title, title_justify="left", title_style="bold")
        for place, name in enumerate(one.header):
            table.add_column(name, justify="right" if place else "left")
        for row in one.rows:
            table.add_row(*row)
        console.print(table)


def write_corpus_page(stats: CorpusStats, title: str, path: Path) -> None:
    """Write the page; it needs no other file and no network."""
    splits = [one for one in stats.splits if one.records]
    tokens = sum(one.tokens for one in splits)
    size = sum(one.record_bytes + one.lengths_bytes for one in splits)
    repeated = sum(one.tokens for one in stats.duplicates.values())
    cards = [
        document.Card("tokens", [(count(tokens), "")]),
        document.Card("records", [(f"{sum(one.records for one in splits):,}", "")]),
        document.Card("bytes a token", [(f"{size / tokens:.2f}" if tokens else NOTHING, "")]),
        document.Card("tokens in duplicates", [(_share(repeated, tokens), "")]),
    ]
    with tempfile.TemporaryDirectory() as folder:
        blocks: list[document.Block] = [document.Cards(cards)]
        if splits:
            _plot_lengths(splits, Path(folder) / "lengths.png")
            blocks.append(document.Figure("lengths.png", "Tokens of a record", "Share of the records, all splits."))
        sections = [document.Section("", blocks)]
        sections += [document.Section(one.title, [document.plain_table(one.header, one.rows)]) for one in tables(stats)]
        page = document.html(title, sections, Path(folder))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _sizes(stats: CorpusStats) -> PlainTable:
    header = ("split", "records", "tokens", "MB of records", "MB of lengths", "bytes a token")
    rows = [
        (
            *(_name(one), f"{one.records:,}", f"{one.tokens:,}"),
            *(f"{one.record_bytes / 1e6:,.2f}", f"{one.lengths_bytes / 1e6:,.2f}", f"{one.bytes_per_token:.2f}"),
        )
        for one in stats.splits
        if one.records
    ]
    return PlainTable("Size", header, rows)


def _lengths(stats: CorpusStats) -> PlainTable:
    header = ("split", "mean", *(f"{one} %" for one in PERCENTILES), "longest")
    rows = []
    for one in stats.splits:
        if one.records:
            found = [f"{value:,.0f}" for value in one.percentiles().values()]
            mean = f"{one.tokens / one.records:,.0f}"
            rows.append((_name(one), mean, *found, f"{one.lengths.max():,}"))
    return PlainTable("Tokens of a record, by percentile", header, rows)


def _sources(stats: CorpusStats) -> PlainTable:
    total = sum(one.tokens for one in stats.splits if one.split == "train")
    rows = []
    for name, collection in stats.sources.items():
        train = stats.of(collection)
        share = _share(train.tokens, total)
        rows.append((f"{name} (of {collection})", f"{train.records:,}", f"{train.tokens:,}", share))
    return PlainTable("Sources", ("source", "records to train on", "tokens", "of all tokens to train on"), rows)


def _languages(stats: CorpusStats) -> PlainTable:
    rows = []
    for collection in dict.fromkeys(one.collection for one in stats.splits if one.languages):
        own = [one for one in stats.splits if one.collection == collection]
        languages = sum((Counter(one.languages) for one in own), Counter[str]())
        total = sum(one.tokens for one in own)
        known = [*languages.most_common(_LANGUAGES)]
        others = languages.total() - sum(tokens for _, tokens in known)
        known += [("others", others)] if others else []
        known += [("not known", total - languages.total())] if total > languages.total() else []
        rows += [(f"{collection}: {name}", f"{tokens:,}", _share(tokens, total)) for name, tokens in known]
    return PlainTable("Languages, by their column", ("language", "tokens", "of the collection"), rows)


def _duplicates(stats: CorpusStats) -> PlainTable:
    rows = []
    for collection, found in stats.duplicates.items():
        own = [one for one in stats.splits if one.collection == collection]
        records, tokens = sum(one.records for one in own), sum(one.tokens for one in own)
        shares = _share(found.records, records), f"{found.tokens:,}", _share(found.tokens, tokens)
        rows.append((collection, f"{found.records:,}", *shares, f"{found.across_splits:,}"))
    header = ("collection", "records", "of the records", "tokens", "of the tokens", "of a record of another split")
    return PlainTable("Duplicates: records equal to an earlier one", header, rows)


def _fills(stats: CorpusStats) -> PlainTable:
    rows = [
        (f"{one.stage}, N = {one.ratio}", f"{one.decoder:.3f}", f"{one.encoder:.3f}", f"{one.left_out:.1%}")
        for one in stats.fills
    ]
    header = ("stage", "decoder positions in use", "encoder positions in use", "examples that fit no row")
    return PlainTable("Fill of packed rows, by a sample", header, rows)


def _left_out(stats: CorpusStats) -> PlainTable:
    counts: dict[str, Counter[str]] = {}
    for one in stats.splits:
        counts.setdefault(one.collection, Counter()).update(one.left_out)
    rows = [(f"{name}: {reason}", f"{n:,}") for name, found in counts.items() for reason, n in found.most_common()]
    return PlainTable("Left out or noted by preparation", ("reason", "times"), rows)


def _name(one: SplitStats) -> str:
    return f"{one.collection}/{one.split}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else NOTHING


def _plot_lengths(splits: Sequence[SplitStats], path: Path) -> None:
    """Histograms of the lengths of each collection, on a logarithmic axis."""
    by_collection: dict[str, list[np.ndarray]] = {}
    for one in splits:
        by_collection.setdefault(one.collection, []).append(one.lengths)
    joined = {name: np.maximum(np.concatenate(parts), 1) for name, parts in by_collection.items()}
    low, high = min(int(one.min()) for one in joined.values()), max(int(one.max()) for one in joined.values())
    bins = np.geomspace(low * 0.95, high * 1.05, 60)
    with styled(9, 3.6):
        figure, axis = plt.subplots()
        for number, (name, lengths) in enumerate(joined.items()):
            weights, colour = np.full(lengths.size, 1 / lengths.size), CYCLE[number % len(CYCLE)]
            axis.hist(lengths, bins.tolist(), weights=weights, histtype="stepfilled", alpha=0.25, color=colour)
            axis.hist(lengths, bins.tolist(), weights=weights, histtype="step", lw=1.4, color=colour, label=name)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_xlabel("tokens of a record")
        axis.set_ylabel("share of the records")
        axis.legend()
        save(figure, path)
