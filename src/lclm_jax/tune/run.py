"""The steps of a tuning: prepare, measure, train until the held-out loss stops falling, export the best step."""

import logging
from collections.abc import Sequence
from pathlib import Path

import jax

from lclm_jax.config import Config, RunPaths
from lclm_jax.data.prepare.run import prepare_data
from lclm_jax.errors import LclmError
from lclm_jax.files import write_json
from lclm_jax.inference.generate import Generator
from lclm_jax.interop.foreign.older_layout import is_older
from lclm_jax.interop.hf_config import stored_dtype
from lclm_jax.interop.import_hf import import_model
from lclm_jax.interop.init_from_hf import imported_params
from lclm_jax.interop.runs import export_run
from lclm_jax.ops.run_folder import claim_run, own_run
from lclm_jax.parallel import make_mesh
from lclm_jax.plan.memory import MemoryEstimate, estimate
from lclm_jax.text.run_tokenizers import load_tokenizers, resolve
from lclm_jax.train.core.hooks import Hook, StepInfo
from lclm_jax.train.core.in_training_eval import NAME
from lclm_jax.train.core.stages import train
from lclm_jax.train.logging.records import read_metrics
from lclm_jax.tune.answers import LOSS, HeldOutLoss, answer, held_out_examples, questions_of
from lclm_jax.tune.settings import STAGE, TuneOptions, layout_of, write_settings
from lclm_jax.types import JsonObject

logger = logging.getLogger(__name__)


class _Enough(Exception):
    """The held-out loss has not fallen for so many measurements."""


def tune(folder: Path, data: Path, out: Path, options: TuneOptions) -> JsonObject:
    """Tune the LCLM in ``folder`` on the rows of ``data`` and write it to ``out``; resumable by the same call.

    Args:
        folder: an export, an import, or a checkpoint of the older layout that says all it needs.
        data: JSON lines, Parquet or Arrow: messages, prompt and target, or context, question and answer.
        out: the export; the run's own files go to ``out`` with ``.run`` added.
        options: choices.

    Returns:
        ``before`` and ``after`` (held-out loss; exact match and F1 of greedy answers, compressed and raw), ``step`` of
        ``steps``, ``memory_bytes`` of a step on one device by formula; also in ``tune.json`` of the run.

    Raises:
        LclmError: the folder is no LCLM, rows are missing or too few, or no step was better than the model was.
    """
    root = out.with_name(f"{out.name}.run")
    folder = _as_today(folder, root)
    config = write_settings(folder, data, root, options)
    with own_run(config, claim=False):
        prepare_data(config)
        config = write_settings(folder, data, root, options, layout_of(config, options, jax.device_count()))
        claim_run(config)
        memory = _memory(config)
        logger.info("a step holds about %.2f GB on each device, by formula, LoRA left out", memory.peak / 1e9)
        before = _measure(folder, config, options)
        logger.info("before: held-out loss %.4f nats", before["loss_nats"])
        _train(config, options.patience)
        losses = _held_out_losses(config)
        step = min(losses, key=losses.__getitem__)
        if losses[step] >= before["loss_nats"]:
            raise LclmError(
                f"no step was better than {folder} itself (held-out loss {before['loss_nats']:.4f} nats; the best, step"
                f" {step}, has {losses[step]:.4f}); give more rows, or lower rates (--set stages.tune.lr.PART=RATE)"
            )
        export_run(config, out, stored_dtype(folder / "decoder") or "float32", STAGE, step)
        result = {"before": before, "after": _measure(out, config, options), "step": step}
        result |= {"steps": config.stages[STAGE].steps, "held_out_loss": losses, "memory_bytes": memory.peak}
        write_json(root / "tune.json", result)
    return result


def _as_today(folder: Path, root: Path) -> Path:
    """``folder``, or what the import of a checkpoint of the older layout gives."""
    if is_older(folder):
        import_model(folder, root / "imported", "lclm", origin=str(folder.resolve()))
        return root / "imported"
    if not (folder / "model_config.json").is_file():
        raise LclmError(f"{folder} is no LCLM (it lacks model_config.json); name what lclm export or lclm import wrote")
    return folder


def _memory(config: Config) -> MemoryEstimate:
    return estimate(resolve(config), STAGE, dict(make_mesh(config.mesh).shape))


def _train(config: Config, patience: int) -> None:
    """Train to the end, or until the last ``patience`` measurements were all worse than the best."""

    def stop_if_enough(_: StepInfo) -> None:
        losses = list(_held_out_losses(config).values())
        if len(losses) > patience and min(losses) < min(losses[-patience:]):
            raise _Enough

    try:
        train(config, STAGE, imported_params, HeldOutLoss, hooks=[Hook(1, stop_if_enough)])
    except _Enough:
        logger.info("the held-out loss has not fallen for %d measurements: enough", patience)


def _held_out_losses(config: Config) -> dict[int, float]:
    """Step -> held-out loss, in the order of the steps."""
    records = read_metrics(RunPaths(config).stage(STAGE) / NAME)
    return {int(record["step"]): float(record[LOSS]) for record in records}


def _measure(folder: Path, config: Config, options: TuneOptions) -> JsonObject:
    """Held-out loss of the model in ``folder``, and its scored answers."""
    tokenizers = load_tokenizers(config)
    generator = Generator.from_folder(folder)
    loss = HeldOutLoss(config.model_copy(update={"model": generator.model}), STAGE, tokenizers, generator.mesh)
    room = config.model.decoder.max_positions - options.max_new_tokens
    questions = questions_of(held_out_examples(config, STAGE, tokenizers, options.answers), tokenizers, room)
    scored = answer(generator, questions, options.max_new_tokens) if questions else {"questions": 0}
    return {"loss_nats": loss(generator.params)[LOSS], **scored}


def lines_of(result: JsonObject) -> Sequence[str]:
    """What a person wants to know of a result."""
    lines = [f"step {result['step']} of {result['steps']} has the best held-out loss"]
    for when in ("before", "after"):
        one = result[when]
        line = f"{when:<6} loss {one['loss_nats']:.4f} nats"
        for form in ("compressed", "raw"):
            if form in one:
                line += f"   {form}: exact {one[form]['exact']:.3f}, F1 {one[form]['f1']:.3f}"
        lines.append(line)
    return lines
