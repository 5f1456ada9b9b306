"""Memory tokens for a tokenizer that lacks them, and embedding rows for what a tokenizer gained."""

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import tokenizers
from lclm_jax.errors import LclmError
from lclm_jax.interop.hf_config import read_json, write_json
from lclm_jax.interop.hf_weight_map import Tensor
from lclm_jax.interop.param_source import FolderBlocks
from lclm_jax.text.chats.chat_template import TEMPLATE_FOLDERS
from lclm_jax.text.memory_tags import MEMORY_TOKENS
from lclm_jax.text.sentencepiece import model_in
from lclm_jax.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)


def copy_tokenizer(source: Path, folder: Path, memory_tokens: bool = True) -> None:
    """Copy the files of a tokenizer; a SentencePiece model is also written as ``tokenizer.json``.

    ``memory_tokens``: whether a SentencePiece model gets the memory tokens there (see ``Tokenizer``).
    """
    model = model_in(source)
    home = source if model is None else model.parent
    for name in TOKENIZER_FILES:
        if (home / name).is_file() and not (model is not None and name == "tokenizer.json"):
            shutil.copyfile(home / name, folder / name)
    for name in TEMPLATE_FOLDERS:
        if (home / name).is_dir():
            shutil.copytree(home / name, folder / name)
    if model is not None:
        (folder / "tokenizer.json").write_bytes(Tokenizer(source, memory_tokens).json)


def add_memory_tokens(folder: Path) -> dict[str, int]:
    """Add the memory tokens that the tokenizer in ``folder`` lacks, as special tokens; returns those added, with ids.

    ``tokenizer_config.json`` and ``added_tokens.json`` are kept in step where they list added tokens. No other token
    changes its id.
    """
    path = folder / "tokenizer.json"
    before = Tokenizer.from_folder(folder)
    missing = [token for token in MEMORY_TOKENS if before.token_id(token) is None]
    if not missing:
        return {}
    # Files with truncation or a post-processor keep both: only the tokens are new.
    built = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    taken = set(built.get_vocab(with_added_tokens=True).values())
    built.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in missing])
    text = built.to_str(pretty=True)
    # The library counts tokens to find an id when it reads them: in a vocabulary with holes another token has it.
    again = tokenizers.Tokenizer.from_str(text)
    added = {token: index for token in missing if (index := again.token_to_id(token)) is not None}
    if taken.isdisjoint(added.values()):
        path.write_text(text, encoding="utf-8")
    else:
        added = {token: max(taken) + order for order, token in enumerate(missing, 1)}
        _add_with_ids(path, added)
    _list_in_config(folder / "tokenizer_config.json", added)
    listed = folder / "added_tokens.json"
    if listed.is_file():
        write_json(listed, read_json(listed) | added)
    return added


def _add_with_ids(path: Path, added: dict[str, int]) -> None:
    """Add special tokens to ``tokenizer.json`` under ids of our choice: the library keeps those that the model has."""
    values = read_json(path)
    vocabulary = values["model"]["vocab"]
    if not isinstance(vocabulary, dict):
        raise LclmError(
            f"{path}: the ids have holes and the model is {values['model'].get('type')}, which cannot name the ids of"
            f" {', '.join(added)}; add them to the tokenizer and its model first"
        )
    vocabulary |= added
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    values["added_tokens"] += [{"id": index, "content": token, **flags} for token, index in added.items()]
    write_json(path, values)


def _list_in_config(path: Path, added: dict[str, int]) -> None:
    if not path.is_file():
        return
    values = read_json(path)
    if "added_tokens_decoder" not in values:
        return
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    entries = {str(index): {"content": token, **flags} for token, index in added.items()}
    write_json(path, values | {"added_tokens_decoder": values["added_tokens_decoder"] | entries})


@dataclass(frozen=True)
class NewRows:
    """Which rows of an embedding table (and of an untied head) are new, and what they hold.

    Attributes:
        total: rows of the table afterwards; never fewer than before.
        used: leading rows that belong to tokens of the source's tokenizer: new rows are their mean.
        fresh: rows of tokens that the source did not have, although its table may be padded that far.
        given: row -> its embedding, in place of the mean.
    """

    total: int
    used: int
    fresh: frozenset[int]
    given: dict[int, np.ndarray]

    def blocks(self, source: FolderBlocks, tensor: Tensor) -> Iterator[np.ndarray]:
        """Consecutive rows of the grown ``tensor``, as they are stored."""
        rows = tensor.shape[0]
        mean = self._mean(source, tensor) if self.fresh or self.total > rows else None
        # A head's rows are no embeddings: what is given goes into the table.
        given = self.given if tensor.path.endswith("embed/table") else {}
        for block in tensor.row_blocks():
            array = np.array(source.stored(tensor, block))
            for row in self.fresh | given.keys():
                if block.start <= row < block.stop:
                    array[row - block.start] = given.get(row, mean)
            yield array
        if self.total > rows:
            assert mean is not None
            dtype = source.stored(tensor, slice(0, 1)).dtype
            yield np.stack([given.get(row, mean) for row in range(rows, self.total)]).astype(dtype)

    def expected(self, source: FolderBlocks, tensor: Tensor, block: slice) -> np.ndarray:
        """Rows ``block`` of the grown ``tensor``, worked out one by one: what ``blocks`` must have written."""
        kept = slice(block.start, min(block.stop, tensor.shape[0]))
        old = source.stored(tensor, kept if kept.start < kept.stop else slice(0, 1))
        rows = np.empty((block.stop - block.start, tensor.shape[1]), old.dtype)
        rows[: max(0, kept.stop - kept.start)] = old[: max(0, kept.stop - kept.start)]
        given = self.given if tensor.path.endswith("embed/table") else {}
        new = {row for row in {*self.fresh, *given} if block.start <= row < block.stop}
        new |= set(range(max(block.start, tensor.shape[0]), block.stop))
        mean = self._mean(source, tensor) if new else None
        for row in new:
            rows[row - block.start] = given.get(row, mean)
        return rows

    def _mean(self, source: FolderBlocks, tensor: Tensor) -> np.ndarray:
        used = min(self.used, tensor.shape[0])
        total = np.zeros(tensor.shape[1], np.float64)
        for block in tensor.row_blocks():
            rows = slice(block.start, min(block.stop, used))
            if rows.start < rows.stop:
                total += source.stored(tensor, rows).astype(np.float32).sum(axis=0, dtype=np.float64)
        return (total / used).astype(np.float32)


def plan_rows(source: Path, folder: Path, rows: int, pad_to: int = 1, memory_rows: np.ndarray | None = None) -> NewRows:
    """How the table of ``rows`` rows that came with the tokenizer in ``source`` must grow for the one in ``folder``.

    Args:
        source: the tokenizer as it came.
        folder: the tokenizer with what was added.
        rows: rows of the table as it came.
        pad_to: the table gets a multiple of this many rows, so that a mesh divides it.
        memory_rows: ``[3, hidden]`` for the memory tokens (start, end, memory); None: the mean of the used rows for
            those added, the source's own for those it had.
    """
    before, after = Tokenizer(source, memory_tokens=False), Tokenizer.from_folder(folder)
    total = -(-max(rows, after.vocab_size) // pad_to) * pad_to
    fresh = {after.token_id(token) for token in MEMORY_TOKENS if before.token_id(token) is None}
    given = {} if memory_rows is None else dict(zip(after.memory_ids, memory_rows, strict=True))
    new = NewRows(total, before.vocab_size, frozenset(row for row in fresh if row is not None), given)
    if total > rows or new.fresh:
        log.info(
            "%s: %d embedding rows, were %d; rows %s start as %s",
            folder.name,
            total,
            rows,
            ", ".join(map(str, sorted(new.fresh | set(range(rows, total)))[:8])),
            "given" if given else f"the mean of the {min(before.vocab_size, rows)} used ones",
        )
    return new


def read_memory_rows(path: Path, width: int) -> np.ndarray:
    """``memory_rows`` [3, width] of a safetensors file: embeddings of memory_start, memory_end and memory."""
    array = load_file(path).get("memory_rows")
    if array is None or array.shape != (3, width):
        shape = None if array is None else array.shape
        raise LclmError(
            f"{path}: memory_rows has shape {shape}, the table needs {(3, width)}; one row per memory token"
        )
    return array.astype(np.float32)
