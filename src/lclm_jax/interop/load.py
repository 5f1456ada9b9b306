"""Reading complete LCLM folders, and single folders of the supported families as backbones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lclm_jax.config import BackboneConfig, ModelConfig
from lclm_jax.interop.foreign.keys import LCLM_HARMLESS, check_keys
from lclm_jax.interop.hf_config import parsed, read_backbone, read_json
from lclm_jax.interop.hf_weight_map import (
    MEMORY_ROWS_PATH,
    Tensor,
    adapter_tensors,
    backbone_tensors,
    nest,
    tensor_table,
)
from lclm_jax.interop.lora import read_lora_towers, read_peft
from lclm_jax.interop.param_source import FolderBlocks, Leaves, LeavesInFolders, shapes_of
from lclm_jax.interop.safetensors_io import CheckpointError, TensorFolder
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.types import JsonObject, ReadOnlyJson

_SETTINGS = {
    "compression_ratio": "ratio",
    "encoder_window_size": "window",
    "pooling": "pooling",
    "encoder_mask_type": "mask",
    "boundary_overlap": "overlap",
}


def load_hf(folder: Path, settings: ReadOnlyJson | None = None, **changes: Any) -> tuple[ModelConfig, dict]:
    """Load a complete LCLM folder (``decoder/``, ``encoder/``, ``adapter/``, ``model_config.json``), ``lora/`` with it.

    Args:
        folder: the folder.
        settings: takes the place of ``model_config.json`` (the same keys).
        **changes: keys of ``ModelConfig`` that no file of the folder holds (``compute_dtype``, ``remat``, ...).

    Returns:
        The model's configuration (memory-token ids from the decoder's tokenizer) and its parameters: float32 NumPy
        arrays, stored values converted up.

    Raises:
        CheckpointError: with the full difference if tensors are missing, unexpected or misshaped; for pickled weights,
            values that are not finite, and configurations that are not supported.
    """
    folder = Path(folder)
    model = read_model(folder, settings, **changes)
    leaves = LeavesInFolders(open_parts(folder, model), model.memory_token_ids or ())
    found = _read_all(leaves, tensor_table(model))
    found[MEMORY_ROWS_PATH] = leaves.read(MEMORY_ROWS_PATH)
    return model, nest(found | read_peft(folder, model))


def open_parts(folder: Path, model: ModelConfig) -> list[FolderBlocks]:
    """Decoder, encoder and adapter of an LCLM folder, checked but not read; errors as ``load_hf``."""
    return [
        open_backbone(folder / "decoder", model.decoder, "decoder"),
        open_backbone(folder / "encoder", model.encoder, "encoder"),
        FolderBlocks(TensorFolder(folder / "adapter"), adapter_tensors(model)),
    ]


def open_backbone(folder: Path, backbone: BackboneConfig, role: str) -> FolderBlocks:
    """A folder of one backbone as ``role``, with or without the prefix of causal-LM files; checked but not read."""
    source = TensorFolder(folder)
    if backbone.num_layers > len(source.shapes):
        raise CheckpointError(
            f"{folder} has {len(source.shapes)} tensors, and its configuration says {backbone.num_layers} layers; fetch"
            " both again"
        )
    prefix = "model." if any(name.startswith("model.") for name in source.shapes) else ""
    return FolderBlocks(source, backbone_tensors(backbone, role, prefix))


def read_model(folder: Path, settings: ReadOnlyJson | None = None, **changes: Any) -> ModelConfig:
    """The configuration of an LCLM folder, without its weights; arguments and errors as ``load_hf``."""
    folder = Path(folder)
    origin = folder / "model_config.json"
    values = dict(read_json(origin) if settings is None else settings)
    for name in ("compression_ratio", "encoder_window_size"):
        if name not in values:
            raise CheckpointError(f"{origin} lacks {name}; the encoder cannot be run without it")
    fields: JsonObject = {ours: values.pop(theirs) for theirs, ours in _SETTINGS.items() if theirs in values}
    adapter = {"type": values.pop("adapter_type", "mlp")}
    layers = values.pop("num_adapter_layers", None)
    if layers is not None and adapter["type"] != "mlp":
        adapter["num_layers"] = layers
    check_keys(origin, values, LCLM_HARMLESS, {}, "an LCLM")
    tokenizer = Tokenizer.from_folder(folder / "decoder")
    values = {
        "encoder": read_backbone(folder / "encoder"),
        "decoder": read_backbone(folder / "decoder"),
        "adapter": adapter,
        "lora": read_lora_towers(folder),
        "memory_token_ids": tuple(int(i) for i in tokenizer.memory_ids),
    }
    return parsed(ModelConfig, {**values, **fields, **changes}, origin)


def _read_all(leaves: Leaves, table: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """Every leaf of ``table``, stacked, float32; one block at a time beside the result."""
    shapes = shapes_of(table)
    found: dict[str, np.ndarray] = {}
    for tensor in table:
        target = found.setdefault(tensor.path, np.empty(shapes[tensor.path], np.float32))
        for rows in tensor.row_blocks():
            index = tensor.index(rows)
            target[index] = leaves.read(tensor.path, index)
    return found
