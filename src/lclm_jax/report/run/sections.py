"""The sections of the report of one run, or of several side by side."""

from collections.abc import Iterator, Mapping, Sequence

from lclm_jax.config import Config, dump_config
from lclm_jax.report import formatting
from lclm_jax.report.document import (
    Block,
    Card,
    Cards,
    Figure,
    Folded,
    Gallery,
    Passages,
    Section,
    Table,
    Text,
    plain_table,
)
from lclm_jax.report.run.figures import Figures
from lclm_jax.report.run.read import Run
from lclm_jax.train.checkpoints.provenance import differing_keys
from lclm_jax.types import Json, JsonObject, ReadOnlyJson

_ANSWERS = 9
_FILES = 10
"""Prompts that are shown of a run, over all tasks."""
_CONTEXTS = {"none": "no context", "latents": "latents", "raw": "raw text"}


def write(runs: Sequence[Run], figures: Figures) -> list[Section]:
    """The sections about ``runs``; one without blocks has nothing to show."""
    return [
        Section("", list(_head(runs))),
        Section("Held-out evaluation", list(_evaluation(runs, figures.evaluation))),
        Section("Training", [*figures.loss, *_gallery(figures.curves)]),
        Section("Probes during training", _gallery(figures.probes)),
        Section("Where the time went", [*figures.time, _stages(runs)]),
        Section("Data", list(_data(runs))),
        Section("Generations from latents", list(_generations(runs))),
        Section("Cost of the pipeline's steps", [*figures.cost, *_cost(runs)]),
        Section("Configuration and environment", list(_origin(runs))),
    ]


def _gallery(figures: Sequence[Figure]) -> list[Block]:
    return [Gallery(figures)] if figures else []


def _head(runs: Sequence[Run]) -> Iterator[Block]:
    texts = dict.fromkeys(_model(run.config) for run in runs)
    if len(texts) == 1:
        yield Text(*texts)
    columns = [_headline(run) for run in runs]
    cards = [
        Card(
            name, [(column[name], run.name if len(runs) > 1 else "") for run, column in zip(runs, columns, strict=True)]
        )
        for name in columns[0]
        if any(column[name] != formatting.NOTHING for column in columns)
    ]
    yield Cards(cards)


def _model(config: Config) -> str:
    model = config.model
    return (
        f"Compression {model.ratio}x, windows of {model.window} tokens, {model.mask} mask, {model.pooling} pooling,"
        f" {model.adapter.type} adapter."
    )


def _headline(run: Run) -> dict[str, str]:
    """Name -> text of the headline numbers."""
    status, last = run.status, list(run.curves.values())[-1]
    current = status["stages"][status["stage"]]
    tokens = sum(step["raw_tokens"] for steps in run.curves.values() for step in steps)
    losses = [step["loss_nats"] for step in last[-50:] if step["loss_nats"] is not None]
    evaluation, report = run.evaluation or {}, run.report or {}
    speed = {"value": report.get("raw_tokens_per_s"), "standard_error": report.get("raw_tokens_per_s_standard_error")}
    return {
        "recovered share of the context gain": formatting.estimate(evaluation.get("recovered_share")),
        "token accuracy of verbatim repetition": formatting.estimate(evaluation.get("verbatim_token_accuracy")),
        "loss, last 50 steps": f"{sum(losses) / len(losses):.4f}" if losses else formatting.NOTHING,
        "state": status["state"] if status["state"] == "finished" else f"{status['stage']}, {status['state']}",
        "step": f"{current['done_steps']:,} of {current['steps']:,}",
        "raw tokens": formatting.count(tokens),
        "raw tokens/s": _rounded(speed),
        "training time": formatting.duration(sum(status["goodput_seconds"].values())),
        "goodput": formatting.NOTHING if status["goodput"] is None else f"{status['goodput']:.1%}",
        "time of the pipeline": formatting.duration(report["wall_seconds"]) if report else formatting.NOTHING,
        "peak memory (GB)": formatting.gigabytes(report["peak_memory_bytes"]) if report else formatting.NOTHING,
    }


def _rounded(found: ReadOnlyJson) -> str:
    if found["value"] is None:
        return formatting.NOTHING
    return f"{found['value']:,.0f}" + (f" ± {found['standard_error']:,.0f}" if found["standard_error"] else "")


def _evaluation(runs: Sequence[Run], figures: Sequence[Figure]) -> Iterator[Block]:
    evaluated = [run for run in runs if run.evaluation]
    if not evaluated:
        return
    first = evaluated[0].evaluation or {}
    settings = first.get("settings", {})
    yield Text(
        f"Measured on {first.get('held_out_tokens', 0):,} tokens of held-out files that neither training nor the"
        " tokenizer has seen. ± is one standard error over files."
        + (
            f" Context gain: how much lower the loss of {settings['continuation_tokens']} tokens is after"
            f" {settings['context_tokens']} tokens of context than without."
            f" Verbatim repetition: spans of up to {settings['repetition_tokens']} tokens."
            if settings
            else ""
        ),
        "soft",
    )
    columns = [_measurements(run.evaluation or {}) for run in runs]
    names = [name for name in columns[0] if any(column[name] != formatting.NOTHING for column in columns)]
    header = ["", *(run.name for run in runs)] if len(runs) > 1 else ["", "value"]
    yield plain_table(header, [[name, *(column[name] for column in columns)] for name in names])
    yield from _gallery(figures)


def _measurements(found: ReadOnlyJson) -> dict[str, str]:
    """Quantity -> text of one evaluation."""
    losses, gains, repetition = (found.get(key, {}) for key in ("loss_nats", "gain_nats", "repetition_loss_nats"))
    free, text = found.get("free_running") or {}, formatting.estimate
    rows = {f"loss, {label} (nats per token)": text(losses.get(name)) for name, label in _CONTEXTS.items()}
    rows |= {f"gain of {_CONTEXTS[name]} (nats per token)": text(gains.get(name)) for name in ("latents", "raw")}
    rows["recovered share of the context gain"] = text(found.get("recovered_share"))
    rows["verbatim repetition, token accuracy"] = text(found.get("verbatim_token_accuracy"))
    rows |= {
        f"verbatim repetition, loss with {_CONTEXTS[name]} (nats per token)": text(repetition.get(name))
        for name in ("none", "latents")
    }
    spans = f" of {free['exact_share']['count']}" if "count" in free.get("exact_share", {}) else ""
    rows["free-running repetition, token accuracy"] = text(free.get("token_accuracy"))
    rows[f"free-running repetition, fraction{spans} spans exact"] = text(free.get("exact_share"))
    return rows


def _stages(runs: Sequence[Run]) -> Table:
    """One row for each stage of each run."""
    header = [
        "stage", "state", "steps", "loss", "tokens per s", "time", "goodput", "skipped", "restarts", "steps redone",
        "failed saves", "spikes",
    ]  # fmt: skip
    rows = []
    for run in runs:
        for name, stage in run.status["stages"].items():
            recent = stage["recent"]
            loss = recent["loss_nats"] if recent else None
            rows.append(
                [
                    f"{run.name}: {name}" if len(runs) > 1 else name,
                    stage["state"],
                    f"{stage['done_steps']:,} / {stage['steps']:,}",
                    "" if loss is None else f"{loss:.4f}",
                    f"{recent['raw_tokens_per_s']:,.0f}" if recent else "",
                    formatting.duration(sum(stage["goodput_seconds"].values())) if recent else "",
                    "" if stage["goodput"] is None else f"{stage['goodput']:.1%}",
                    str(stage["skipped_steps"] + stage["nonfinite_steps"]) if recent else "",
                    str(stage["restarts"]),
                    str(stage["redone_steps"]),
                    str(stage["failed_saves"]),
                    str(stage["spikes"]),
                ]
            )
    return plain_table(header, rows)


def _data(runs: Sequence[Run]) -> Iterator[Block]:
    """What was used of the corpus, and what was left out by reason."""
    for run in runs:
        if run.report is not None:
            caption = run.name if len(runs) > 1 else ""
            yield plain_table(["what", "used", "left out or cut"], _used(run.report), caption, words=True)


def _used(report: JsonObject) -> Iterator[list[str]]:
    prepared = (report["prepared"].get("prepare") or {}).get("collections", {})
    for collection, splits in prepared.items():
        for split, entry in splits.items():
            yield [f"{collection}, {split}", f"{entry['records']:,} records", _reasons(entry["counts"])]
    for collection, files in (report["prepared"].get("prepare") or {}).get("files_left_out", {}).items():
        shown = [f"{file['file']} ({file['reason']}: {file['fault']})" for file in files[:_FILES]]
        more = [f"and {len(files) - _FILES:,} more files"] if len(files) > _FILES else []
        yield [f"{collection}, files left out", f"{len(files):,} files", "; ".join(shown + more)]
    for stage, rows in report["rows"].items():
        for source, entry in rows["sources"].items():
            yield [f"{stage}, {source}", f"{entry['examples']:,} examples", _reasons(entry["dropped"])]
    for task, counts in report["evaluation_skipped"].items():
        yield [f"evaluation, {task}", "", _reasons(counts)]


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items() if count)


def _generations(runs: Sequence[Run]) -> Iterator[Block]:
    """Prompts with the answer of every run that was asked the same, a few of each task."""
    found: dict[tuple[str, str], tuple[JsonObject, list[tuple[str, str]]]] = {}
    for run in runs:
        for entry in run.generations:
            _, answers = found.setdefault((entry["task"], entry["prompt"]), (entry, []))
            answers.append((f"answer, {run.name}" if len(runs) > 1 else "answer", entry["answer"]))
    if not found:
        return
    yield Text("Greedy. Text in memory tags reached the decoder as latents only.", "soft")
    tasks = {task for task, _ in found}
    left = dict.fromkeys(tasks, max(1, _ANSWERS // len(tasks)))
    for (task, prompt), (entry, answers) in sorted(found.items(), key=lambda item: item[0][0]):
        if left[task]:
            left[task] -= 1
            expected = [("expected", entry["expected"])] if entry["expected"] is not None else []
            yield Passages(f"{task}, {entry['id']}", [("prompt", prompt), *answers, *expected])


def _cost(runs: Sequence[Run]) -> Iterator[Block]:
    for run in runs:
        if run.report is not None:
            rows = (
                [name, f"{one['wall_seconds']:.1f}", f"{one['peak_memory_bytes'] / 1e6:.0f}", str(one["attempts"])]
                for name, one in run.report["steps"].items()
            )
            caption = run.name if len(runs) > 1 else ""
            yield plain_table(["step", "wall time (s)", "peak memory (MB)", "attempts"], rows, caption)


def _origin(runs: Sequence[Run]) -> Iterator[Block]:
    if differences := list(_differences(runs)):
        yield plain_table(["keys that differ", *(run.name for run in runs)], differences, words=True)
    for run in runs:
        head = f"{run.name}: " if len(runs) > 1 else ""
        versions = ", ".join(f"{name} {version}" for name, version in run.environment.items())
        digest = f". Hash {run.report['config_hash']}" if run.report else ""
        if versions or digest:
            yield Text(f"{head}{versions}{digest}.", "soft")
        yield Folded(f"resolved configuration of {run.name}", dump_config(run.config))


def _differences(runs: Sequence[Run]) -> Iterator[list[str]]:
    """[key, a value for each run] of the configuration keys that are not the same in all runs."""
    trees = [run.config.model_dump(mode="json", exclude={"name", "run_dir"}) for run in runs]
    keys = dict.fromkeys(key for tree in trees[1:] for key, _, _ in differing_keys(trees[0], tree))
    for key in keys:
        yield [key, *(_at(tree, key) for tree in trees)]


def _at(tree: Json, key: str) -> str:
    for name in key.split("."):
        if not isinstance(tree, dict) or name not in tree:
            return formatting.NOTHING
        tree = tree[name]
    return str(tree)
