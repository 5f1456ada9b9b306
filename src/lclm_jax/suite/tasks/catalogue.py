"""All benchmarks by name: samples of a suite's tasks."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from lclm_jax.errors import LclmError
from lclm_jax.suite.sample import Sample
from lclm_jax.suite.spec import TaskConfig
from lclm_jax.suite.tasks import continuation, longbench, questions, scbench
from lclm_jax.suite.tasks.ruler.design import TASKS as RULER_TASKS
from lclm_jax.suite.tasks.ruler.generate import generate
from lclm_jax.suite.tasks.ruler.sources import Sources
from lclm_jax.text.tokenizer import Tokenizer

_LOADERS = {
    "gsm8k": questions.load_gsm8k,
    "longbench": longbench.load,
    "longbench_v2": longbench.load_v2,
    "longhealth": questions.load_longhealth,
    "aa_lcr": questions.load_aa_lcr,
    "scbench": scbench.load,
    "longmemeval": questions.load_longmemeval,
    "qa": questions.load_qa,
}


def load_samples(tasks: Mapping[str, TaskConfig], tokenizer: Tokenizer) -> list[Sample]:
    """The samples of all tasks; ``tokenizer`` counts the tokens of generated ones.

    Raises:
        LclmError: data is missing or has another layout; the message names the task and the place.
    """
    samples: dict[str, Sample] = {}
    for name, task in tasks.items():
        try:
            for sample in _load(task, tokenizer):
                if sample.id in samples:
                    raise LclmError(f"sample {sample.id} is there already; name each part of a benchmark once")
                samples[sample.id] = replace(sample, max_new_tokens=task.max_new_tokens or sample.max_new_tokens)
        except LclmError as error:
            raise LclmError(f"task {name}: {error}") from None
    if not samples:
        raise LclmError("the tasks have no sample; check their files")
    return list(samples.values())


def _load(task: TaskConfig, tokenizer: Tokenizer) -> Iterator[Sample]:
    if task.kind == "ruler":
        return _ruler(task, tokenizer)
    if task.kind == "continuation":
        return continuation.load(task, tokenizer)
    return _LOADERS[task.kind](task)


def _ruler(task: TaskConfig, tokenizer: Tokenizer) -> Iterator[Sample]:
    sources = Sources(Path(task.data) if task.data else None)
    count = task.samples or 500  # of the published runs
    for length in task.lengths:
        for name in task.names or RULER_TASKS:
            yield from generate(
                name, length, count, lambda text: len(tokenizer.encode(text, plain=True)), sources, task.seed
            )
