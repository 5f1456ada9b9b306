"""A model in memory as a folder in the Hugging Face layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lclm_jax.config import ModelConfig
from lclm_jax.interop.export import SHARD_BYTES, new_export, write_model
from lclm_jax.interop.param_source import Leaves


def export_model(
    leaves: Leaves | Mapping[str, Any],
    model: ModelConfig,
    out_dir: Path,
    *,
    decoder_tokenizer: Path,
    encoder_tokenizer: Path,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """``write_model`` to ``out_dir`` by way of ``new_export``; arguments and errors are theirs."""
    tokenizers = dict(decoder_tokenizer=decoder_tokenizer, encoder_tokenizer=encoder_tokenizer)
    with new_export(out_dir) as part:
        write_model(leaves, model, part, **tokenizers, dtype=dtype, shard_bytes=shard_bytes)
