"""Writing a model as the folders that PyTorch, transformers and vLLM read.

The layout: ``docs/reference/export-layout.md``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lclm_jax.config import ModelConfig
from lclm_jax.errors import LclmError
from lclm_jax.files import replacing_folder
from lclm_jax.interop.engine_config import write_engine_files
from lclm_jax.interop.hf_config import backbone_json, write_json
from lclm_jax.interop.hf_weight_map import MEMORY_ROWS_PATH, TABLE_PATH, Tensor, tensor_table
from lclm_jax.interop.memory_tokens import copy_tokenizer
from lclm_jax.interop.param_source import Leaves, LeavesInMemory, shapes_of
from lclm_jax.interop.safetensors_io import DTYPES, Declared, write_folder
from lclm_jax.paths import to_path
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.types import JsonObject, Params

SHARD_BYTES = 5 * 10**9
"""Largest size of one weight file, as in Hugging Face's own exports."""


@contextmanager
def new_export(out_dir: Path) -> Iterator[Path]:
    """An empty folder to write; it takes the name ``out_dir`` and the place of an earlier export when all is written.

    Raises ``LclmError`` if ``out_dir`` holds something else.
    """
    out_dir = to_path(out_dir)
    if out_dir.exists() and any(out_dir.iterdir()) and not (out_dir / "model_config.json").is_file():
        raise LclmError(f"{out_dir} holds files that are not an export; name a new folder or empty this one")
    with replacing_folder(out_dir, last="model_config.json") as part:
        yield part


def write_model(
    leaves: "Leaves | Params",
    model: ModelConfig,
    folder: Path,
    *,
    decoder_tokenizer: Path,
    encoder_tokenizer: Path,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write ``decoder/``, ``encoder/``, ``adapter/``, ``model_config.json`` and ``processor_config.json``.

    With them, unless the folder has a ``lora/``, the files by which transformers and vLLM load it (``engine_config``).
    One layer of a stacked leaf, or a block of rows of a table, is in memory at a time.

    Args:
        leaves: parameters of ``model``, in memory or where they can be read in pieces.
        model: shape and compression, without LoRA.
        folder: empty folder, or one that holds ``lora/``.
        decoder_tokenizer: folder whose tokenizer files are copied to ``decoder/``.
        encoder_tokenizer: the same for ``encoder/``.
        dtype: float32, bfloat16 or float16.
        shard_bytes: largest size of one weight file.

    Raises:
        LclmError: for another ``dtype``, parameters that are not of ``model``, or a tokenizer without the memory
            tokens or with more ids than the table has rows.
    """
    if dtype not in DTYPES:
        raise LclmError(f"dtype={dtype!r} cannot be exported; use one of {', '.join(DTYPES)}")
    table = tensor_table(model)
    leaves = LeavesInMemory(leaves) if isinstance(leaves, Mapping) else leaves
    check_leaves(leaves, table)
    decoder_ids, encoder_ids = Tokenizer.from_folder(decoder_tokenizer), Tokenizer.from_folder(encoder_tokenizer)
    _check_rows("decoder", decoder_ids, model.decoder.vocab_size)
    _check_rows("encoder", encoder_ids, model.encoder.vocab_size)
    for part, stem in (("decoder", "model"), ("encoder", "model"), ("adapter", "adapter")):
        (folder / part).mkdir()
        rows = [tensor for tensor in table if tensor.folder == part]
        limit = shard_bytes if part != "adapter" else 2**62  # the PyTorch loader reads the adapter from one file
        declared = [Declared(tensor.name, tensor.shape, dtype) for tensor in rows]
        write_folder(folder / part, declared, block_reader(leaves, rows, decoder_ids.memory_ids), limit, stem)
    _write_side_files(folder / "decoder", model, dtype, decoder_ids, decoder_tokenizer)
    _write_side_files(folder / "encoder", model, dtype, encoder_ids, encoder_tokenizer)
    write_json(folder / "model_config.json", model_json(model))
    write_json(folder / "processor_config.json", _processor_json(model))
    if not (folder / "lora").is_dir():
        write_engine_files(folder)


def model_json(model: ModelConfig) -> JsonObject:
    """``model_config.json``: the compression, in the PyTorch implementation's words."""
    values: JsonObject = {
        "compression_ratio": model.ratio,
        "encoder_window_size": model.window,
        "pooling": model.pooling,
        "encoder_mask_type": model.mask,
        "boundary_overlap": model.overlap,
        "adapter_type": model.adapter.type,
    }
    if model.adapter.row.blocks:
        values["num_adapter_layers"] = model.adapter.num_layers
    return values


def check_leaves(leaves: Leaves, table: Sequence[Tensor]) -> None:
    """Raise ``LclmError`` with the full difference unless ``leaves`` are exactly those of ``table``."""
    expected, found = shapes_of(table), leaves.shapes
    lines = [f"missing {path} {expected[path]}" for path in sorted(expected.keys() - found.keys())]
    lines += [f"unexpected {path} {found[path]}" for path in sorted(found.keys() - expected.keys())]
    both = sorted(expected.keys() & found.keys())
    lines += [f"{p} has shape {found[p]}, not {expected[p]}" for p in both if found[p] != expected[p]]
    if lines:
        raise LclmError("the parameters are not those of the model configuration:\n  " + "\n  ".join(lines))


def block_reader(
    leaves: Leaves, table: Sequence[Tensor], memory_ids: Sequence[int]
) -> Callable[[str], Iterator[np.ndarray]]:
    """``blocks(name)``: one tensor in the file's layout, the memory rows merged into the decoder's table."""
    named = {tensor.name: tensor for tensor in table}

    def blocks(name: str) -> Iterator[np.ndarray]:
        tensor = named[name]
        for rows in tensor.row_blocks():
            array = tensor.to_theirs(leaves.read(tensor.path, tensor.index(rows)))
            if tensor.path == TABLE_PATH:
                array = np.array(array)
                for order, row in enumerate(memory_ids):
                    if rows.start <= row < rows.stop:
                        array[row - rows.start] = leaves.read(MEMORY_ROWS_PATH, (order,))
            yield array

    return blocks


def _check_rows(role: str, tokenizer: Tokenizer, rows: int) -> None:
    if tokenizer.vocab_size > rows:
        raise LclmError(
            f"the {role}'s tokenizer has {tokenizer.vocab_size} ids, its table {rows} rows; set"
            f" model.{role}.vocab_size to {tokenizer.vocab_size} or more, or use the tokenizer it was trained with"
        )


def _write_side_files(folder: Path, model: ModelConfig, dtype: str, tokenizer: Tokenizer, source: Path) -> None:
    causal = folder.name == "decoder"
    special = tokenizer.named_ids
    write_json(
        folder / "config.json", backbone_json(model.decoder if causal else model.encoder, causal, dtype, special)
    )
    if causal:
        # Text ends with the end of a document, a turn with the end of the turn: all of them stop generation.
        stops = sorted(tokenizer.stop_ids)
        write_json(folder / "generation_config.json", {**special, "eos_token_id": stops, "do_sample": False})
    copy_tokenizer(source, folder)


def _processor_json(model: ModelConfig) -> JsonObject:
    return {
        "compression_ratio": model.ratio,
        "max_memory_length": 8192,
        "use_memory_wrapping": True,
        "memory_placeholder": "<|memory|>",
        "memory_start": "<|memory_start|>",
        "memory_end": "<|memory_end|>",
    }
