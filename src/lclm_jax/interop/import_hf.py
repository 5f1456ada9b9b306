"""``lclm import``: a folder of a supported family, or a complete LCLM, made ready for a run to start from.

The result is a folder in the layout that export writes, checked tensor by tensor, with memory tokens and their rows, so
transformers, ``lclm generate`` and ``config.init`` all read it. Weights keep the type they came in.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from lclm_jax.config import BackboneConfig, ModelConfig
from lclm_jax.errors import LclmError
from lclm_jax.files import replacing_folder
from lclm_jax.interop.foreign.files import GENERATION, check_files
from lclm_jax.interop.foreign.older_layout import FOLDERS, is_older, translated
from lclm_jax.interop.foreign.reread import check_backbone, check_tokenizer
from lclm_jax.interop.hf_config import FAMILIES, read_backbone, read_json, write_json
from lclm_jax.interop.hf_weight_map import Tensor, adapter_tensors, backbone_tensors
from lclm_jax.interop.load import open_backbone, read_model
from lclm_jax.interop.lora import copy_peft, read_peft
from lclm_jax.interop.memory_tokens import NewRows, add_memory_tokens, copy_tokenizer, plan_rows, read_memory_rows
from lclm_jax.interop.param_source import FolderBlocks
from lclm_jax.interop.safetensors_io import CheckpointError, Declared, TensorFolder, write_folder
from lclm_jax.types import JsonObject
from lclm_jax.version import __version__

log = logging.getLogger(__name__)

ROLES = ("encoder", "decoder", "lclm")
RECORD = "import.json"
"""What was imported, beside the weights; marks a folder that may be replaced by another import."""
CONFIG = "lclm.yaml"
"""The keys that a run's configuration needs to start from the import."""

_KEPT = ("model_config.json", "processor_config.json")


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Choices of an import.

    Attributes:
        memory_tokens: add missing memory tokens to the encoder's tokenizer too (the decoder's always gets them).
        pad_to: tables get a multiple of this many rows.
        memory_rows: safetensors file with ``memory_rows`` [3, hidden]; None: the mean of the used rows.
        shard_bytes: largest size of one weight file.
        compression: option of ``lclm import`` (see ``older_layout.OPTIONS``) -> value, for checkpoints of the older
            layout that do not say it.
    """

    memory_tokens: bool = False
    pad_to: int = 1
    memory_rows: Path | None = None
    shard_bytes: int = 5 * 10**9
    compression: Mapping[str, object] = field(default_factory=dict)


def import_model(
    source: Path,
    out_dir: Path,
    role: str | None = None,
    options: ImportOptions | None = None,
    origin: str | None = None,
) -> JsonObject:
    """Write ``out_dir`` from ``source``; memory holds one layer, or one block of rows of a table.

    Args:
        source: local folder.
        out_dir: folder to write; an earlier import there is replaced.
        role: encoder, decoder or lclm; None: lclm if the folder is one.
        options: None: the defaults.
        origin: what to write down as the source; None: the folder's name.

    Returns:
        The keys that a run's configuration needs (``lclm.yaml``).

    Raises:
        LclmError: unknown role, an ``out_dir`` that is no import, or (``CheckpointError``) tensors that are missing,
            unexpected, misshaped, pickled, quantized or not finite, with the full difference.
    """
    options = options or ImportOptions()
    role = _role(source, role)
    if options.compression and not (role == "lclm" and is_older(source)):
        raise LclmError(
            f"{', '.join(options.compression)}: only told of a checkpoint in the older layout"
            f" ({', '.join(FOLDERS.values())}), which {source} is not; leave them out"
        )
    if out_dir.exists() and any(out_dir.iterdir()) and not (out_dir / RECORD).is_file():
        raise LclmError(f"{out_dir} holds files that are not an import; name a new folder or empty this one")
    with replacing_folder(out_dir, last=RECORD) as part:
        if role == "lclm":
            config = _import_lclm(source, part, options, origin or str(source.resolve()))
            tokenizers = {name: str(out_dir / name) for name in ("decoder", "encoder")}
        else:
            config = {role: _model_keys(_import_backbone(source, part, role, options))}
            tokenizers = {role: str(out_dir)}
        keys = {"model": config, "tokenizer": tokenizers, "init": {role: str(out_dir)}}
        (part / CONFIG).write_text(yaml.safe_dump(keys, sort_keys=False), encoding="utf-8")
        write_json(part / RECORD, {"source": origin or source.name, "role": role, "lclm_jax": __version__})
    return keys


def _role(source: Path, role: str | None) -> str:
    complete = ((source / "model_config.json").is_file() and (source / "decoder").is_dir()) or is_older(source)
    if role is None:
        if not complete:
            raise LclmError(
                f"{source} is not a complete LCLM; say with --role whether it becomes an encoder or a decoder"
            )
        return "lclm"
    if role not in ROLES:
        raise LclmError(f"role={role!r} is unknown; use one of {', '.join(ROLES)}")
    return role


def _import_lclm(source: Path, out: Path, options: ImportOptions, name: str) -> JsonObject:
    folders = FOLDERS if is_older(source) else {part: part for part in FOLDERS}
    # First, as what is missing is asked for.
    settings = translated(source, name, options.compression) if is_older(source) else None
    for role in ("decoder", "encoder"):
        (out / role).mkdir()
        _import_backbone(source / folders[role], out / role, role, options)
    for kept in _KEPT:
        if (source / kept).is_file():
            shutil.copyfile(source / kept, out / kept)
    if settings is not None:
        write_json(out / "model_config.json", settings)
    copy_peft(source, out)
    model = read_model(out)
    read_peft(out, model)  # fails unless it fits the model
    (out / "adapter").mkdir()
    blocks = FolderBlocks(TensorFolder(source / folders["adapter"]), adapter_tensors(model))
    _write(out / "adapter", blocks, blocks.table, None, 2**62)
    return _lclm_keys(model)


def _import_backbone(source: Path, out: Path, role: str, options: ImportOptions) -> BackboneConfig:
    if (source / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{source} holds a PEFT adapter; merge it into its base model with peft and import that, or put it in"
            f" lora/{role} of the complete LCLM that it belongs to"
        )
    backbone = read_backbone(source)
    check_files(source, backbone.vocab_size)
    blocks = open_backbone(source, backbone, role)
    if role == "encoder" and "lm_head.weight" in blocks.source.shapes:
        log.info("%s: the output head is left out, an encoder has none", source.name)
    copy_tokenizer(source, out, memory_tokens=False)
    if role == "decoder" or options.memory_tokens:
        for token, index in add_memory_tokens(out).items():
            log.info("%s: token %s added, id %d", source.name, token, index)
    given = None
    if options.memory_rows is not None and role == "decoder":
        given = read_memory_rows(options.memory_rows, backbone.hidden_size)
    rows = plan_rows(source, out, backbone.vocab_size, options.pad_to, given)
    grown = backbone.model_copy(update={"vocab_size": rows.total})
    table = backbone_tensors(grown, role, "model." if role == "decoder" else "")
    _write(out, blocks, table, rows, options.shard_bytes)
    _write_config(source, out, role, rows.total)
    check_tokenizer(source, out)
    check_backbone(blocks, FolderBlocks(TensorFolder(out), table), rows, grown)
    return grown


def _write(out: Path, blocks: FolderBlocks, table: Sequence[Tensor], rows: NewRows | None, shard_bytes: int) -> None:
    """Write ``blocks`` under the names of ``table`` (the same tensors in the same order), in the type they have."""
    sources = {tensor.name: stored for tensor, stored in zip(table, blocks.table, strict=True)}

    def read(name: str):
        tensor = sources[name]
        if rows is not None and tensor.path.endswith(("embed/table", "head/kernel")):
            return rows.blocks(blocks, tensor)
        return (blocks.stored(tensor, block) for block in tensor.row_blocks())

    declared = [Declared(t.name, t.shape, blocks.source.dtypes[sources[t.name].name]) for t in table]
    write_folder(out, declared, read, shard_bytes, "adapter" if out.name == "adapter" else "model")


def _write_config(source: Path, out: Path, role: str, rows: int) -> None:
    values = read_json(source / "config.json")
    architecture = FAMILIES[values["model_type"]][0 if role == "decoder" else 1]
    write_json(out / "config.json", values | {"architectures": [architecture], "vocab_size": rows})
    if role == "encoder":
        return
    if (source / GENERATION).is_file():
        shutil.copyfile(source / GENERATION, out / GENERATION)
    elif values.get("eos_token_id") is not None:  # transformers makes it of these as well
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        write_json(out / GENERATION, {name: values[name] for name in names if values.get(name) is not None})


def _model_keys(backbone: BackboneConfig) -> JsonObject:
    return backbone.model_dump(mode="json", exclude={"preset"})


def _lclm_keys(model: ModelConfig) -> JsonObject:
    """The keys of ``model`` that the files of an LCLM hold."""
    compression = {"adapter", "ratio", "window", "overlap", "pooling", "mask"}
    if model.plain != model:
        compression.add("lora")
    towers = {"encoder": _model_keys(model.encoder), "decoder": _model_keys(model.decoder)}
    return towers | json.loads(model.model_dump_json(include=compression))
