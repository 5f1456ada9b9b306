"""A model in memory as a folder in the Hugging Face layout, and a backbone of such a folder in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lclm_jax.config import BackboneConfig, ModelConfig
from lclm_jax.interop.export import SHARD_BYTES, new_export, write_model
from lclm_jax.interop.hf_config import read_backbone
from lclm_jax.interop.hf_weight_map import nest
from lclm_jax.interop.load import open_backbone
from lclm_jax.interop.param_source import Leaves, LeavesInFolders


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


def load_backbone(folder: Path, role: str) -> tuple[BackboneConfig, dict[str, Any]]:
    """Shape and parameters of one backbone as ``role`` (a decoder lacks ``memory_rows``)."""
    backbone = read_backbone(folder)
    leaves = LeavesInFolders([open_backbone(folder, backbone, role)], ())
    return backbone, nest({path: leaves.read(path) for path in leaves.shapes})[role]
