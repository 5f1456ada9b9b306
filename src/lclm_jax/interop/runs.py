"""Export of a training run (or of an imported model): weights and tokenizers to a folder that others read."""

import json
from pathlib import Path

from lclm_jax.config import Config, ModelConfig, RunPaths
from lclm_jax.errors import LclmError
from lclm_jax.files import write_text
from lclm_jax.interop.export import SHARD_BYTES, new_export, write_model
from lclm_jax.interop.load import open_parts, read_model
from lclm_jax.interop.lora import ExportedLeaves, read_peft, with_lora_of, write_peft
from lclm_jax.interop.model_card import write_card
from lclm_jax.interop.param_source import JoinedLeaves, Leaves, LeavesInFolders
from lclm_jax.paths import local_copy
from lclm_jax.text.run_tokenizers import resolve
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.train.checkpoints.run_params import latest_checkpoint, open_params

LORA_CHOICES = ("merge", "peft")


def export_run(
    config: Config,
    out_dir: Path,
    dtype: str = "float32",
    stage: str | None = None,
    step: int | None = None,
    lora: str = "merge",
    ema: bool = False,
) -> tuple[str, int]:
    """Write a checkpoint of the run in the Hugging Face layout, with a model card.

    The checkpoint is read slice by slice: memory holds one layer, or one block of rows of a table.

    Args:
        config: the run.
        out_dir: folder to write; an earlier export there is replaced.
        dtype: float32, bfloat16 or float16.
        stage: None: the last stage that has a checkpoint.
        step: None: the newest checkpoint of the stage.
        lora: ``merge`` adds low-rank updates to their kernels; ``peft`` writes them to ``lora/`` beside the kernels.
        ema: write the averages of the parameters that the stage trained.

    Returns:
        (stage, step) of the checkpoint that was exported.

    Raises:
        LclmError: there is no such checkpoint, no LoRA to write, or what ``write_model`` raises.
    """
    paths = RunPaths(config)
    config = resolve(config)
    newest = latest_checkpoint(config)
    stage, step = latest_checkpoint(config, stage, step)
    # The pipeline's measurements are of the run's last checkpoint: they say nothing about another one.
    measured = paths.evaluation.is_file() and (stage, step) == newest and not ema
    results = json.loads(paths.evaluation.read_text(encoding="utf-8")) if measured else None
    leaves = open_params(config, stage, step, ema)
    tokenizers = dict(
        decoder_tokenizer=local_copy(paths.decoder_tokenizer), encoder_tokenizer=local_copy(paths.encoder_tokenizer)
    )
    with new_export(out_dir) as part:
        _write(leaves, config.model, part, dtype, lora, tokenizers)
        if (name := config.tokenizer.chat_template) is not None:
            make_default_template(part, name)
        model = with_lora_of(config.model, leaves.shapes)
        write_card(
            part, model, dtype, lora, f"{config.name}, {stage}, step {step}{', averaged' if ema else ''}", results
        )
    return stage, step


def export_folder(folder: Path, out_dir: Path, dtype: str = "float32", lora: str = "merge") -> None:
    """Write a complete LCLM folder (an import) again, through our layout: same tensors, another ``dtype`` or shards.

    ``lora`` says what becomes of adapter folders in ``folder/lora``. Raises ``LclmError`` if the folder is not
    complete, has no LoRA for ``lora="peft"``, or what ``write_model`` raises.
    """
    folder = local_copy(folder)
    model = read_model(folder)
    stored = LeavesInFolders(open_parts(folder, model), model.memory_token_ids or ())
    tokenizers = dict(decoder_tokenizer=folder / "decoder", encoder_tokenizer=folder / "encoder")
    with new_export(out_dir) as part:
        _write(JoinedLeaves(stored, read_peft(folder, model)), model, part, dtype, lora, tokenizers)
        write_card(part, model, dtype, lora, f"the imported model {folder.name}", None)


def make_default_template(folder: Path, name: str) -> None:
    """Put the chat template ``name`` of an export in the place of its default: it is the one that was trained on.

    Raises:
        LclmError: the decoder's tokenizer has no template of this name.
    """
    sources = Tokenizer.from_folder(folder / "decoder").chat_templates.sources
    if name not in sources:
        raise LclmError(f"tokenizer.chat_template={name!r} is not one of {', '.join(sorted(sources)) or 'none'}")
    for home in (folder / "decoder", folder):
        if home.name == "decoder" or (home / "tokenizer.json").is_file():
            write_text(home / "chat_template.jinja", sources[name])


def _write(leaves: Leaves, model: ModelConfig, part: Path, dtype: str, lora: str, tokenizers: dict[str, Path]) -> None:
    if lora not in LORA_CHOICES:
        raise LclmError(f"lora={lora!r} is unknown; use one of {', '.join(LORA_CHOICES)}")
    if lora == "peft":  # first: a model without LoRA is refused before its weights are written
        write_peft(leaves, model, part, dtype)
    exported = ExportedLeaves(leaves, model, merge=lora == "merge")
    write_model(exported, model.plain, part, **tokenizers, dtype=dtype, shard_bytes=SHARD_BYTES)
