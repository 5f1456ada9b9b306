"""Corpus to report: the steps of a whole run, which can be killed at any point and resumed.

``pipeline.json`` says which steps are done; training keeps its own checkpoints, so a killed stage resumes from the
latest one. A step runs again when the settings that it depends on have changed.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

from lclm_jax.config import Config, RunPaths
from lclm_jax.data.prepare.run import prepare_data, train_run_tokenizer
from lclm_jax.errors import LclmError
from lclm_jax.files import write_json
from lclm_jax.ops.pipeline_state import PipelineState, Step, run_steps
from lclm_jax.ops.run_folder import claim_run, own_run
from lclm_jax.types import JsonObject

logger = logging.getLogger(__name__)


def run_pipeline(config: Config) -> JsonObject:
    """Run every step that is not done; returns the content of report.json.

    Raises ``LclmError`` as ``own_run`` does, and as the steps do.
    """
    paths = RunPaths(config)
    with own_run(config, claim=False):
        if not run_steps(config, list(pipeline_steps(config)), paths.progress):
            logger.info("Nothing to do: %s is complete; delete %s to start over", paths.report, paths.root)
    return json.loads(paths.report.with_suffix(".json").read_text(encoding="utf-8"))


def pipeline_steps(config: Config) -> Iterator[Step]:
    """The steps of ``config`` in order.

    Every key that decides a result is fixed for the run's folder (``claim_run``), but for those of ``eval``; corpus and
    tokenizers may be moved.
    """
    corpus = json.dumps(
        {
            "corpus": config.corpus.model_dump(mode="json"),
            "tokenizer": config.tokenizer.model_dump(mode="json"),
            "prepared": config.data.prepared,
        }
    )
    evaluation = json.dumps({f"eval.{name}": value for name, value in config.eval.model_dump(mode="json").items()})
    yield Step("corpus", _survey_corpus, corpus)
    if config.tokenizer.decoder is None:
        yield Step("tokenizer", _claiming(train_run_tokenizer), corpus)
    yield Step("prepare", _claiming(prepare_data), corpus)
    for name in config.stages:
        yield Step(f"train {name}", partial(_train_stage, stage=name), "{}")
    yield Step("evaluate", _evaluate, evaluation)
    yield Step("export", _export, "{}")
    yield Step("generate", _generate, evaluation)
    yield Step("report", _report, evaluation)


def _claiming(step: Callable[[Config], JsonObject]) -> Callable[[Config], JsonObject]:
    """``step``, which makes what other settings could not be used with: then the folder is claimed."""

    def run(config: Config) -> JsonObject:
        result = step(config)
        claim_run(config)
        return result

    return run


def _survey_corpus(config: Config) -> JsonObject:
    from lclm_jax.data.prepare.corpus import SPLITS, list_collection, output_folders, split_of

    outputs = output_folders(config)
    files, sizes, rows = Counter[str](), Counter[str](), False
    for collection in config.corpus.resolved.values():
        rows |= not collection.by_file
        for entry in list_collection(collection, 2**62, outputs) if collection.records == "documents" else ():
            split = split_of(entry.id, config.corpus) if collection.by_file else "rows"
            files[split] += 1
            sizes[split] += entry.size
    for split in files:
        logger.info("%s: %d files, %.1f MB", split, files[split], sizes[split] / 1e6)
    for split in ("train", "held_out"):
        if not (files[split] or rows):
            raise LclmError(
                f"no file of the corpus falls into the split {split} ({files.total()} files, held_out_share"
                f" {config.corpus.held_out_share:g}, validation_share {config.corpus.validation_share:g}): training"
                " and evaluation need one each; add files or change the shares"
            )
    return {split: {"files": files[split], "bytes": sizes[split]} for split in (*SPLITS, "rows") if files[split]}


def _train_stage(config: Config, stage: str) -> JsonObject:
    from lclm_jax.eval.probe import Probe
    from lclm_jax.interop.init_from_hf import imported_params
    from lclm_jax.train.core.stages import train

    train(config, only_stage=stage, read_imports=imported_params, make_probe=Probe)
    return {}


def _evaluate(config: Config) -> JsonObject:
    from lclm_jax.eval.run import evaluate
    from lclm_jax.parallel import make_mesh
    from lclm_jax.text.run_tokenizers import load_tokenizers
    from lclm_jax.train.checkpoints.run_params import load_params

    mesh = make_mesh(config.mesh)
    result = evaluate(config, load_params(config, mesh=mesh), load_tokenizers(config), mesh=mesh)
    write_json(RunPaths(config).evaluation, result)
    return {}


def _export(config: Config) -> JsonObject:
    from lclm_jax.interop.runs import export_run

    stage, step = export_run(config, RunPaths(config).export)
    return {"stage": stage, "step": step}


def _generate(config: Config) -> JsonObject:
    from lclm_jax.eval.sample_answers import sample_answers

    paths = RunPaths(config)
    write_json(paths.generations, sample_answers(config, paths.export))
    return {}


def _report(config: Config) -> JsonObject:
    from lclm_jax.report.run.write import build_report

    report = build_report(config, PipelineState(RunPaths(config).progress).steps)
    logger.info("%s", RunPaths(config).report)
    return {name: report[name] for name in ("recovered_share", "verbatim_token_accuracy", "held_out_tokens")}
