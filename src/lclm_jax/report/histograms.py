"""Histograms of a stage's data: lengths of documents, spans and examples, fraction compressed, fill of the rows."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from lclm_jax.data.loading.row_index import RowIndex
from lclm_jax.report.plots import save, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RECORDS = 2000


def plot_ratios(indices: Mapping[int, RowIndex], rows: int, path: Path, title: str) -> Iterator[Path]:
    """Write one PNG for each ratio's index, ``path`` itself if there is one alone; yields where they are."""
    for ratio, index in indices.items():
        own = path if len(indices) == 1 else path.with_stem(f"{path.stem}-{ratio}x")
        plot_histograms(index, rows, own, f"{title}, N = {ratio}")
        yield own


def plot_histograms(index: RowIndex, rows: int, path: Path, title: str) -> None:
    """Write a PNG about the first ``rows`` rows of a stage; spans and documents are those of a sample of records."""
    pack = index.maker.sources[0].setup.pack
    documents, spans = _lengths(index)
    tokens, encoder, raw, decoder_fill, encoder_fill = _rows(index, rows)
    with styled(12, 7):
        figure, grid = plt.subplots(2, 3)
        figure.suptitle(f"{title}: {rows:,} rows")
        axes = grid.ravel()
        _histogram(axes[0], documents, "tokens of a record", log=True)
        _histogram(axes[1], spans, "encoder tokens of a span", log=True)
        _histogram(axes[2], {"": tokens}, "decoder positions of an example", log=True)
        _histogram(axes[3], {"": encoder / np.maximum(raw, 1)}, "compressed fraction of an example's tokens")
        _histogram(axes[4], {"": decoder_fill}, f"decoder fill of a row (S={pack.row_length})")
        _histogram(
            axes[5], {"": encoder_fill}, f"encoder fill of a row (M={pack.encoder_rows}, R={pack.encoder_row_length})"
        )
        save(figure, path)


def _lengths(index: RowIndex) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Tokens of records and of spans, by source."""
    documents, spans = {}, {}
    for number, source in enumerate(index.maker.sources):
        first = range(min(len(source), _RECORDS))
        (_, records), *_ = index.maker.mixture.records(number, first)
        plan = source.plan(0, records)
        documents[source.name] = source.split.numbers("decoder_tokens", records)
        spans[source.name] = plan.spans.values
    return documents, spans


def _rows(index: RowIndex, rows: int) -> tuple[np.ndarray, ...]:
    """Positions, encoder tokens and raw tokens of every example; fills of every row."""
    pack, parts = index.maker.sources[0].setup.pack, []
    for block in index.blocks(rows):
        last = min(len(block), index.origin.row + rows - block.cursor.row)
        ends = block.columns["rows"][: last + 1]
        tokens, encoder, raw = (block.columns[n][: ends[-1]] for n in ("tokens", "encoder_tokens", "raw_tokens"))
        sums = [np.diff(np.append(0, np.cumsum(one, dtype=np.int64))[ends]) for one in (tokens, encoder)]
        room = pack.encoder_rows * pack.encoder_row_length
        parts.append((tokens, encoder, raw, sums[0] / pack.row_length, sums[1] / room))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _histogram(axis: "Axes", values: dict[str, np.ndarray], label: str, log: bool = False) -> None:
    shown = {name: one for name, one in values.items() if one.size}
    if not shown:
        axis.set_axis_off()
        return
    low, high = min(one.min() for one in shown.values()), max(one.max() for one in shown.values())
    if log and low == high:
        bins = np.array([low / 2, low - 0.5, low + 0.5, low * 2])
    elif log:  # whole numbers: a bin between two of them would be empty
        bins = np.unique(np.rint(np.geomspace(max(low, 1), high + 1, 41))) - 0.5
    else:
        bins = np.linspace(min(low, 0), max(high, 1), 41)
    widths = np.linspace(1.0, 4.0, len(shown)).tolist()
    for name, one in shown.items():
        mean = f"{name}{', ' * bool(name)}mean {one.mean():,.{0 if one.mean() >= 100 else 2}f}"
        weights = np.full(one.size, 1 / one.size)
        # Outlines of falling width: of sources that are alike, all stay visible.
        drawn = (
            {"histtype": "stepfilled", "alpha": 0.5} if len(shown) == 1 else {"histtype": "step", "lw": widths.pop()}
        )
        axis.hist(one, bins.tolist(), label=mean, weights=weights, **drawn)
    if log:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(axis="x", rotation=45 if high > 200 * max(low, 1) else 0)
    axis.tick_params(labelsize=8)
    axis.set_xlabel(label)
    axis.set_ylabel("fraction")
    axis.legend(fontsize=8)
