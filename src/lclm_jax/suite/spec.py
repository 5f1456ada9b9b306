"""What a suite compares: tasks and systems, read from one YAML file."""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import ValidationError, field_validator, model_validator

from lclm_jax.config.base import Tree, first_release_values, key, required, suggestion
from lclm_jax.errors import LclmError
from lclm_jax.suite.sample import Context
from lclm_jax.types import JsonObject

TaskKind = Literal[
    "ruler",
    "gsm8k",
    "longbench",
    "longbench_v2",
    "longhealth",
    "aa_lcr",
    "scbench",
    "longmemeval",
    "qa",
    "continuation",
]
SystemKind = Literal["lclm", "openai", "kvpress"]


class TaskConfig(Tree):
    """One benchmark."""

    kind: TaskKind = required("Which benchmark.")
    data: str | None = key(
        None,
        "Folder or file of the published data, or a hub data set (OWNER/NAME); null: what an installed package brings"
        " (ruler, aa_lcr).",
    )
    names: tuple[str, ...] = key((), "Parts of the benchmark: tasks of RULER, sets of LongBench or SCBench; none: all.")
    lengths: tuple[int, ...] = key((), "Lengths in tokens, of tasks that are generated (ruler).")
    samples: int | None = key(20, "Samples of each part and length, drawn by seed; null: all.", ge=1)
    seed: int = key(42, "Seed of generated samples and of the draw.")
    max_new_tokens: int | None = key(None, "Longest answer in tokens; null: as published.", ge=1)
    documents: int = key(5, "Patients whose records make one context (longhealth).", ge=1)
    context_tokens: int = key(512, "Tokens of context (continuation).", ge=1)
    continuation_tokens: int = key(64, "Tokens of the text after it whose likelihood is measured.", ge=1)

    @model_validator(mode="after")
    def _check(self):
        if self.kind == "ruler" and not self.lengths:
            raise ValueError("a ruler task needs lengths, such as lengths: [4096]")
        if self.kind != "ruler" and self.lengths:
            raise ValueError(f"{self.kind} has the lengths of its data; delete lengths")
        if self.kind not in ("ruler", "aa_lcr") and self.data is None:
            raise ValueError(f"{self.kind} needs data: the folder or file of the published data")
        return self


class SystemConfig(Tree):
    """One system that answers the tasks: a worker process with a model and a way to read the context."""

    kind: SystemKind = required("Which worker: an LCLM in JAX, an OpenAI endpoint, NVIDIA's kvpress.")
    model: str = required("Folder of the model (lclm: an export or a run), or its name at the endpoint (openai).")
    context: Context = key(
        "raw", "How it gets the context: raw, memory (between memory tags), none, truncated (its middle left out)."
    )
    ratio: float = key(1.0, "Raw tokens per position that the context may take: of a press or of a truncation.", ge=1)
    press: str | None = key(None, "Press of kvpress, such as snapkv; null: none, the whole cache.")
    query_aware: bool = key(False, "Let the press see the question; such rows stand in a column of their own.")
    cache_bits: Literal[2, 4] | None = key(
        None,
        "Bits of the prefill's keys and values in the cache of a kvpress system (quanto); null: as the model's.",
        added=True,
    )
    python: str | None = key(None, "Interpreter of the worker; null: this one. kvpress has an environment of its own.")
    url: str | None = key(None, "Base address of the endpoint, such as http://localhost:8000/v1.")
    api_key_variable: str | None = key(None, "Environment variable that holds the key of the endpoint.")
    timeout_seconds: float = key(600.0, "Longest wait for one answer.", gt=0)
    retries: int = key(3, "Further tries after a failure of the endpoint.", ge=0)
    dtype: Literal["float32", "bfloat16"] | None = key(None, "Arithmetic; null: as the model is stored.")

    @model_validator(mode="after")
    def _check(self):
        if (self.kind == "openai") != (self.url is not None):
            raise ValueError("url is the address of an openai system: give it there, and only there")
        if self.press is not None and self.kind != "kvpress":
            raise ValueError(f"press={self.press} belongs to a kvpress system, not to {self.kind}")
        if self.cache_bits is not None and self.kind != "kvpress":
            raise ValueError(f"cache_bits={self.cache_bits} belongs to a kvpress system, not to {self.kind}")
        if self.kind == "kvpress" and self.context in ("memory", "truncated"):
            raise ValueError(f"a kvpress system reads raw text, or none, not context={self.context}")
        if self.ratio > 1 and self.press is None and self.context != "truncated":
            raise ValueError(f"ratio={self.ratio:g} has no meaning without a press or a truncation; delete it")
        if self.query_aware and self.press is None:
            raise ValueError("query_aware belongs to a press; name one, or delete it")
        return self

    def settings(self, *without: str) -> JsonObject:
        """The settings that a record is found by again, less those that change no result."""
        unimportant = {"timeout_seconds", "retries", "api_key_variable", *without}
        return {name: value for name, value in first_release_values(self).items() if name not in unimportant}

    @property
    def is_whole(self) -> bool:
        """Whether it reads the raw context and keeps all of it."""
        return self.context == "raw" and self.press is None and self.cache_bits is None


class PublishedRow(Tree):
    """A published value, shown in a table of its own."""

    system: str = required("Method, with its ratio.")
    task: str = required("Benchmark and length.")
    value: float = required("The published number.")
    source: str = required("Where it stands, and of which model.")


class CostConfig(Tree):
    """Time and memory, measured in fresh processes."""

    lengths: tuple[int, ...] = key((), "Lengths of the prompt in tokens; none: costs are not measured.")
    new_tokens: int = key(32, "Tokens that are generated.", ge=1)
    repeats: int = key(3, "Timed requests after a first one that compiles and warms up.", ge=1)


class SuiteConfig(Tree):
    """A suite: `lclm suite SUITE.yaml`."""

    name: str = required("Name of the suite: the stem of its YAML file.")
    title: str = key("", "One sentence for the head of the report.")
    out: str = key("runs/suite/{name}", "Folder of everything the suite writes.")
    tasks: dict[str, TaskConfig] = required("Benchmarks by a name of your choice.")
    systems: dict[str, SystemConfig] = required("Systems by a name of your choice.")
    reference: str | None = key(None, "System that the others are compared with; null: the first with raw context.")
    no_context: str | None = key(None, "System without context; null: the first whose context is none.")
    tokenizer: str | None = key(None, "Folder of the tokenizer that counts lengths; null: that of the first system.")
    likelihood: bool = key(True, "Also measure the likelihood of the gold answer.")
    generate: bool = key(True, "Generate answers and score them; false: the likelihood alone.")
    judge: SystemConfig | None = key(None, "OpenAI endpoint that judges answers where a benchmark asks for a judge.")
    costs: CostConfig = key(CostConfig(), "Time and memory.")
    published: tuple[PublishedRow, ...] = key((), "Published values, shown beside ours, never mixed with them.")

    @field_validator("tasks", "systems")
    @classmethod
    def _named(cls, values: dict[str, JsonObject]) -> dict[str, JsonObject]:
        if not values:
            raise ValueError("is empty; name at least one")
        for name in values:
            if not name or any(mark in name for mark in "/\\\0"):
                raise ValueError(f"{name!r} is no usable name: it becomes a file's; leave out slashes")
        return values

    @model_validator(mode="after")
    def _check(self):
        for role in ("reference", "no_context"):
            name = getattr(self, role)
            if name is not None and name not in self.systems:
                raise ValueError(f"{role}={name!r} is no system; {suggestion(name, self.systems)}")
        if self.judge is not None and self.judge.kind != "openai":
            raise ValueError("judge is an endpoint: set its kind to openai")
        if not (self.likelihood or self.generate):
            raise ValueError("likelihood and generate are both false: nothing would be measured")
        return self

    @property
    def reference_name(self) -> str | None:
        """The system that the others are compared with."""
        whole = [name for name, one in self.systems.items() if one.is_whole]
        return self.reference or (whole[0] if whole else None)

    @property
    def no_context_name(self) -> str | None:
        """The system that answers without the context."""
        without = [name for name, one in self.systems.items() if one.context == "none"]
        return self.no_context or (without[0] if without else None)


def load_suite(path: Path) -> SuiteConfig:
    """Read a suite from YAML; raises ``LclmError`` that names the key, the value and the fix."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LclmError(f"cannot read {path}: {error.strerror}; name a YAML file with tasks and systems") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LclmError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise LclmError(f"{path} holds no keys; a suite needs tasks and systems")
    values = {"name": path.stem, **values}
    try:
        suite = SuiteConfig.model_validate(values)
    except ValidationError as error:
        raise LclmError(f"{path}: {_first(error)}") from None
    return suite.model_copy(update={"out": suite.out.replace("{name}", suite.name)})


def _first(error: ValidationError) -> str:
    """The first mistake: key, value and rule, with what is known where a key is not."""
    one = error.errors()[0]
    place = ".".join(str(part) for part in one["loc"])
    if one["type"] == "extra_forbidden":
        return f"unknown key {place}; {suggestion(str(one['loc'][-1]), _keys_at(one['loc'][:-1]))}"
    message = one["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _keys_at(place: tuple[int | str, ...]) -> list[str]:
    trees: dict[str, type[Tree]] = {"tasks": TaskConfig, "systems": SystemConfig, "judge": SystemConfig}
    trees |= {"costs": CostConfig, "published": PublishedRow}
    tree = trees.get(str(place[0]), SuiteConfig) if place else SuiteConfig
    return list(tree.model_fields)
