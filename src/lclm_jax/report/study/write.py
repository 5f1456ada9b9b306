"""The report of a study: report.md and report.html for people, results.json and results.csv for programs."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from lclm_jax.ablate.results import VariantResult
from lclm_jax.ablate.summary import Summary, summarise
from lclm_jax.ablate.variants import Variant
from lclm_jax.config.study import StudyConfig
from lclm_jax.report import document
from lclm_jax.report.study import figures, sections


def write_report(
    study: StudyConfig, variants: Sequence[Variant], results: Mapping[str, VariantResult], out: Path
) -> Summary:
    """Write everything about a study to the folder ``out``; variants without a result are listed as not run yet.

    Args:
        study: the study.
        variants: its variants, baseline first.
        results: by name of the variant.
        out: folder for report.md, report.html, results.json, results.csv, study.yaml, variants.yaml and plots/.

    Returns:
        What the report says, as plain values.

    Raises:
        LclmError: nothing has run, no result has the primary measure, or the seeds of two results differ.
    """
    summary = summarise(study, variants, results)
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "study.yaml": _yaml(study.model_dump(mode="json", exclude_defaults=True, exclude={"run_dir"})),
        "variants.yaml": _yaml({one.name: dict(one.overrides) for one in variants}),
    }
    drawn = figures.draw(summary, out)
    content = sections.write(summary, drawn, texts)
    texts["report.md"] = document.markdown(study.name, content)
    texts["report.html"] = document.html(study.name, content, out)
    texts["results.json"] = json.dumps(summary.as_dict(), indent=1, allow_nan=False) + "\n"
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    _write_csv(summary, out / "results.csv")
    return summary


def _yaml(values: object) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _write_csv(summary: Summary, path: Path) -> None:
    """One line for each variant and seed: levels of the factors, measures, costs."""
    factors = list(dict.fromkeys(factor for one in summary.variants for factor in one.levels))
    names = [one.name for one in summary.measures]
    lines = []
    for variant in summary.variants:
        if variant.name not in summary.results:
            continue
        result = summary.results[variant.name]
        for seed in result.seeds:
            line = {"variant": variant.name, "seed": seed} | {factor: variant.levels.get(factor) for factor in factors}
            line |= {one.name: one.values.get(variant.name, {}).get(seed) for one in summary.measures}
            lines.append(line | vars(result.cost))
    costs = list(vars(next(iter(summary.results.values())).cost))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["variant", "seed", *factors, *names, *costs])
        writer.writeheader()
        writer.writerows(lines)
