"""Tables of a suite's report."""

import math
from collections.abc import Callable, Collection, Sequence

from lclm_jax.report import formatting
from lclm_jax.report.document import Cell, Table, plain_table
from lclm_jax.suite.statistics import Interval
from lclm_jax.suite.summary import Row, Summary

NOTHING = Cell(formatting.NOTHING, "soft")


def interval(found: Interval | None, scale: float = 1.0, places: int = 1) -> str:
    """``71.0 [64.0, 77.5]``; the brackets are left out where the interval is not known."""
    if found is None or not math.isfinite(found.value):
        return formatting.NOTHING
    text = f"{scale * found.value:.{places}f}"
    if math.isfinite(found.low):
        text += f" [{scale * found.low:.{places}f}, {scale * found.high:.{places}f}]"
    return text.replace("-", "−")


def overview(summary: Summary) -> Table:
    """Scores of every system on every task, out of 100, coloured by the paired comparison with the reference."""
    reference = summary.suite.reference_name
    against = f" Colours compare with `{reference}`, sample by sample; = is a tie." if reference else ""
    return _grid(summary, _score, f"Score out of 100, with its 95 % interval over documents.{against}")


def recovered(summary: Summary) -> Table | None:
    """Share of the context's gain that each system recovers on the gold answer."""
    if not any(row.recovered for row in summary.rows):
        return None
    caption = (
        "Recovered share: nats that the context saves on the gold answer, as the system reads it, over those that the"
        " raw context saves. 0: as without context; 1: as with the raw context; ?: the raw context itself saves nothing"
        " that can be told from 0, so its shares say nothing."
    )
    measured = {row.system for row in summary.rows if row.recovered}
    return _grid(summary, _share, caption, measured)


def _share(row: Row) -> Cell:
    unsure = row.recovered is not None and not row.gain_is_known
    return Cell(interval(row.recovered, 1, 2) + (" ?" if unsure else ""), "soft" if unsure else "")


def likelihood(summary: Summary) -> Table | None:
    """Nats per token of the gold answer."""
    if not any(row.nats_per_token for row in summary.rows):
        return None
    return _grid(summary, lambda row: Cell(interval(row.nats_per_token, 1, 3)), "Nats per token of the gold answer.")


def _grid(summary: Summary, cell: Callable[[Row], Cell], caption: str, systems: Collection[str] | None = None) -> Table:
    """Systems by tasks, the more numerous of the two downwards.

    Args:
        summary: what was measured.
        cell: the cell of a row.
        caption: of the table.
        systems: those to show; None: all.
    """
    known = {(row.system, row.task): cell(row) for row in summary.rows}
    names = [name for name in summary.suite.systems if systems is None or name in systems]
    shown = {name: f"{name} (sees the question)" if summary.suite.systems[name].query_aware else name for name in names}
    if len(summary.tasks) > len(names):
        rows = [[Cell(f"`{task}`"), *(known.get((name, task), NOTHING) for name in names)] for task in summary.tasks]
        return Table(["task", *shown.values()], rows, caption)
    rows = [[Cell(f"`{shown[name]}`"), *(known.get((name, task), NOTHING) for task in summary.tasks)] for name in names]
    return Table(["system", *summary.tasks], rows, caption)


def _score(row: Row) -> Cell:
    if row.score is None:
        return NOTHING
    tie = " =" if row.verdict == "tie" else ""
    return Cell(interval(row.score, 100) + tie, row.verdict or "")


def differences(summary: Summary) -> Table | None:
    """Paired differences from the reference."""
    rows = [
        [
            Cell(f"`{row.system}`"),
            Cell(f"`{row.task}`", "soft"),
            Cell(str(row.difference.samples)),
            Cell(str(row.difference.documents)),
            Cell(interval(row.difference, 100), row.verdict or ""),
            Cell(row.verdict or "", row.verdict or ""),
        ]
        for row in summary.rows
        if row.difference is not None
    ]
    header = ["system", "task", "samples", "documents", "difference (points)", "verdict"]
    caption = f"Score minus that of `{summary.suite.reference_name}`, sample by sample."
    return Table(header, rows, caption) if rows else None


def sizes(summary: Summary) -> Table:
    """Positions, ratios, bytes and speed of every system on every task."""
    rows = []
    for row in summary.rows:
        system = summary.suite.systems[row.system]
        nominal = f"{system.ratio:g}" if system.press or system.context == "truncated" else formatting.NOTHING
        rows.append(
            [
                f"`{row.system}`",
                row.task,
                str(row.samples),
                str(row.failed),
                str(row.cut),
                _number(row.positions, ",.0f"),
                nominal,
                _number(row.effective_ratio, ".2f"),
                formatting.NOTHING if row.cache_bytes is None else formatting.count(row.cache_bytes) + "B",
                _number(row.ttft_seconds, ".3f"),
                _number(row.tokens_per_s, ".1f"),
            ]
        )
    header = ["system", "task", "samples", "failed", "cut", "positions", "nominal ratio", "effective ratio"]
    header += ["KV cache", "first token (s)", "tokens/s"]
    caption = (
        "Averages over samples. Cut: answers that the limit of new tokens ended. Effective ratio: raw tokens of the"
        " prompts over the positions they took. Presses that mask instead of evicting keep all positions in the cache."
    )
    return plain_table(header, rows, caption)


def costs(summary: Summary) -> Table | None:
    """Times and memory of fresh processes."""
    rows = []
    for one in summary.costs:
        name = [f"`{one['system']}`", f"{one['length']:,}"]
        if "ttft_seconds" not in one:
            rows.append([*name, one.get("note") or f"failed: {one.get('error')}", *[formatting.NOTHING] * 5])
            continue
        rows.append(
            [
                *name,
                _number(one["ttft_seconds"], ".3f"),
                _number(one.get("stored_ttft_seconds"), ".3f"),
                _number(one.get("tokens_per_s"), ".1f"),
                _number(one.get("positions"), ",.0f"),
                formatting.NOTHING if not one.get("cache_bytes") else formatting.count(one["cache_bytes"]) + "B",
                formatting.NOTHING if not one.get("peak_bytes") else formatting.count(one["peak_bytes"]) + "B",
            ]
        )
    header = ["system", "raw tokens", "first token, cold (s)", "with stored latents (s)", "tokens/s", "positions"]
    header += ["KV cache", "peak memory"]
    caption = "Medians of requests in a fresh process, after one that compiles; peak memory of the whole process."
    return plain_table(header, rows, caption) if rows else None


def published(summary: Summary) -> Table | None:
    """Published values: other models, data and code, so they are shown and never compared."""
    rows = [[one.system, one.task, f"{one.value:g}", one.source] for one in summary.suite.published]
    return plain_table(["system", "task", "value", "source"], rows, words=True) if rows else None


def failures(failed: Sequence[tuple[str, str, str]], most: int = 50) -> Table:
    """Samples without an answer."""
    rows = [[f"`{system}`", sample, why] for system, sample, why in failed[:most]]
    more = f" The first {most} of {len(failed)}." if len(failed) > most else ""
    return plain_table(["system", "sample", "why"], rows, f"Failed samples.{more}", words=True)


def _number(value: float | None, form: str) -> str:
    return formatting.NOTHING if value is None else format(value, form)
