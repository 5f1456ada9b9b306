"""What a suite has found, as plain values: a row for each system and task, comparisons, costs, failures."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lclm_jax.suite.costs import cost_key, costs_path
from lclm_jax.suite.run import record_key, results_of
from lclm_jax.suite.sample import Sample
from lclm_jax.suite.spec import SuiteConfig
from lclm_jax.suite.statistics import Interval, mean_interval, ratio_interval, recovered_share, verdict
from lclm_jax.suite.store import Journal, read_lines
from lclm_jax.types import JsonObject

Records = Mapping[str, JsonObject]
"""Sample -> record, of the samples that were answered."""


@dataclass(frozen=True, slots=True)
class Row:
    """One system on one task."""

    system: str
    task: str
    samples: int
    """Answered."""
    failed: int
    cut: int
    """Answers that the limit of new tokens ended."""
    score: Interval | None
    difference: Interval | None
    """Score minus that of the reference, over the samples that both have."""
    verdict: str | None
    nats_per_token: Interval | None
    """Of the gold answer."""
    recovered: Interval | None
    """Share of the context's gain in nats on the gold answer."""
    gain_is_known: bool
    """Whether the raw context's own gain is above 0 by its interval; a share of a gain that is not says nothing."""
    positions: float | None
    """Decoder positions of a prompt, on average."""
    effective_ratio: float | None
    """Raw tokens of all prompts over the positions that they took."""
    cache_bytes: float | None
    ttft_seconds: float | None
    """Median: the first sample of a length also compiles."""
    tokens_per_s: float | None

    def as_dict(self) -> JsonObject:
        """For JSON."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: one.as_dict() if isinstance(one, Interval) else one for name, one in values.items()}


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a heat map."""

    system: str
    family: str
    length: int
    depth: float
    """Lower end of its tenth."""
    score: float
    samples: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that a report says."""

    suite: SuiteConfig
    tasks: list[str]
    rows: list[Row]
    cells: list[Cell]
    costs: list[JsonObject]
    """Records of times and memory, by system and length."""
    failures: list[tuple[str, str, str]]
    """(system, sample, why)."""
    missing: dict[str, int] = field(default_factory=dict)
    """System -> samples not measured yet."""

    def row(self, system: str, task: str) -> Row | None:
        """The row of ``system`` on ``task``."""
        return next((row for row in self.rows if (row.system, row.task) == (system, task)), None)

    def as_dict(self) -> JsonObject:
        """For JSON."""
        return {
            "suite": self.suite.model_dump(mode="json"),
            "rows": [row.as_dict() for row in self.rows],
            "cells": [{name: getattr(cell, name) for name in cell.__slots__} for cell in self.cells],
            "costs": self.costs,
            "failures": [dict(zip(("system", "sample", "error"), one, strict=True)) for one in self.failures],
            "missing": self.missing,
        }


def summarise(suite: SuiteConfig) -> Summary:
    """Read what the folder of ``suite`` holds so far; systems and samples without a record are counted as missing."""
    path = Path(suite.out) / "samples.jsonl"
    samples = [Sample.from_json(one) for one in list(read_lines(path))[1:]] if path.exists() else []
    found = {name: _records(suite, name, samples) for name in suite.systems}
    answered = {
        name: {one: record for one, record in records.items() if "error" not in record}
        for name, records in found.items()
    }
    by_task: dict[str, list[Sample]] = {}
    for sample in samples:
        by_task.setdefault(sample.task, []).append(sample)
    rows = [
        _row(suite, name, task, members, found, answered)
        for task, members in by_task.items()
        for name in suite.systems
        if any(member.id in found[name] for member in members)
    ]
    return Summary(
        suite,
        list(by_task),
        rows,
        list(_cells(samples, answered)),
        _costs(suite),
        [(name, one, r["error"]) for name, records in found.items() for one, r in records.items() if "error" in r],
        {name: len(samples) - len(records) for name, records in found.items() if len(records) < len(samples)},
    )


def _records(suite: SuiteConfig, name: str, samples: Iterable[Sample]) -> dict[str, JsonObject]:
    journal = Journal(results_of(suite, name)).records
    keys = {sample.id: record_key(suite, suite.systems[name], sample) for sample in samples}
    return {one: journal[key] for one, key in keys.items() if key in journal}


def _row(
    suite: SuiteConfig,
    name: str,
    task: str,
    members: Sequence[Sample],
    found: Mapping[str, Records],
    answered: Mapping[str, Records],
) -> Row:
    clusters = {sample.id: sample.cluster for sample in members}
    mine = {one: record for one, record in answered[name].items() if one in clusters}
    score = _values(mine, "score")
    reference = suite.reference_name
    theirs = _values(answered[reference], "score") if reference and reference != name else {}
    shared = [one for one in score if one in theirs]
    difference = None
    if shared:
        differences = [score[one] - theirs[one] for one in shared]
        difference = mean_interval(differences, [clusters[one] for one in shared])
    nats, tokens = _values(mine, "nll"), _values(mine, "gold_tokens")
    sizes = [one for one in mine if mine[one].get("positions") and mine[one].get("raw_tokens")]
    taken = sum(mine[one]["positions"] for one in sizes)
    return Row(
        system=name,
        task=task,
        samples=len(mine),
        failed=sum("error" in found[name].get(one, {}) for one in clusters),
        cut=sum(record.get("finish") == "length" for record in mine.values()),
        score=mean_interval(list(score.values()), [clusters[one] for one in score]) if score else None,
        difference=difference,
        verdict=verdict(difference) if difference is not None else None,
        nats_per_token=(
            ratio_interval(list(nats.values()), [tokens[one] for one in nats], [clusters[one] for one in nats])
            if nats
            else None
        ),
        recovered=_recovered(suite, name, nats, answered, clusters),
        gain_is_known=_gain_is_known(suite, answered, clusters),
        positions=taken / len(sizes) if sizes else None,
        effective_ratio=sum(mine[one]["raw_tokens"] for one in sizes) / taken if sizes else None,
        cache_bytes=_mean(_values(mine, "cache_bytes")),
        ttft_seconds=statistics.median(firsts) if (firsts := _values(mine, "ttft_seconds").values()) else None,
        tokens_per_s=_rate(mine.values()),
    )


def _recovered(
    suite: SuiteConfig,
    name: str,
    nats: Mapping[str, float],
    answered: Mapping[str, Records],
    clusters: Mapping[str, str],
) -> Interval | None:
    none, raw = suite.no_context_name, suite.reference_name
    if not nats or none is None or raw is None or name in (none, raw):
        return None
    without, whole = (_values(answered[one], "nll") for one in (none, raw))
    return recovered_share(without, nats, whole, clusters)


def _gain_is_known(suite: SuiteConfig, answered: Mapping[str, Records], clusters: Mapping[str, str]) -> bool:
    none, raw = suite.no_context_name, suite.reference_name
    if none is None or raw is None:
        return False
    without, whole = (_values(answered[one], "nll") for one in (none, raw))
    shared = [one for one in clusters if one in without and one in whole]
    if not shared:
        return False
    return mean_interval([without[one] - whole[one] for one in shared], [clusters[one] for one in shared]).low > 0


def _values(records: Records, name: str) -> dict[str, float]:
    return {one: float(record[name]) for one, record in records.items() if record.get(name) is not None}


def _mean(values: Mapping[str, float]) -> float | None:
    return sum(values.values()) / len(values) if values else None


def _rate(records: Iterable[JsonObject]) -> float | None:
    """Tokens a second after the first one, over all answers."""
    timed = [one for one in records if (one.get("new_tokens") or 0) > 1 and one.get("seconds")]
    seconds = sum(one["seconds"] - one["ttft_seconds"] for one in timed)
    return sum(one["new_tokens"] - 1 for one in timed) / seconds if seconds > 0 else None


def _cells(samples: Sequence[Sample], answered: Mapping[str, Records]) -> Iterable[Cell]:
    """Mean score by length and tenth of the depth."""
    placed = [one for one in samples if one.depth is not None and one.length is not None]
    for name, records in answered.items():
        grouped: dict[tuple[str, int, int], list[float]] = {}
        for sample in placed:
            value = records.get(sample.id, {}).get("score")
            if value is not None:
                tenth = min(int(10 * (sample.depth or 0)), 9)
                grouped.setdefault((_family(sample.task), sample.length or 0, tenth), []).append(value)
        for (family, length, tenth), values in sorted(grouped.items()):
            yield Cell(name, family, length, tenth / 10, sum(values) / len(values), len(values))


def _family(task: str) -> str:
    """The part of a task's name before its length, without the variant: ``ruler/qa_1/4096`` is of ``qa_1``."""
    return task.split("/")[1] if task.startswith("ruler") else task


def _costs(suite: SuiteConfig) -> list[JsonObject]:
    records = Journal(costs_path(suite.out)).records
    keys = [cost_key(suite, one, length) for one in suite.systems.values() for length in suite.costs.lengths]
    names = [(name, length) for name in suite.systems for length in suite.costs.lengths]
    # Two systems with the same settings share a record: each is shown under its own name.
    return [
        {**records[key], "system": name, "length": length}
        for key, (name, length) in zip(keys, names, strict=True)
        if key in records
    ]
