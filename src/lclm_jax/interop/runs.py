"""Export of a training run: its checkpoint and tokenizers to a folder that others read."""

from pathlib import Path

from lclm_jax.config import Config, RunPaths
from lclm_jax.interop.export import export_model
from lclm_jax.train.stages import latest_checkpoint, load_params, resolve


def export_run(
    config: Config, out_dir: Path, dtype: str = "float32", stage: str | None = None, step: int | None = None
) -> tuple[str, int]:
    """Write a checkpoint of the run in the Hugging Face layout.

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
    stage, step = latest_checkpoint(config, stage, step)
    export_model(
        load_params(config, stage, step),
        config.model,
        out_dir,
        decoder_tokenizer=paths.decoder_tokenizer,
        encoder_tokenizer=paths.encoder_tokenizer,
        dtype=dtype,
    )
    return stage, step
