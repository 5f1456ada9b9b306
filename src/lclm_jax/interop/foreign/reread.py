"""What an import wrote, read again: ids, rows and settings are those of the source, or were meant to change."""

from pathlib import Path

from lclm_jax.config import BackboneConfig
from lclm_jax.interop.hf_config import read_backbone, read_json
from lclm_jax.interop.memory_tokens import NewRows
from lclm_jax.interop.param_source import FolderBlocks
from lclm_jax.interop.safetensors_io import CheckpointError
from lclm_jax.text.memory_tags import MEMORY_TOKENS
from lclm_jax.text.tokenizer import Tokenizer


def check_tokenizer(source: Path, written: Path) -> None:
    """Raise ``CheckpointError`` unless every token of ``source`` has its id in ``written``, and no other token has it.

    Memory tokens may have been added; each must be one token of its own. Every setting must be that of ``source``.
    """
    before, after = Tokenizer(source, memory_tokens=False), Tokenizer(written, memory_tokens=False)
    ids = after.backend().get_vocab(with_added_tokens=True)
    for token, index in before.backend().get_vocab(with_added_tokens=True).items():
        if ids.get(token) != index:
            raise CheckpointError(f"{written}: token {token!r} has id {ids.get(token)}, in the source {index}")
    by_id: dict[int, str] = {}
    for token, index in ids.items():
        if index in by_id:
            raise CheckpointError(
                f"{written}: tokens {by_id[index]!r} and {token!r} both have id {index}; use a tokenizer that gives"
                " every token an id of its own"
            )
        by_id[index] = token
    for token in MEMORY_TOKENS:
        if token not in ids:
            continue
        found = after.encode(token).tolist()
        if found != [ids[token]] or after.decode(found) != token:
            raise CheckpointError(
                f"{written}: {token} becomes {found}, not its id {ids[token]} alone; use a tokenizer whose normalizer"
                " leaves special tokens as they are"
            )
    if (before.bos_id, before.chat_templates.sources) != (after.bos_id, after.chat_templates.sources):
        raise CheckpointError(f"{written}: BOS token or chat template differ from those of {source}; import it again")
    path = written / "tokenizer_config.json"
    if path.is_file() and (source / path.name).is_file():
        found = read_json(path)
        for name, value in read_json(source / path.name).items():
            if name != "added_tokens_decoder" and found.get(name) != value:
                raise CheckpointError(f"{path}: {name}={found.get(name)!r}, in the source {value!r}; import it again")


def check_backbone(source: FolderBlocks, written: FolderBlocks, rows: NewRows, config: BackboneConfig) -> None:
    """Raise ``CheckpointError`` unless ``written`` holds the tensors of ``source``, with tables grown as ``rows`` says.

    Names, shapes and types of all tensors are compared, and every row of the tables. ``config``: what was meant.
    """
    folder = written.source.folder
    if read_backbone(folder) != config:
        raise CheckpointError(f"{folder}/config.json is read as another model than was imported; import it again")
    for old, new in zip(source.table, written.table, strict=True):
        types = source.source.dtypes[old.name], written.source.dtypes[new.name]
        if types[0] != types[1]:
            raise CheckpointError(f"{folder}: {new.name} is stored as {types[1]}, in the source as {types[0]}")
        if not new.path.endswith(("embed/table", "head/kernel")):
            continue
        for block in new.row_blocks():
            found, expected = written.stored(new, block), rows.expected(source, old, block)
            if found.tobytes() != expected.tobytes():
                wrong = [row for row in range(len(found)) if found[row].tobytes() != expected[row].tobytes()]
                raise CheckpointError(
                    f"{folder}: row {block.start + wrong[0]} of {new.name} is not what was imported; check the disk and"
                    " import it again"
                )
