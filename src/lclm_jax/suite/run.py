"""Running a suite: samples, then one system after another, each in a process of its own; then times and memory."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import filelock

from lclm_jax.errors import LclmError
from lclm_jax.files import write_text
from lclm_jax.suite.costs import measure_costs
from lclm_jax.suite.sample import Sample
from lclm_jax.suite.scoring import judge
from lclm_jax.suite.scoring.scorers import JUDGED, check_scorers, score
from lclm_jax.suite.spec import SuiteConfig, SystemConfig
from lclm_jax.suite.store import Journal, key_of, read_lines
from lclm_jax.suite.systems.process import Worker, WorkerError, request_of
from lclm_jax.suite.tasks.catalogue import load_samples
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.types import JsonObject

logger = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]
"""(what is counted, how many are done, how many there are)."""
_HOPELESS = 5
"""So many failures in a row, and no answer ever, end a system: the cause is not a sample."""


def run_suite(suite: SuiteConfig, progress: Progress) -> None:
    """Measure what is not measured yet; results lie in the folder ``out``, and a rerun after any kill goes on there.

    Everything that can be known beforehand is checked before the first answer: data, scorers, endpoints, environments,
    lengths. A sample that fails is a record with ``error``, tried again by the next run.

    Raises:
        LclmError: a check failed, a worker died, or another process runs the same suite.
    """
    out = Path(suite.out)
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        samples = prepare_samples(suite)
        check_scorers(samples, suite.judge is not None)
        check_systems(suite, samples)
        for name, system in suite.systems.items():
            _run_system(suite, name, system, samples, progress)
        measure_costs(suite, progress)


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    lock = filelock.FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise LclmError(f"another process runs the suite in {out}; wait for it, or set another out") from None
    with lock:
        yield


def prepare_samples(suite: SuiteConfig) -> list[Sample]:
    """The samples of a suite: made once, then read from ``samples.jsonl`` while tasks and data are the same."""
    path = Path(suite.out) / "samples.jsonl"
    tokenizer = suite_tokenizer(suite)
    tasks = {name: task.model_dump(mode="json") for name, task in suite.tasks.items()}
    stamps = {name: _stamp(task.data) for name, task in suite.tasks.items()}
    key = key_of(tasks, stamps, {"tokenizer": tokenizer.digest})
    if path.exists():
        first, *rest = read_lines(path)
        if first == {"tasks": key}:
            return [Sample.from_json(one) for one in rest]
    samples = load_samples(suite.tasks, tokenizer)
    lines = [{"tasks": key}, *(one.as_json() for one in samples)]
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    logger.info("%d samples of %d tasks: %s", len(samples), len({one.task for one in samples}), path)
    return samples


def _stamp(data: str | None) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the files of a task."""
    path = Path(data) if data is not None else None
    if path is None or not path.exists():
        return []
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    return [(one.name, (found := one.stat()).st_size, found.st_mtime_ns) for one in files]


def suite_tokenizer(suite: SuiteConfig) -> Tokenizer:
    """The tokenizer that counts the tokens of generated samples."""
    if suite.tokenizer is not None:
        return Tokenizer.from_folder(suite.tokenizer)
    for system in suite.systems.values():
        if system.kind == "openai":
            continue
        folder = Path(system.model)
        return Tokenizer.from_folder(folder / "decoder" if (folder / "decoder").is_dir() else folder)
    raise LclmError("no system has a tokenizer that counts lengths; set tokenizer to a tokenizer's folder")


def check_systems(suite: SuiteConfig, samples: Sequence[Sample]) -> None:
    """Start every system that has something to do, and let it count its longest samples.

    Raises ``LclmError`` if one cannot start, or if a task is longer than its model.
    """
    judged = suite.judge is not None and any(one.extra["scorer"] == JUDGED for one in samples)
    systems = dict(suite.systems) | ({"judge": suite.judge} if judged and suite.judge else {})
    for name, system in systems.items():
        wanted = [] if name == "judge" else _open_samples(suite, name, system, samples)
        if not wanted and name != "judge":
            continue
        with Worker(name, system, log_of(suite, name)) as worker:
            _check_lengths(name, worker, wanted)
            said = ", ".join(f"{key} {value}" for key, value in worker.facts.items() if value is not None)
            logger.info("%s: %s", name, said)


def _check_lengths(name: str, worker: Worker, samples: Sequence[Sample]) -> None:
    limit = worker.facts.get("max_positions")
    longest: dict[str, Sample] = {}
    for one in samples:
        if one.task not in longest or len(one.context) > len(longest[one.task].context):
            longest[one.task] = one
    for one in longest.values() if limit else ():
        counted = worker.ask({**request_of(one, False, False), "count": True})
        if "error" in counted:
            raise LclmError(f"system {name}, sample {one.id}: {counted['error']}")
        if counted["positions"] + one.max_new_tokens > limit:
            raise LclmError(
                f"system {name}: {one.task} takes {counted['positions']:,} positions and {one.max_new_tokens} new"
                f" tokens ({one.id}); its model holds {limit:,}: shorten the task, or leave it out"
            )


def log_of(suite: SuiteConfig, name: str) -> Path:
    """Where the worker of a system writes what libraries print."""
    return Path(suite.out) / "logs" / f"{name}.log"


def results_of(suite: SuiteConfig, name: str) -> Path:
    """The records of a system."""
    return Path(suite.out) / "results" / f"{name}.jsonl"


def record_key(suite: SuiteConfig, system: SystemConfig, sample: Sample) -> str:
    """What identifies an answer: the system's settings, the sample's text, what is measured."""
    measured = {"likelihood": suite.likelihood, "generate": suite.generate}
    judged = suite.judge.model_dump(mode="json") if suite.judge and sample.extra["scorer"] == JUDGED else {}
    return key_of(system.settings("python"), sample.as_json(), measured, judged)


def _open_samples(
    suite: SuiteConfig, name: str, system: SystemConfig, samples: Sequence[Sample], journal: Journal | None = None
) -> list[Sample]:
    """Samples without a record, or whose record is a failure."""
    records = (journal or Journal(results_of(suite, name))).records
    keys = {one.id: record_key(suite, system, one) for one in samples}
    return [one for one in samples if "error" in records.get(keys[one.id], {"error": "none yet"})]


def _run_system(
    suite: SuiteConfig, name: str, system: SystemConfig, samples: Sequence[Sample], progress: Progress
) -> None:
    with Journal(results_of(suite, name)) as journal, contextlib.ExitStack() as processes:
        wanted = _open_samples(suite, name, system, samples, journal)
        done, failed = len(samples) - len(wanted), 0
        has_answered = done > 0
        progress(name, done, len(samples))
        if not wanted:
            return
        worker = processes.enter_context(Worker(name, system, log_of(suite, name)))
        judges = None
        if suite.judge and any(one.extra["scorer"] == JUDGED for one in wanted):
            judges = processes.enter_context(Worker("judge", suite.judge, log_of(suite, "judge")))
        for number, sample in enumerate(wanted, 1):
            record = _measure(suite, system, worker, sample)
            if judges is not None and sample.extra["scorer"] == JUDGED and "answer" in record:
                record |= _judged(judges, sample, record["answer"])
            journal.append({"key": record_key(suite, system, sample), "system": name, **record})
            done, failed = done + 1, failed + ("error" in record)
            progress(name, done, len(samples))
            if failed == number == _HOPELESS and not has_answered:
                raise LclmError(f"system {name}: the first {failed} samples all failed: {record['error']}")
        if failed:
            logger.warning("%s: %d of %d samples failed; the report lists them", name, failed, len(samples))


def _measure(suite: SuiteConfig, system: SystemConfig, worker: Worker, sample: Sample) -> JsonObject:
    """Ask about one sample and score the answer."""
    generate = suite.generate and sample.extra["scorer"] != "likelihood"
    record: JsonObject = {"sample": sample.id, "task": sample.task}
    try:
        record["prompt"] = sample.digest(system.context)
    except LclmError as error:
        return record | {"error": str(error)}
    reply = worker.ask(request_of(sample, generate, suite.likelihood))
    record |= {name: value for name, value in reply.items() if name != "id"}
    if "answer" in record:
        record["score"] = score(record["answer"], sample)
    return record


def _judged(judges: Worker, sample: Sample, answer: str) -> JsonObject:
    """The score by the judge, or why there is none."""
    asked = {"id": sample.id, "instruction": judge.request(sample, answer), "context": "", "question": "", "prefix": ""}
    try:
        reply = judges.ask({**asked, "max_new_tokens": 1024, "chat": True, "generate": True})
    except WorkerError as error:
        return {"error": f"judge: {error}"}
    if "error" in reply:
        return {"error": f"judge: {reply['error']}"}
    found = judge.verdict(sample, reply["answer"])
    return {"score": found, "judge": reply["answer"]} | ({"note": "the judge gave no verdict"} if found is None else {})
