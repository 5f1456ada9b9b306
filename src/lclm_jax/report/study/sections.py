"""The sections of the report of a study: its results in words."""

from collections.abc import Iterator, Mapping, Sequence

from lclm_jax.ablate.statistics import Comparison
from lclm_jax.ablate.summary import Sizing, Summary
from lclm_jax.report import formatting
from lclm_jax.report.document import Block, Figure, Folded, Section, Text
from lclm_jax.report.study import tables


def write(summary: Summary, drawn: Mapping[str, Figure], texts: Mapping[str, str]) -> list[Section]:
    """The report's sections.

    Args:
        summary: what the results say.
        drawn: plots by kind.
        texts: file -> content, to be folded away at the end.
    """
    one = summary.primary

    def figure(kind: str) -> list[Block]:
        return [drawn[kind]] if kind in drawn else []

    folded = [Folded(name, text) for name, text in texts.items()]
    found = [
        Section("", _head(summary)),
        Section(f"Ranking by {one.measure.title}", [tables.ranking(summary), Text(_how_to_read(summary), "soft")]),
        Section("Effects", [*figure("forest"), *_effects(summary)]),
        Section("Published values", list(_published(summary))),
        Section("All measures", list(_measures(summary))),
        Section("Training", figure("curves")),
        Section("Verbatim repetition by depth", figure("depth")),
        Section("Cost", [tables.costs(summary), Text(_COST, "soft"), *figure("pareto")]),
        Section("What the study can detect", [Text(text) for text in _sizing(summary)]),
        Section("How it was measured", [*(Text(text) for text in _how(summary)), *folded]),
    ]
    return [section for section in found if section.blocks]


_NUMBERS = 6
"""Comparisons whose numbers the answer still takes."""
_COST = (
    "FLOPs by formula, forward pass. Tokens per second count the training steps alone. Peak memory is that of the"
    " accelerator. On a CPU it is that of the whole process with its data, its evaluation and the compiler (a program"
    " that was found in the compilation cache takes less): its differences are not the variants' own."
)


def answer(summary: Summary) -> str:
    """One sentence: what is better than the baseline, what is worse, what ties."""
    one = summary.primary
    base = formatting.baseline(summary.baseline)
    if summary.baseline in summary.missing:
        return f"{base[0].upper()}{base[1:]} has not run yet, so nothing can be compared."
    if summary.baseline in summary.diverged:
        return f"{base[0].upper()}{base[1:]} diverged, so nothing can be compared with it."
    if not one.comparisons:
        return f"Nothing can be compared with {base} yet."
    places = formatting.decimals_of(one.comparisons)
    few = len(one.comparisons) <= _NUMBERS
    parts = []
    for verdict, words in (("better", "better than {}"), ("worse", "worse than {}"), ("tie", "a tie with {}")):
        members = [
            name for name in summary.order if name in one.comparisons and one.comparisons[name].verdict == verdict
        ]
        listed = [f"`{name}` ({formatting.signed(one.comparisons[name], places)})" for name in members]
        if members:
            parts.append(f"{words.format(base)}: {', '.join(listed) if few else formatting.names(members)}")
            base = "it"
    return f"By {one.measure.title}, {'; '.join(parts)}."


def _head(summary: Summary) -> list[Block]:
    blocks: list[Block] = [Text(f"**{summary.study.title}**", "lead")] if summary.study.title else []
    blocks.append(Text(answer(summary), "lead"))
    return [*blocks, *(Text(text) for text in _after_the_answer(summary))]


def _after_the_answer(summary: Summary) -> Iterator[str]:
    one = summary.primary
    lost = [name for name, compared in one.comparisons.items() if compared.verdict != compared.holm_verdict]
    if lost:
        yield (
            f"After Holm's correction for {len(one.comparisons)} comparisons, {formatting.names(lost)}"
            f" {'ties' if len(lost) == 1 else 'tie'} as well."
        )
    smallest = summary.study.smallest_effect
    small = [name for name, compared in one.comparisons.items() if _found_but_below(compared, smallest)]
    if small:
        yield f"Detected, but below {smallest:g}, the smallest effect that matters here: {formatting.names(small)}."
    if one.best:
        ties = (
            f"; {formatting.names(one.ties)} cannot be distinguished from it" if one.ties else "; no other ties with it"
        )
        yield f"The best mean is that of `{one.best}`{ties}."
    for name, seeds in summary.diverged.items():
        total = len(summary.results[name].seeds)
        listed = ", ".join(map(str, seeds))
        yield f"`{name}` diverged in {len(seeds)} of {total} seeds ({listed}); it has no mean and no verdict."
    if summary.missing:
        yield f"Not run yet: {formatting.names(summary.missing)}."


def _found_but_below(compared: Comparison, smallest: float) -> bool:
    return compared.verdict != "tie" and abs(compared.difference) < smallest


def _how_to_read(summary: Summary) -> str:
    seeds = len(next(iter(summary.results.values())).seeds)
    return (
        f"± is half the {summary.study.confidence:.0%} interval of a mean over {seeds} seeds (Student's t, {seeds - 1}"
        " degrees of freedom). A seed has the same batches in every variant, unless the variant changes the data:"
        " verdicts come from the differences within seeds, not from the intervals of the means. A tie: the interval of"
        " the difference includes 0. Holm's column allows for the number of comparisons. Bold: the best mean; ≈:"
        " ties with it. Intervals say what other seeds would give, not other data or sizes."
    )


def _measures(summary: Summary) -> Iterator[Block]:
    yield from tables.measures(summary)
    yield Text(
        "Bold: the best mean; ≈: ties with it, by paired differences. Verdicts are not corrected for the number of"
        " comparisons.",
        "soft",
    )


def _effects(summary: Summary) -> Iterator[Block]:
    one = summary.primary
    if any(effect.pairs > 1 for effect in summary.effects):  # otherwise the ranking has them all
        places = formatting.decimals([effect.comparison.half_width for effect in summary.effects])
        yield tables.effects(summary.effects, places, "factor: value", verdicts=True)
    if summary.interactions:
        places = formatting.decimals([effect.comparison.half_width for effect in summary.interactions])
        yield Text(
            "Do the factors interact? The table shows how much the effect of one value changes when the other value"
            f" is changed as well ({one.measure.title}); a tie means that the effects add up, as far as the data show."
            " Where they do not, the effects above are means over the values of the other factor."
        )
        yield tables.effects(summary.interactions, places, "both changed", verdicts=False)


def _sizing(summary: Summary) -> Iterator[str]:
    study, found = summary.study, summary.sizing
    if found is None:
        return
    unit = f" {summary.primary.measure.unit}" if summary.primary.measure.unit else ""
    yield (
        f"The study is designed to detect differences of {study.smallest_effect:g}{unit} in"
        f" {summary.primary.measure.title}, with a power of {study.power:.0%} at {study.confidence:.0%} confidence."
    )
    yield _beforehand(summary, found, unit)
    if found.sd is None or found.detectable_after is None:
        return
    enough = found.detectable_after <= study.smallest_effect
    meaning = (
        "enough for {}: for ties, a difference that large would probably have been detected"
        if enough
        else "more than {}: for ties, there may still be a difference that large"
    )
    yield (
        f"**Afterwards**, the differences within seeds spread by {found.sd:.2g} (root mean square over variants): the"
        f" detectable difference is {found.detectable_after:.2g}{unit}, "
        + meaning.format(f"{study.smallest_effect:g}")
        + "."
    )


def _beforehand(summary: Summary, found: Sizing, unit: str) -> str:
    study = summary.study
    seeds = len(summary.results[summary.baseline].seeds)
    enough = found.detectable_before <= study.smallest_effect
    needed = f"{found.seeds_needed_before:,} seeds" if found.seeds_needed_before else "more than 10,000 seeds"
    return (
        f"**Beforehand**, {found.basis}: the differences spread by at most {found.bound:.2g} over seeds (upper 80%"
        f" limit; the baseline itself spreads by {found.spread:.2g}). {seeds} seeds then detect"
        f" differences of {found.detectable_before:.2g}{unit} or more, which is {'' if enough else 'not '}enough for"
        f" {study.smallest_effect:g}; that needs {needed}."
    )


def _published(summary: Summary) -> Iterator[Block]:
    rows = [row for table in summary.published for row in table if row.agreement]
    if not rows:
        return
    kinds = ("agrees", "disagrees", "cannot be told", "diverged", "not run", "not in this study")
    counts = [(kind, sum(row.agreement == kind for row in rows)) for kind in kinds]
    lost = sum(row.lost for row in rows)
    weak = f" {lost} of these verdicts do not survive Holm's correction." if lost else ""
    yield Text("Directions: " + ", ".join(f"{count} {kind}" for kind, count in counts if count) + "." + weak)
    for config, table in zip(summary.study.published, summary.published, strict=True):
        yield tables.published(config, table)
    yield Text(
        "Published numbers come from other sizes, data and budgets, so only the direction of a change is compared,"
        " never the numbers. They come without intervals: their direction is the sign of the difference. Ours is the"
        f" paired verdict by {summary.primary.measure.title}; where it is a tie, agreement cannot be told.",
        "soft",
    )


def _how(summary: Summary) -> Iterator[str]:
    study = summary.study
    results = list(summary.results.values())
    seeds = sorted({seed for one in results for seed in one.seeds})
    together = ", trained together as one program (vmap)" if study.together else ""
    length = f"{study.steps:,} steps" if study.steps else f"{study.tokens:,.0f} decoder tokens" if study.tokens else ""
    yield (
        f"{len(results)} of {len(summary.variants)} variants, each with seeds {', '.join(map(str, seeds))}{together}."
        + (f" A run has {length}." if length else " A run is as long as the base configuration says.")
        + f" Base configuration `{study.config}`"
        + (f" with {formatting.key_values(study.settings)}" if study.settings else "")
        + "."
    )
    if study.rows_for:
        yield f"Rows are packed for {formatting.key_values(study.rows_for)}, so all variants see the same examples."
    kinds = dict.fromkeys(kind for one in results for kind in one.seconds)
    spent = [f"{kind} {formatting.duration(sum(one.seconds.get(kind, 0.0) for one in results))}" for kind in kinds]
    if spent:
        yield f"Time: {', '.join(spent)}."
    yield from _environment([one.environment for one in results])


def _environment(found: Sequence[Mapping[str, str]]) -> Iterator[str]:
    keys = dict.fromkeys(key for one in found for key in one)
    values = {key: list(dict.fromkeys(one.get(key, "?") for one in found)) for key in keys}
    if values:
        yield "Measured on: " + ", ".join(f"{key} {' / '.join(map(str, one))}" for key, one in values.items()) + "."
    if any(len(one) > 1 for one in values.values()):
        yield "Variants did not all run in the same environment: compare their speed and memory with care."
