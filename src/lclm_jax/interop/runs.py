"""Export of a training run (or of an imported model): weights and tokenizers to a folder that others read."""

import json
from pathlib import Path

from lclm_jax.config import Config, RunPaths
from lclm_jax.interop.card import write_card
from lclm_jax.interop.export import export_model
from lclm_jax.interop.leaves import LeavesInFolders
from lclm_jax.interop.load import open_parts, read_model
from lclm_jax.train.stages import latest_checkpoint, open_params, resolve


def export_run(
    config: Config, out_dir: Path, dtype: str = "float32", stage: str | None = None, step: int | None = None
) -> tuple[str, int]:
    """Write a checkpoint of the run in the Hugging Face layout, with a model card.

    The checkpoint is read slice by slice: memory holds one layer, or one block of rows of a table.

    Args:
        config: the run.
        out_dir: folder to write; an earlier export there is replaced.
        dtype: float32, bfloat16 or float16.
        stage: None: the last stage that has a checkpoint.
        step: None: the newest checkpoint of the stage.

    Returns:
        (stage, step) of the checkpoint that was exported.

    Raises:
        ValueError: there is no such checkpoint, or what ``export_model`` raises.
    """
    paths = RunPaths(config)
    config = resolve(config)
    newest = latest_checkpoint(config)
    stage, step = latest_checkpoint(config, stage, step)
    export_model(
        open_params(config, stage, step),
        config.model,
        out_dir,
        decoder_tokenizer=paths.decoder_tokenizer,
        encoder_tokenizer=paths.encoder_tokenizer,
        dtype=dtype,
    )
    # The pipeline's measurements are of the run's last checkpoint: they say nothing about another one.
    measured = paths.evaluation.is_file() and (stage, step) == newest
    results = json.loads(paths.evaluation.read_text(encoding="utf-8")) if measured else None
    write_card(out_dir, config.model, dtype, f"{config.name}, {stage}, step {step}", results)
    return stage, step


def export_folder(folder: Path, out_dir: Path, dtype: str = "float32") -> None:
    """Write a complete LCLM folder (an import) again, through our layout: same tensors, another ``dtype`` or shards.

    Raises ``ValueError`` if the folder is not complete, or what ``export_model`` raises.
    """
    model = read_model(folder)
    leaves = LeavesInFolders(open_parts(folder, model), model.memory_token_ids or ())
    export_model(
        leaves,
        model,
        out_dir,
        decoder_tokenizer=folder / "decoder",
        encoder_tokenizer=folder / "encoder",
        dtype=dtype,
    )
    write_card(out_dir, model, dtype, f"the imported model {folder.name}", None)
