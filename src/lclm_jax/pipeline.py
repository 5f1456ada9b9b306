"""Corpus to report: the whole life of an LCLM in steps that can be killed and continued.

Each step is done or not done by the ledger (``pipeline.json``); training keeps its own checkpoints, so a killed stage
goes on from the last of them. A step is redone when the configuration it depends on has changed.
"""

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from lclm_jax.config import Config, RunPaths, dump_config, parse_config
from lclm_jax.ops.ledger import Ledger, write_json, write_text
from lclm_jax.ops.lock import locked

logger = logging.getLogger(__name__)

# Keys that change where a run lies and how it is watched or measured, not what it learns: they may differ later.
FREE_KEYS = (
    "environment", "model.remat", "model.attention", "run_dir", "mesh.", "eval.",
    "train.log_every", "train.probe.", "train.trackers", "train.checkpoint.", "train.stop.", "train.spike.",
    "train.data_timeout_seconds", "train.watchdog_seconds", "train.profile_steps",
    "train.processes.", "data.workers", "data.prefetch", "data.cache", "data.cache_bytes",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One step: ``run`` returns what the report shows of it; ``free`` names the free keys it depends on."""

    name: str
    run: Callable[[Config], dict[str, Any]]
    free: tuple[str, ...] = ()


def run_pipeline(config: Config) -> dict[str, Any]:
    """Run every step that is not done; returns the content of report.json.

    Raises ``ValueError`` as ``own_run`` does, and as the steps do.
    """
    with own_run(config):
        return _run_steps(config)


def _run_steps(config: Config) -> dict[str, Any]:
    paths = RunPaths(config)
    ledger = Ledger(paths.progress)
    steps = list(pipeline_steps(config))
    redo = False
    for number, step in enumerate(steps, 1):
        fingerprint = _fingerprint(config, step)
        title = f"[{number}/{len(steps)}] {step.name}"
        if not redo and ledger.done(step.name, fingerprint):
            logger.info("%s: done before", title)
            continue
        redo = True  # what follows a step that ran is stale
        logger.info("%s", title)
        with ledger.record(step.name, fingerprint) as entry:
            entry["result"] = step.run(config)
        logger.info(
            "%s: done in %.1f s, peak memory %.0f MB", title, entry["wall_seconds"], entry["peak_memory_bytes"] / 1e6
        )
    if not redo:
        logger.info("Nothing to do: %s is complete; delete %s to start over", paths.report, paths.root)
    return json.loads(paths.report.with_suffix(".json").read_text(encoding="utf-8"))


def pipeline_steps(config: Config) -> Iterator[Step]:
    """The steps of ``config`` in order."""
    yield Step("corpus", _survey_corpus)
    if config.tokenizer.decoder is None:
        yield Step("tokenizer", train_run_tokenizer)
    yield Step("prepare", prepare_data)
    for name in config.stages:
        yield Step(f"train {name}", partial(_train_stage, stage=name))
    yield Step("evaluate", _evaluate, free=("eval.",))
    yield Step("export", _export)
    yield Step("generate", _generate, free=("eval.",))
    yield Step("report", _report, free=("eval.",))


@contextmanager
def own_run(config: Config, force: bool = False) -> Iterator[None]:
    """Work alone in the run's folder, which is claimed first (``claim_run``); ``force``: whatever was changed.

    Raises ``ValueError`` if another process works in it, or it belongs to another configuration.
    """
    with locked(RunPaths(config).root):
        claim_run(config, force)
        yield


def claim_run(config: Config, force: bool = False) -> None:
    """Store the resolved configuration in the run's folder, or (without ``force``) check that the stored one agrees.

    Raises:
        ValueError: the folder belongs to a run whose other keys than ``FREE_KEYS`` differ.
    """
    path = RunPaths(config).resolved_config
    if path.exists() and not force:
        # Parsed again, so that a key this version has added stands at its default on both sides.
        stored = _flatten(parse_config(_read_stored(path), str(path)).model_dump(mode="json"))
        mine = _flatten(config.model_dump(mode="json"))
        changed = [
            name
            for name in sorted(stored.keys() | mine.keys())
            if stored.get(name) != mine.get(name) and not _is_free(name)
        ]
        if changed:
            shown = ", ".join(f"{name}: {stored.get(name)!r} -> {mine.get(name)!r}" for name in changed[:4])
            more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
            raise ValueError(
                f"{path.parent} holds a run of another configuration ({shown}{more}); set run_dir to a new folder or"
                " delete this one"
            )
    write_text(path, dump_config(config))


def _is_free(name: str) -> bool:
    return name.startswith(FREE_KEYS) or name.endswith(".microbatches")


def _read_stored(path: Path) -> dict[str, Any]:
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        stored = None
    if not isinstance(stored, dict):
        raise ValueError(f"{path} is damaged; delete it if this configuration is the one that made the run")
    return stored


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}.")
    return flat


def _fingerprint(config: Config, step: Step) -> str:
    """The free keys that the step depends on; every other key is held fixed by ``claim_run``."""
    flat = _flatten(config.model_dump(mode="json"))
    return json.dumps({name: value for name, value in flat.items() if step.free and name.startswith(step.free)})


def _survey_corpus(config: Config) -> dict[str, Any]:
    from lclm_jax.data.corpus import SPLITS, list_collection, split_of

    files, sizes, rows = Counter[str](), Counter[str](), False
    for collection in config.corpus.resolved.values():
        rows |= not collection.by_file
        for entry in list_collection(collection, 2**62) if collection.records == "documents" else ():
            split = split_of(entry.id, config.corpus) if collection.by_file else "rows"
            files[split] += 1
            sizes[split] += entry.size
    for split in files:
        logger.info("%s: %d files, %.1f MB", split, files[split], sizes[split] / 1e6)
    for split in ("train", "held_out"):
        if not (files[split] or rows):
            raise ValueError(
                f"no file of the corpus falls into the split {split} ({files.total()} files, held_out_share"
                f" {config.corpus.held_out_share:g}, validation_share {config.corpus.validation_share:g}): training"
                " and evaluation need one each; add files or change the shares"
            )
    return {split: {"files": files[split], "bytes": sizes[split]} for split in (*SPLITS, "rows") if files[split]}


def train_run_tokenizer(config: Config) -> dict[str, Any]:
    """Train the tokenizer of a run that names none, on the training split."""
    from lclm_jax.data.corpus import read_corpus
    from lclm_jax.data.tally import Tally, left_out
    from lclm_jax.text.tokenizer import Tokenizer
    from lclm_jax.text.train_tokenizer import train_tokenizer

    size = config.tokenizer.vocab_size
    if size is None:
        raise ValueError("tokenizer.vocab_size is null; set it, or name tokenizer.decoder")
    tally = Tally()
    documents = read_corpus(config.corpus, ("train",), tally, config.tokenizer.train_bytes)
    texts = (document.text for document in documents)
    try:
        folder = train_tokenizer(texts, size, RunPaths(config).decoder_tokenizer)
    except ValueError as error:
        raise ValueError(f"{error} ({left_out(tally.counts, tally.rejects)})" if tally.counts else str(error)) from None
    tokenizer = Tokenizer.from_folder(folder)
    logger.info("%d tokens in %s", tokenizer.vocab_size, tokenizer.folder)
    return {"vocab_size": tokenizer.vocab_size, "digest": tokenizer.digest}


def prepare_data(config: Config, workers: int | None = None, strict: bool = False) -> dict[str, Any]:
    """Prepare the corpus of a run, after training its tokenizer if it has none yet; returns the manifest.

    ``workers``: processes; None: one per core of this machine.
    """
    from lclm_jax.data.prepare import prepare_corpus

    train_missing_tokenizer(config)
    manifest = prepare_corpus(config, None, log_progress(), workers or os.cpu_count() or 1, strict)
    for collection, splits in manifest["collections"].items():
        counts: Counter[str] = sum((Counter(split["counts"]) for split in splits.values()), Counter())
        noted = "".join(f", {reason} {count}" for reason, count in sorted(counts.items()))
        records = f"{splits['train']['records']:,}"
        logger.info("%s: %s records to train on; left out or cut:%s", collection, records, noted[1:] or " none")
    return manifest


def train_missing_tokenizer(config: Config) -> None:
    """Train the tokenizer of a run that names none and has none yet."""
    trained = RunPaths(config).decoder_tokenizer / "tokenizer.json"
    if config.tokenizer.decoder is None and not trained.exists():
        train_run_tokenizer(config)


def log_progress(seconds: float = 20.0, unit: str = "MB", scale: float = 1e6) -> Callable[[int, int], None]:
    """Progress in lines with the time left: one now and then, at most every ``seconds``, and one at the end.

    What is counted is shown in units of ``scale``.
    """
    begun = said = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if done < total and now - said < seconds:
            return
        said = now
        left = (now - begun) * (total - done) / max(done, 1)
        logger.info("%3.0f %% of %.1f %s, %.0f s left", 100 * done / max(total, 1), total / scale, unit, left)

    return progress


def _train_stage(config: Config, stage: str) -> dict[str, Any]:
    from lclm_jax.eval.probe import Probe
    from lclm_jax.interop.initial import imported_params
    from lclm_jax.train.stages import train

    train(config, only_stage=stage, read_imports=imported_params, make_probe=Probe)
    return {}


def _evaluate(config: Config) -> dict[str, Any]:
    from lclm_jax.eval.run import evaluate
    from lclm_jax.parallel import make_mesh
    from lclm_jax.train.stages import load_params, load_tokenizers

    mesh = make_mesh(config.mesh)
    result = evaluate(config, load_params(config, mesh=mesh), load_tokenizers(config), mesh=mesh)
    write_json(RunPaths(config).evaluation, result)
    return {}


def _export(config: Config) -> dict[str, Any]:
    from lclm_jax.interop.runs import export_run

    stage, step = export_run(config, RunPaths(config).export)
    return {"stage": stage, "step": step}


def _generate(config: Config) -> dict[str, Any]:
    from lclm_jax.ops.samples import sample_answers

    paths = RunPaths(config)
    write_json(paths.generations, sample_answers(config, paths.export))
    return {}


def _report(config: Config) -> dict[str, Any]:
    from lclm_jax.ops.report import build_report

    report = build_report(config, Ledger(RunPaths(config).progress).steps)
    logger.info("%s", RunPaths(config).report)
    return {name: report[name] for name in ("recovered_share", "verbatim_token_accuracy", "held_out_tokens")}
