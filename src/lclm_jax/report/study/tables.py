"""The tables of a study's report."""

from collections.abc import Sequence

from lclm_jax.ablate.effects import Effect
from lclm_jax.ablate.published import PublishedRow
from lclm_jax.ablate.statistics import diverged
from lclm_jax.ablate.summary import MeasureSummary, Summary
from lclm_jax.config.study import PublishedConfig
from lclm_jax.report import formatting
from lclm_jax.report.document import Cell, Table

_COLUMNS = 4
_NOTHING = Cell("–", "soft")
_TONES = {"agrees": "better", "disagrees": "worse"}


def ranking(summary: Summary) -> Table:
    """The primary measure: variants best first, each against the baseline."""
    one = summary.primary
    places = _places(one)
    header = ["variant", _titled(one), "against the baseline", "verdict", "p", "p, Holm", "verdict, Holm"]
    rows = []
    for name in summary.order:
        compared = one.comparisons.get(name)
        rest = [_NOTHING] * 5
        if name == summary.baseline:
            rest = [Cell("baseline", "soft"), *[_NOTHING] * 4]
        elif compared:
            rest = [
                Cell(formatting.signed(compared, formatting.decimals_of(one.comparisons)), compared.verdict),
                Cell(compared.verdict, compared.verdict),
                Cell(formatting.p_value(compared.p_value)),
                Cell(formatting.p_value(compared.holm_p_value)),
                Cell(compared.holm_verdict, compared.holm_verdict),
            ]
        rows.append([_name(summary, name), _mean(summary, one, name, places), *rest])
    return Table(header, rows)


def measures(summary: Summary) -> list[Table]:
    """All measures, those of one direction together: means with the best in bold, and differences from the baseline."""
    found = []
    for better in ("lower", "higher", None):
        group = [one for one in summary.measures if one.measure.better == better]
        for start in range(0, len(group), _COLUMNS):
            found += _pair_of_tables(summary, group[start : start + _COLUMNS])
    return found


def _pair_of_tables(summary: Summary, members: Sequence[MeasureSummary]) -> list[Table]:
    units = {one.measure.unit for one in members}
    better = members[0].measure.better
    notes = [next(iter(units)) if len(units) == 1 else "", f"{better} is better" if better else ""]
    note = ", ".join(filter(None, notes))
    note = f" ({note})" if note else ""
    header = ["variant", *(_titled(one, unit=len(units) > 1, better=False) for one in members)]
    found = [Table(header, _mean_rows(summary, members), f"Means over seeds{note}")]
    if any(one.comparisons for one in members):
        caption = f"Paired differences from {formatting.baseline(summary.baseline)}{note}"
        found.append(Table(header, _difference_rows(summary, members), caption))
    return found


def _mean_rows(summary: Summary, measures: Sequence[MeasureSummary]) -> list[list[Cell]]:
    places = [_places(one) for one in measures]
    return [
        [_name(summary, name), *(_mean(summary, one, name, n) for one, n in zip(measures, places, strict=True))]
        for name in summary.order
    ]


def _difference_rows(summary: Summary, measures: Sequence[MeasureSummary]) -> list[list[Cell]]:
    rows = []
    for name in summary.order:
        cells = [_NOTHING] * len(measures)
        for place, one in enumerate(measures):
            if name in one.comparisons:
                compared = one.comparisons[name]
                text = f"{formatting.signed(compared, formatting.decimals_of(one.comparisons))} {compared.verdict}"
                cells[place] = Cell(text, compared.verdict)
        if any(cell != _NOTHING for cell in cells):
            rows.append([_name(summary, name), *cells])
    return rows


def costs(summary: Summary) -> Table:
    """What the variants take."""
    header = [
        "variant", "encoder parameters", "adapter parameters", "decoder parameters", "encoder FLOPs per raw token",
        "decoder FLOPs per raw token", "training FLOPs, one seed", "raw tokens/s, all seeds", "peak memory (GB)",
        "decoder positions per raw token",
    ]  # fmt: skip
    rows = []
    for name in summary.order:
        if name not in summary.results:
            rows.append([_name(summary, name), *[_NOTHING] * (len(header) - 1)])
            continue
        cost = summary.results[name].cost
        texts = [
            *map(formatting.count, (cost.encoder_parameters, cost.adapter_parameters, cost.decoder_parameters)),
            *map(formatting.count, (cost.encoder_flops, cost.decoder_flops, cost.train_flops)),
            f"{cost.raw_tokens_per_second:,.0f}",
            f"{cost.peak_memory_bytes / 1e9:.2f}",
            f"{cost.positions_per_raw_token:.3f}",
        ]
        rows.append([_name(summary, name), *map(Cell, texts)])
    return Table(header, rows)


def effects(found: Sequence[Effect], places: int, heading: str, verdicts: bool) -> Table:
    """Effects of factors, or how they depend on one another.

    Args:
        found: the effects.
        places: decimals.
        heading: of the first column.
        verdicts: say better, worse or tie; otherwise whether the difference is found.
    """
    rows = []
    for one in found:
        compared = one.comparison
        verdict = compared.verdict if verdicts else ("tie" if compared.verdict == "tie" else "differ")
        row = [
            Cell(f"{one.factor}: {one.level}"),
            Cell(one.against, "soft"),
            Cell(str(one.pairs)),
            Cell(formatting.signed(compared, places), compared.verdict if verdicts else ""),
            Cell(verdict, compared.verdict if verdicts else ""),
            Cell(formatting.p_value(compared.p_value)),
        ]
        if verdicts:
            row += [
                Cell(formatting.p_value(compared.holm_p_value)),
                Cell(compared.holm_verdict, compared.holm_verdict),
            ]
        rows.append(row)
    corrected = ["p, Holm", "verdict, Holm"] if verdicts else []
    return Table([heading, "against", "pairs", "difference", "verdict", "p", *corrected], rows)


def published(config: PublishedConfig, rows: Sequence[PublishedRow]) -> Table:
    """Published values, and whether ours point the same way."""
    reference = next(row.variant for row in rows if row.published == "reference")
    body = [
        [
            Cell(f"`{row.variant}`"),
            Cell(f"{row.value:g}"),
            Cell(row.published, "soft" if row.published == "reference" else ""),
            Cell(row.ours) if row.ours else _NOTHING,
            _agreement(row) if row.agreement else _NOTHING,
        ]
        for row in rows
    ]
    better = f"{config.better} is better"
    header = ["variant", f"published ({better})", "published direction", "direction here", "agreement"]
    return Table(header, body, f"{config.source}: {config.measure}. Directions are against `{reference}`.")


def _agreement(row: PublishedRow) -> Cell:
    weak = row.lost and row.agreement in _TONES
    return Cell(
        f"{row.agreement}, not after Holm" if weak else str(row.agreement), _TONES.get(str(row.agreement), "tie")
    )


def _places(one: MeasureSummary) -> int:
    return formatting.decimals([interval.half_width for interval in one.intervals.values()])


def _titled(one: MeasureSummary, unit: bool = True, better: bool = True) -> str:
    """Title of a measure, with its unit and its direction where they are asked for."""
    direction = f"{one.measure.better} is better" if one.measure.better and better else ""
    notes = [note for note in (one.measure.unit if unit else "", direction) if note]
    return f"{one.measure.title} ({', '.join(notes)})" if notes else one.measure.title


def _name(summary: Summary, name: str) -> Cell:
    return Cell(f"`{name}`" + (" (baseline)" if name == summary.baseline and name != "baseline" else ""))


def _mean(summary: Summary, one: MeasureSummary, name: str, places: int) -> Cell:
    if name not in summary.results:
        return Cell("not run yet", "soft")
    if name not in one.values:
        return _NOTHING
    if name not in one.intervals:
        bad, seeds = len(diverged(one.values[name])), len(one.values[name])
        word = "diverged" if name in summary.diverged else "not finite"
        return Cell(f"{word} in {bad} of {seeds} seeds", "worse")
    text = formatting.plus_minus(one.intervals[name], places)
    if name == one.best:
        return Cell(f"**{text}**")
    return Cell(f"{text} ≈") if name in one.ties else Cell(text)
