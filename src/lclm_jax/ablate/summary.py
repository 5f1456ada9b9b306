"""What the results of a study say, as plain values; the report puts it into words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from lclm_jax.ablate import statistics
from lclm_jax.ablate.effects import Effect, interactions, main_effects
from lclm_jax.ablate.published import PublishedRow, compare_published
from lclm_jax.ablate.results import MEASURES, Measure, VariantResult
from lclm_jax.ablate.statistics import Comparison, Direction, Interval, Values, corrected
from lclm_jax.ablate.variants import Variant, pilot_of
from lclm_jax.config.study import Measurement, StudyConfig
from lclm_jax.errors import LclmError
from lclm_jax.types import Json, JsonObject


@dataclass(frozen=True)
class MeasureSummary:
    """One measure over all variants that ran."""

    name: str
    measure: Measure
    values: Mapping[str, Values]
    """Variant -> seed -> value."""
    intervals: Mapping[str, Interval]
    """Of the variants whose values are all finite."""
    comparisons: Mapping[str, Comparison]
    """With the baseline."""
    best: str | None
    """None: all means are equal, or none is known."""
    ties: Sequence[str]
    """Variants that tie with the best."""


@dataclass(frozen=True)
class Sizing:
    """Differences of the primary measure that the study can find."""

    spread: float
    """Standard deviation of the baseline over its seeds."""
    bound: float
    """Bound on the standard deviation of paired differences."""
    basis: str
    """What the bound was taken from."""
    detectable_before: float
    seeds_needed_before: int | None
    """For the smallest effect; None: more than 10,000."""
    sd: float | None
    """Root mean square over variants of the standard deviation of the paired differences; None: none has run."""
    detectable_after: float | None


@dataclass(frozen=True)
class Summary:
    """A study with what its results say."""

    study: StudyConfig
    variants: Sequence[Variant]
    results: Mapping[str, VariantResult]
    measures: Sequence[MeasureSummary]
    """The primary one first."""
    missing: Sequence[str]
    diverged: Mapping[str, Sequence[int]]
    """Variant -> seeds whose training loss or primary measure is not finite."""
    order: Sequence[str]
    """Variants by the primary measure, best first; then those that diverged, then those that have not run."""
    effects: Sequence[Effect]
    """Corrected (Holm) together with the comparisons of the primary measure."""
    interactions: Sequence[Effect]
    sizing: Sizing | None
    published: Sequence[Sequence[PublishedRow]]

    @property
    def baseline(self) -> str:
        """Name of the variant that all others are compared with."""
        return self.variants[0].name

    @property
    def primary(self) -> MeasureSummary:
        """The measure that ranks the variants."""
        return self.measures[0]

    def as_dict(self) -> JsonObject:
        """For JSON; values that are not finite are null, and all those of a seed that diverged."""
        values: dict[str, object] = {
            "study": self.study.model_dump(mode="json", exclude={"run_dir"}),
            "baseline": self.baseline,
            "not_run": self.missing,
            "diverged": self.diverged,
            "order": self.order,
            "measures": {one.name: _measure_dict(one) for one in self.measures},
            "effects": [one._asdict() | {"comparison": asdict(one.comparison)} for one in self.effects],
            "interactions": [one._asdict() | {"comparison": asdict(one.comparison)} for one in self.interactions],
            "sizing": asdict(self.sizing) if self.sizing else None,
            "published": [[row._asdict() for row in rows] for rows in self.published],
            "variants": {one.name: one._asdict() for one in self.variants},
            "results": {name: asdict(one) for name, one in self.results.items()},
        }
        return {key: _plain(value) for key, value in values.items()}


def summarise(study: StudyConfig, variants: Sequence[Variant], results: Mapping[str, VariantResult]) -> Summary:
    """Compare what has run.

    Args:
        study: the study.
        variants: all its variants, baseline first.
        results: those that exist, by name of the variant.

    Raises:
        LclmError: nothing has run, no result has the primary measure, or the seeds of two results differ.
    """
    results = {one.name: _sound(results[one.name], study.primary) for one in variants if one.name in results}
    if not results:
        raise LclmError(f"no variant of {study.name} has run; `lclm ablate` runs them")
    _check_seeds(results)
    names: list[Measurement] = [
        study.primary,
        *(name for name in study.measurements or MEASURES if name != study.primary),
    ]
    measures = [one for name in names if (one := _measure(name, study, variants[0].name, results)).values]
    if not measures or measures[0].name != study.primary:
        raise LclmError(f"no result of {study.name} has primary={study.primary}; name one of {', '.join(MEASURES)}")
    primary = measures[0]
    diverged = {name: found for name, one in results.items() if (found := _diverged(one, study.primary))}
    missing = [one.name for one in variants if one.name not in results]
    direction = primary.measure.better or "lower"
    sound = {name: one for name, one in primary.values.items() if name in primary.intervals}
    designed = [one for one in variants if one.name not in study.variants]
    primary, effects = _corrected(
        primary, main_effects(designed, sound, direction, study.confidence), direction, study.confidence
    )
    return Summary(
        study,
        variants,
        results,
        [primary, *measures[1:]],
        missing,
        diverged,
        _order(variants, primary),
        effects,
        interactions(designed, sound, direction, study.confidence),
        _sizing(study, primary, variants[0].name),
        [
            compare_published(
                one, [v.name for v in variants], primary.values, primary.comparisons, direction, study.confidence
            )
            for one in study.published
        ],
    )


def _corrected(
    primary: MeasureSummary, effects: Sequence[Effect], better: Direction, confidence: float
) -> tuple[MeasureSummary, list[Effect]]:
    """The comparisons of the variants and the main effects after one correction: a reader takes verdicts from both."""
    made = [*primary.comparisons.values(), *(one.comparison for one in effects)]
    found = corrected(made, better, confidence)
    count = len(primary.comparisons)
    comparisons = dict(zip(primary.comparisons, found[:count], strict=True))
    together = [one._replace(comparison=compared) for one, compared in zip(effects, found[count:], strict=True)]
    return replace(primary, comparisons=comparisons), together


def _check_seeds(results: Mapping[str, VariantResult]) -> None:
    first, *others = results.values()
    for one in others:
        if set(one.seeds) != set(first.seeds):
            raise LclmError(
                f"{one.variant} ran with seeds {sorted(one.seeds)}, {first.variant} with {sorted(first.seeds)}, so"
                " nothing pairs them; run both with the study's seeds"
            )


def _measure(
    name: Measurement, study: StudyConfig, baseline: str, results: Mapping[str, VariantResult]
) -> MeasureSummary:
    measure = MEASURES[name]
    values = {
        variant: dict(zip(one.seeds, one.measures[name], strict=True))
        for variant, one in results.items()
        if name in one.measures
    }
    intervals = {
        variant: statistics.mean_interval(list(one.values()), study.confidence)
        for variant, one in values.items()
        if not statistics.diverged(one)
    }
    if measure.better is None:
        return MeasureSummary(name, measure, values, intervals, {}, None, [])
    compared = statistics.compare_all(values, baseline, measure.better, study.confidence) if baseline in values else {}
    best, ties = statistics.best_and_ties(values, measure.better, study.confidence)
    if len({interval.mean for interval in intervals.values()}) < 2:
        best, ties = None, []
    return MeasureSummary(name, measure, values, intervals, compared, best, ties)


def _diverged(result: VariantResult, primary: str) -> list[int]:
    looked_at = [result.measures[name] for name in ("train_loss", "held_out_loss", primary) if name in result.measures]
    return [seed for i, seed in enumerate(result.seeds) if not all(math.isfinite(values[i]) for values in looked_at)]


def _sound(result: VariantResult, primary: str) -> VariantResult:
    """Without the numbers of seeds that diverged: an accuracy of a broken model is finite and means nothing."""
    bad = _diverged(result, primary)
    kept = {
        name: [math.nan if seed in bad else value for seed, value in zip(result.seeds, values, strict=True)]
        for name, values in result.measures.items()
    }
    return replace(result, measures=kept)


def _order(variants: Sequence[Variant], primary: MeasureSummary) -> list[str]:
    sign = -1 if primary.measure.better == "higher" else 1

    def rank(name: str) -> tuple[int, float]:
        if name in primary.intervals:
            return 0, sign * primary.intervals[name].mean
        return (1 if name in primary.values else 2), 0.0

    return sorted((one.name for one in variants), key=rank)


def _sizing(study: StudyConfig, primary: MeasureSummary, baseline: str) -> Sizing | None:
    if baseline not in primary.intervals:
        return None
    values = list(primary.values[baseline].values())
    pilot = primary.values.get(pilot_of(study))
    if pilot is not None and primary.comparisons.get(pilot_of(study)):
        bound = statistics.sd_of_pilot_bound(primary.values[baseline], pilot)
        basis = f"with the baseline and `{pilot_of(study)}`"
    else:
        bound = statistics.sd_of_differences_bound(values)
        basis = "with the baseline alone, and no help from pairing"
    terms = (study.confidence, study.power)
    try:
        needed = statistics.seeds_needed(study.smallest_effect, bound, *terms)
    except LclmError:
        needed = None
    sds = [one.sd for one in primary.comparisons.values()]
    sd = float(np.sqrt(np.mean(np.square(sds)))) if sds else None
    return Sizing(
        spread=float(np.std(values, ddof=1)),
        bound=bound,
        basis=basis,
        detectable_before=statistics.detectable(bound, len(values), *terms),
        seeds_needed_before=needed,
        sd=sd,
        detectable_after=None if sd is None else statistics.detectable(sd, len(values), *terms),
    )


def _measure_dict(one: MeasureSummary) -> JsonObject:
    return {
        "title": one.measure.title,
        "unit": one.measure.unit,
        "better": one.measure.better,
        "best": one.best,
        "ties_with_best": one.ties,
        "variants": {
            name: {
                "by_seed": values,
                "mean": one.intervals[name].mean if name in one.intervals else None,
                "half_width": one.intervals[name].half_width if name in one.intervals else None,
                "against_baseline": asdict(one.comparisons[name]) if name in one.comparisons else None,
            }
            for name, values in one.values.items()
        },
    }


def _plain(value: object) -> Json:
    """``value`` for JSON; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    assert value is None or isinstance(value, str | int | float | bool), value
    return value
