"""An ablation study: a base configuration, what varies, seeds, budget, and what it was sized to find."""

from typing import Any, Literal

from pydantic import field_validator, model_validator

from lclm_jax.config.base import Tree, key, required
from lclm_jax.types import JsonObject

Overrides = JsonObject
"""Dotted keys of the configuration tree and their values."""


Measurement = Literal[
    "held_out_loss",
    "train_loss",
    "latent_loss",
    "raw_loss",
    "no_context_loss",
    "recovered_share",
    "repetition_loss",
    "verbatim_accuracy",
    "needle_accuracy",
    "needle_loss",
]
"""What is measured of every variant; ``ablate/measure.py`` says what each is."""


class PublishedConfig(Tree):
    """What a publication measured for the same factor; shown beside the study's own numbers, never mixed with them."""

    source: str = required("Where the numbers stand.")
    measure: str = required("What was measured, at which size.")
    better: Literal["lower", "higher"] = key("lower", "Which direction is better.")
    values: dict[str, float] = required("Variant of the study -> the published number.")


class StudyConfig(Tree):
    """An ablation study: `lclm ablate STUDY.yaml`."""

    name: str = required("Name of the study: the stem of its YAML file.")
    title: str = key("", "One sentence for the head of the report: the question.")
    config: str = required("YAML of the base configuration, relative to the study's file.")
    cluster: str | None = key(None, "Cluster YAML laid over it, relative to the study's file.")
    run_dir: str = key("runs/ablate/{name}", "Folder of everything the study writes; {name} is filled in.")
    settings: Overrides = key({}, "Dotted keys changed in every variant.")
    design: Literal["one_factor", "grid", "list"] = key(
        "one_factor",
        "one_factor: each value of each factor beside the baseline; grid: all combinations; list: variants alone.",
    )
    factors: dict[str, list[Any] | dict[str, Overrides]] = key(
        {},
        "What varies: a dotted key and its values, or a name and labels with their overrides; the first value is the"
        " baseline's.",
    )
    variants: dict[str, Overrides] = key({}, "Further rows by name: overrides of the baseline.")
    seeds: tuple[int, ...] = key((0, 1, 2), "Seeds of every variant; a seed has the same batches in all variants.")
    together: bool = key(
        False, "Train the seeds of a variant as one program (vmap): for models far smaller than the machine."
    )
    steps: int | None = key(None, "Steps of a run, divided over its stages as the base configuration does.", gt=0)
    tokens: float | None = key(None, "Decoder tokens of a run, in the place of steps.", gt=0)
    rows_for: Overrides = key(
        {}, "Compression settings that rows are packed for, so that all variants have the same examples in a row."
    )
    primary: Measurement = key("held_out_loss", "Measure that the study is sized for and that ranks the variants.")
    measurements: tuple[Measurement, ...] = key((), "Measures that the report shows beside the primary one; none: all.")
    smallest_effect: float = required("Difference of the primary measure that the study must be able to detect.", gt=0)
    pilot: str | None = key(
        None, "Variant that runs after the baseline, to size the study by their paired differences; null: the first."
    )
    confidence: float = key(0.95, "Confidence of the intervals.", gt=0.5, lt=1)
    power: float = key(0.8, "Chance of finding the smallest effect that the study is sized for.", gt=0.5, lt=1)
    published: tuple[PublishedConfig, ...] = key((), "Published values of the same factors.")

    @field_validator("seeds")
    @classmethod
    def _enough_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(seeds) < 2 or len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds={list(seeds)} gives no interval; name at least two different seeds")
        return seeds

    @model_validator(mode="after")
    def _check(self):
        if self.steps is not None and self.tokens is not None:
            raise ValueError(f"steps={self.steps} and tokens={self.tokens:g} both bound a run; set one of the two")
        if self.design == "list" and self.factors:
            raise ValueError("design=list has no factors; name the rows under variants, or choose one_factor or grid")
        if not (self.factors or self.variants):
            raise ValueError("nothing varies; name factors or variants")
        for name, values in self.factors.items():
            if len(values) < 2:
                raise ValueError(f"factors.{name} has {len(values)} value; name the baseline's and at least one other")
        return self
