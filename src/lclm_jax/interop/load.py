"""Reading complete LCLM folders, and single Qwen3, Qwen3-Embedding or Llama folders as backbones."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from lclm_jax.config import BackboneConfig, ModelConfig
from lclm_jax.interop.hf_config import read_backbone, read_json
from lclm_jax.interop.names import (
    MEMORY_ROWS_PATH,
    TABLE_PATH,
    Tensor,
    adapter_tensors,
    backbone_tensors,
    leaf,
    nest,
)
from lclm_jax.interop.tensors import CheckpointError, TensorFolder
from lclm_jax.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_SETTINGS = {
    "compression_ratio": "ratio",
    "encoder_window_size": "window",
    "pooling": "pooling",
    "encoder_mask_type": "mask",
    "boundary_overlap": "overlap",
}


def load_hf(folder: Path, settings: Mapping[str, Any] | None = None, **changes: Any) -> tuple[ModelConfig, dict]:
    """Load a complete LCLM folder (``decoder/``, ``encoder/``, ``adapter/``, ``model_config.json``).

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
    params = nest(
        _leaves(TensorFolder(folder / "decoder"), _named(folder / "decoder", model.decoder, "decoder"))
        | _leaves(TensorFolder(folder / "encoder"), _named(folder / "encoder", model.encoder, "encoder"))
        | _leaves(TensorFolder(folder / "adapter"), adapter_tensors(model))
    )
    assert model.memory_token_ids is not None
    rows = leaf(params, TABLE_PATH)[list(model.memory_token_ids)]
    params["decoder"][MEMORY_ROWS_PATH.rpartition("/")[2]] = rows
    return model, params


def read_model(folder: Path, settings: Mapping[str, Any] | None = None, **changes: Any) -> ModelConfig:
    """The configuration of an LCLM folder, without its weights; arguments and errors as ``load_hf``."""
    folder = Path(folder)
    origin = folder / "model_config.json"
    values = dict(read_json(origin) if settings is None else settings)
    for name in ("compression_ratio", "encoder_window_size"):
        if name not in values:
            raise CheckpointError(f"{origin} lacks {name}; the encoder cannot be run without it")
    fields: dict[str, Any] = {ours: values.pop(theirs) for theirs, ours in _SETTINGS.items() if theirs in values}
    adapter = {"type": values.pop("adapter_type", "mlp")}
    layers = values.pop("num_adapter_layers", None)
    if layers is not None and adapter["type"] != "mlp":
        adapter["num_layers"] = layers
    if values:
        log.warning(
            "%s: keys that this implementation does not know are left out: %s", origin, ", ".join(sorted(values))
        )
    tokenizer = Tokenizer.from_folder(folder / "decoder")
    try:
        return ModelConfig(
            encoder=read_backbone(folder / "encoder"),
            decoder=read_backbone(folder / "decoder"),
            adapter=adapter,
            memory_token_ids=tuple(int(i) for i in tokenizer.memory_ids),
            **fields,
            **changes,
        )
    except ValidationError as error:
        raise CheckpointError(f"{origin}: {error.errors()[0]['msg']}") from None


def load_backbone(folder: Path, role: str) -> tuple[BackboneConfig, dict[str, Any]]:
    """Load one Qwen3, Qwen3-Embedding or Llama folder as ``role`` (``"encoder"`` or ``"decoder"``).

    Causal and base files are both read: an encoder leaves the output head out, a decoder needs one unless its
    configuration ties it to the table. Returns the shape and the subtree under ``role`` (a decoder still lacks
    ``memory_rows``). Raises ``CheckpointError`` as ``load_hf`` does.
    """
    if role not in ("encoder", "decoder"):
        raise ValueError(f"role={role!r} is neither encoder nor decoder; name one of the two")
    folder = Path(folder)
    backbone = read_backbone(folder)
    params = nest(_leaves(TensorFolder(folder), _named(folder, backbone, role)))
    return backbone, params[role]


def _named(folder: Path, backbone: BackboneConfig, role: str) -> list[Tensor]:
    """The table of a backbone, with or without the prefix of causal-LM files, as the folder has it."""
    names = TensorFolder(folder).shapes
    prefix = "model." if any(name.startswith("model.") for name in names) else ""
    return backbone_tensors(backbone, role, prefix)


def _leaves(source: TensorFolder, table: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """Read every tensor of ``table`` into stacked float32 leaves, one tensor at a time."""
    _compare(source, table)
    depth: dict[str, int] = {}
    for tensor in table:
        if tensor.layer is not None:
            depth[tensor.path] = max(depth.get(tensor.path, 0), tensor.layer + 1)
    leaves: dict[str, np.ndarray] = {}
    for tensor in table:
        stored = source.read(tensor.name)
        array = tensor.to_ours(stored.astype(np.float32))
        if not np.isfinite(array).all():
            raise CheckpointError(f"{source.folder}: {tensor.name} holds NaN or infinity; use an undamaged checkpoint")
        if tensor.layer is None:
            leaves[tensor.path] = np.ascontiguousarray(array)
        else:
            if tensor.path not in leaves:
                leaves[tensor.path] = np.empty((depth[tensor.path], *tensor.our_shape), np.float32)
            leaves[tensor.path][tensor.layer] = array
    return leaves


def _compare(source: TensorFolder, table: Sequence[Tensor]) -> None:
    expected = {tensor.name: tensor.shape for tensor in table}
    found = {name: shape for name, shape in source.shapes.items() if not name.endswith("rotary_emb.inv_freq")}
    if "lm_head.weight" in found and "lm_head.weight" not in expected:
        _check_spare_head(source, table)
        del found["lm_head.weight"]
    lines = [f"missing {name} {expected[name]}" for name in sorted(expected.keys() - found.keys())]
    lines += [f"unexpected {name} {found[name]}" for name in sorted(found.keys() - expected.keys())]
    both = sorted(expected.keys() & found.keys())
    lines += [
        f"{n} has shape {found[n]}, the configuration says {expected[n]}" for n in both if found[n] != expected[n]
    ]
    if lines:
        text = "\n  ".join(lines)
        raise CheckpointError(f"{source.folder} does not hold the tensors that its configuration says:\n  {text}")


def _check_spare_head(source: TensorFolder, table: Sequence[Tensor]) -> None:
    """A tied decoder may be stored with its head, if that is the table; an encoder's head is never used."""
    name = next(tensor.name for tensor in table if tensor.path.endswith("embed/table"))
    if table[0].folder == "decoder" and name in source.shapes:
        head, rows = source.read("lm_head.weight"), source.read(name)
        if head.shape != rows.shape or not np.array_equal(head, rows):
            raise CheckpointError(
                f"{source.folder}: tie_word_embeddings is true, but lm_head.weight differs from {name};"
                " set tie_word_embeddings to false in config.json if the head is the model's"
            )
