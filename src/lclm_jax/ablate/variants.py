"""From a study to its variants, and from a variant and a seed to a whole configuration."""

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lclm_jax.config import (
    Config,
    ConfigError,
    StageConfig,
    StudyConfig,
    config_hash,
    override,
    parse_config,
    read_yaml,
    role_of,
)
from lclm_jax.config.base import suggestion
from lclm_jax.config.train import parse_skip_range
from lclm_jax.types import Json, JsonObject, ReadOnlyJson

BASELINE = "baseline"
_SHARED = ("corpus", "tokenizer", "seed", "name")
"""Branches of which a study has one, beside the keys that say where things lie."""


class Variant(NamedTuple):
    """One row of a study."""

    name: str
    overrides: ReadOnlyJson
    """Dotted keys in which it differs from the base configuration."""
    levels: Mapping[str, str]
    """Factor -> label of its value; the rows of ``variants`` have the baseline's."""


def expand(study: StudyConfig) -> list[Variant]:
    """The variants of ``study``, the baseline first, each once.

    Raises:
        ConfigError: two variants have one name.
    """
    factors = {name: _labelled(name, values) for name, values in study.factors.items()}
    first = {name: next(iter(values)) for name, values in factors.items()}

    def of(levels: Mapping[str, str], name: str, more: ReadOnlyJson) -> Variant:
        overrides = {key: value for factor, label in levels.items() for key, value in factors[factor][label].items()}
        return Variant(name, {**overrides, **more}, dict(levels))

    variants = [of(first, BASELINE, {})]
    if study.design == "one_factor":
        chosen = [{**first, name: label} for name, values in factors.items() for label in list(values)[1:]]
    else:
        combinations = itertools.product(*factors.values()) if study.design == "grid" else []
        chosen = [dict(zip(factors, labels, strict=True)) for labels in combinations]
    variants += [of(levels, _name(levels, first), {}) for levels in chosen if levels != first]
    variants += [of(first, name, overrides) for name, overrides in study.variants.items()]
    names = [variant.name for variant in variants]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"study {study.name} has several variants named {twice[0]!r}; rename one under variants")
    return variants


def pilot_of(study: StudyConfig) -> str:
    """Name of the variant that sizes the study; raises ``ConfigError`` if ``study.pilot`` is none of its variants."""
    names = [variant.name for variant in expand(study)][1:]
    if study.pilot is not None and study.pilot not in names:
        raise ConfigError(f"pilot={study.pilot!r} is no variant of {study.name}; {suggestion(study.pilot, names)}")
    return study.pilot or names[0]


def variant_config(study: StudyConfig, variant: Variant, seed: int) -> Config:
    """The configuration of one run: base, cluster, settings, the variant's overrides, the seed, the budget.

    All runs of a study share its prepared corpus and its tokenizer (``shared_config``).

    Raises:
        ConfigError: the result is not a valid configuration, or the variant would change what all share.
    """
    for name in variant.overrides:
        if name.split(".")[0] in _SHARED or role_of(Config, name) == "place":
            raise ConfigError(
                f"variant {variant.name} overrides {name}, which all variants share; set it in the base configuration"
            )
    shared, values = shared_config(study), _values(study)
    for name, value in variant.overrides.items():
        values = override(values, name, value)
    values = override(values, "seed", seed)
    values |= {"name": f"{slug(variant.name)}-s{seed}", "run_dir": str(run_folder(study, variant, seed))}
    if shared.tokenizer.decoder is None:
        values["tokenizer"] = {"decoder": str(Path(shared.run_dir) / "tokenizer"), "encoder": None}
    values = override(values, "data.prepared", shared.data.prepared or str(Path(shared.run_dir) / "data"))
    return _budgeted(parse_config(values, f"{study.name}, variant {variant.name}"), study)


def shared_config(study: StudyConfig) -> Config:
    """The base configuration in the folder ``shared`` of the study: its corpus and tokenizer serve all variants."""
    values = _values(study) | {"name": study.name, "run_dir": str(Path(study.run_dir) / "shared")}
    return parse_config(values, study.config)


def run_folder(study: StudyConfig, variant: Variant, seed: int) -> Path:
    """The folder of a run: its row index and checkpoints."""
    return Path(study.run_dir) / "runs" / slug(variant.name) / f"seed-{seed}"


def variant_hash(study: StudyConfig, variant: Variant) -> str:
    """A hash of all that the variant's results depend on, seeds and folders left out."""
    config = variant_config(study, variant, 0)
    same = {"run_dir": "", "name": "", "data": config.data.model_copy(update={"prepared": None})}
    tokenizer = config.tokenizer.model_copy(update={"decoder": "shared"})
    return config_hash(config.model_copy(update={**same, "tokenizer": tokenizer}))


def slug(name: str) -> str:
    """A name for files: ``model.window=16`` to ``model.window-16``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")


def _values(study: StudyConfig) -> JsonObject:
    values = read_yaml(Path(study.config))
    if study.cluster is not None:
        for name, value in read_yaml(Path(study.cluster)).items():
            values = override(values, name, value)
    for name, value in study.settings.items():
        values = override(values, name, value)
    return override(values, "data.rows_for", study.rows_for) if study.rows_for else values


def _labelled(factor: str, values: list[Json] | dict[str, JsonObject]) -> dict[str, JsonObject]:
    """Label -> overrides of each value of a factor."""
    if isinstance(values, dict):
        return values
    return {value if isinstance(value, str) else json.dumps(value): {factor: value} for value in values}


def _name(levels: Mapping[str, str], first: Mapping[str, str]) -> str:
    """What differs from the baseline: ``pooling=concat, window=16``."""
    different = [f"{name.rsplit('.', 1)[-1]}={label}" for name, label in levels.items() if label != first[name]]
    return ", ".join(different)


def _budgeted(config: Config, study: StudyConfig) -> Config:
    """``config`` with the study's steps or tokens, divided over its stages as they were (``_scaled``)."""
    total = sum(stage.steps for stage in config.stages.values())
    stages = {}
    for name, stage in config.stages.items():
        share = stage.steps / total
        if study.steps is not None:
            steps = study.steps * share
        elif study.tokens is not None:
            steps = study.tokens * share / (stage.batch_rows * config.pack(name).row_length)
        else:
            steps = stage.steps
        stages[name] = _scaled(stage, max(1, round(steps)))
    return config.model_copy(update={"stages": stages})


def _scaled(stage: StageConfig, steps: int) -> StageConfig:
    """``stage`` with ``steps`` steps; what else it counts in steps keeps its share of them."""
    if steps == stage.steps:
        return stage

    def scaled(step: int) -> int:
        return round(step * steps / stage.steps)

    skips = []
    for first, last in map(parse_skip_range, stage.skip_steps):
        if scaled(last + 1) > scaled(first):
            skips.append(f"{scaled(first)}-{scaled(last + 1) - 1}")
    changes = {max(1, scaled(step)): mixture for step, mixture in sorted(stage.mixture_changes.items())}
    warmup = None if stage.warmup_steps is None else scaled(stage.warmup_steps)
    return stage.model_copy(
        update={"steps": steps, "warmup_steps": warmup, "mixture_changes": changes, "skip_steps": tuple(skips)}
    )
