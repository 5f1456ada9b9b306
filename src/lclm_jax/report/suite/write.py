"""The report of a suite: report.md and report.html for people, results.json for programs."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from lclm_jax.files import write_text
from lclm_jax.report import document, formatting
from lclm_jax.report.document import Block, Card, Cards, Figure, Gallery, Section, Text
from lclm_jax.report.suite import plots, tables
from lclm_jax.suite.spec import SuiteConfig
from lclm_jax.suite.statistics import Interval, mean_interval
from lclm_jax.suite.summary import Summary, summarise


def write_report(suite: SuiteConfig) -> Summary:
    """Write everything that the folder of ``suite`` holds so far to its ``report/``; what is missing is said.

    Returns:
        What the report says, as plain values.

    Raises:
        WriteError: the folder cannot be written.
    """
    summary = summarise(suite)
    out = Path(suite.out) / "report"
    out.mkdir(parents=True, exist_ok=True)
    content = _sections(summary, out)
    title = suite.title or suite.name
    write_text(out / "report.md", document.markdown(title, content))
    write_text(out / "report.html", document.html(title, content, out))
    write_text(out / "results.json", json.dumps(summary.as_dict(), indent=1, allow_nan=False) + "\n")
    return summary


def _sections(summary: Summary, out: Path) -> list[Section]:
    scored = any(row.score for row in summary.rows)
    quality: list[Block] = [tables.overview(summary)] if scored else []
    likely = [one for one in (tables.recovered(summary), tables.likelihood(summary)) if one is not None]
    compared = tables.differences(summary)
    costs = tables.costs(summary)
    known = tables.published(summary)
    note = "Other models, other data, other code: for orientation, not for comparison."
    return [
        Section("", _head(summary)),
        Section("Scores", quality),
        Section("Likelihood of the gold answer", likely),
        Section("Frontiers", _frontiers(summary, out)),
        Section("Length and depth", _heat(summary, out)),
        Section("Times and memory", [costs] if costs else []),
        Section("Differences", [compared] if compared else []),
        Section("Sizes and speed on the tasks", [tables.sizes(summary)] if summary.rows else []),
        Section("Published values", [known, Text(note, "soft")] if known else []),
        Section("Failures", [tables.failures(summary.failures)] if summary.failures else []),
    ]


def _head(summary: Summary) -> list[Block]:
    blocks: list[Block] = []
    means = {name: _mean_score(summary, name) for name in summary.suite.systems}
    best = [(name, found) for name, found in means.items() if found is not None]
    if best:
        of = f"of 100, {len(summary.tasks)} tasks"
        blocks.append(Cards([Card(name, [(f"{100 * found.value:.1f}", of)]) for name, found in best]))
    elif summary.rows:
        blocks.append(Text("No answer was scored: the likelihood of the gold answer was measured alone.", "lead"))
    else:
        blocks.append(Text("Nothing is measured yet.", "lead"))
    if summary.missing:
        left = ", ".join(f"`{name}` {count:,}" for name, count in summary.missing.items())
        blocks.append(Text(f"Samples not measured yet: {left}. Rerun the command to go on.", "soft"))
    cut = sum(row.cut for row in summary.rows)
    if cut:
        answers = sum(row.samples for row in summary.rows if row.score)
        blocks.append(Text(f"{cut:,} of {answers:,} answers were cut by the limit of new tokens.", "soft"))
    return blocks


def _mean_score(summary: Summary, name: str) -> Interval | None:
    """Mean of the tasks' scores; None unless the system has them all."""
    rows = [summary.row(name, task) for task in summary.tasks]
    values = [row.score.value for row in rows if row is not None and row.score is not None]
    tasks_with_scores = {row.task for row in summary.rows if row.score}
    if not values or len(values) < len(tasks_with_scores):
        return None
    return mean_interval(values, [str(number) for number in range(len(values))])


def _frontiers(summary: Summary, out: Path) -> list[Block]:
    """Score (or recovered share) against time to first token and against memory, at the longest measured length."""
    costs = {one["system"]: one for one in summary.costs if one.get("ttft_seconds")}  # the longest length comes last
    scored = any(row.score for row in summary.rows)
    figures = []
    for name, key, label in (
        ("ttft", "ttft_seconds", "time to first token (s)"),
        ("memory", "peak_bytes", "peak memory (GB)"),
    ):
        points = []
        for system, cost in costs.items():
            quality = _mean_score(summary, system) if scored else _mean_recovered(summary, system)
            if quality is None or not cost.get(key) or not math.isfinite(quality.value):
                continue
            scale, unit = 100 if scored else 1, 1e9 if key == "peak_bytes" else 1
            low, high = _one_task(summary, system, scored)
            points.append(plots.Point(system, cost[key] / unit, scale * quality.value, scale * low, scale * high))
        if len(points) >= 2:
            axis = "mean score (of 100)" if scored else "recovered share"
            plots.plot_frontier(out / "plots" / f"{name}.png", points, label, axis)
            length = max(one["length"] for one in costs.values())
            caption = (
                f"{axis.capitalize()} against {label} of a prompt of {length:,} raw tokens. Up and left is better."
            )
            figures.append(Figure(f"plots/{name}.png", f"score against {label}", caption))
    return [Gallery(figures)] if figures else []


def _one_task(summary: Summary, name: str, scored: bool) -> tuple[float, float]:
    """The interval of a system if there is one task: an average over tasks has none over documents."""
    rows = [row for row in summary.rows if row.system == name and (row.score if scored else row.recovered)]
    found = (rows[0].score if scored else rows[0].recovered) if len(rows) == 1 else None
    return (found.low, found.high) if found is not None else (math.nan, math.nan)


def _mean_recovered(summary: Summary, name: str) -> Interval | None:
    if name in (summary.suite.reference_name, summary.suite.no_context_name):
        value = float(name == summary.suite.reference_name)
        return Interval(value, math.nan, math.nan, 0, 0)
    values = [row.recovered.value for row in summary.rows if row.system == name and row.recovered is not None]
    return mean_interval(values, [str(number) for number in range(len(values))]) if values else None


def _heat(summary: Summary, out: Path) -> list[Block]:
    figures = []
    for family in dict.fromkeys(cell.family for cell in summary.cells):
        scores: dict[str, dict[tuple[int, float], float]] = {}
        for cell in summary.cells:
            if cell.family == family:
                scores.setdefault(cell.system, {})[cell.length, cell.depth] = cell.score
        path = out / "plots" / f"depth-{family.replace('/', '-')}.png"
        plots.plot_heat(path, scores)
        title = f"{family} by length and depth"
        figures.append(
            Figure(f"plots/{path.name}", title, f"Mean score of `{family}` by length and depth of the answer.")
        )
    return [Gallery(figures)] if figures else []


def terminal_rows(summary: Summary) -> tuple[Sequence[str], list[list[str]]]:
    """Header and rows of the table that the command prints; ``+``, ``-`` and ``=`` compare with the reference."""
    header = ["system", "task", "samples", "score", "", "recovered share", "positions", "first token", "failed"]
    signs = {"better": "+", "worse": "-", "tie": "=", None: ""}
    rows = [
        [
            row.system,
            row.task,
            str(row.samples),
            tables.interval(row.score, 100),
            signs[row.verdict],
            tables.interval(row.recovered, 1, 2),
            formatting.NOTHING if row.positions is None else f"{row.positions:,.0f}",
            formatting.NOTHING if row.ttft_seconds is None else f"{row.ttft_seconds:.2f} s",
            str(row.failed),
        ]
        for row in summary.rows
    ]
    return header, rows
