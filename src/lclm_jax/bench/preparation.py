"""How fast a corpus is prepared, beside the bare tokenizer on the same texts, and what its shards weigh."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from lclm_jax.config import Config
from lclm_jax.data.prepare.corpus import read_corpus
from lclm_jax.data.prepare.run import prepare_corpus
from lclm_jax.data.store.packed_records import pack
from lclm_jax.data.store.records import document_columns
from lclm_jax.data.store.shards import encode_record, lengths_name
from lclm_jax.data.store.vocabulary import token_bytes
from lclm_jax.text.chunked_encoding import ChunkedEncoder
from lclm_jax.text.cuts import CutFinder
from lclm_jax.text.run_tokenizers import read_tokenizers
from lclm_jax.text.shared_tokenization import shared_tokenization
from lclm_jax.text.tokenizer import Tokenizers
from lclm_jax.types import JsonObject

Result = TypeVar("Result")

_BATCH = 64


class PreparationPace(NamedTuple):
    """Preparation of the documents of a corpus by one process."""

    documents: int
    text_bytes: int
    tokens: int
    """Decoder's tokens."""
    seconds: float
    """CPU time of the preparation, over all threads."""
    bare_seconds: float
    """CPU time of the ``tokenizers`` library on the same texts, with the decoder's tokenizer."""
    phases: dict[str, float]
    """CPU time of each step of the preparation, measured apart, and the rest of ``seconds``."""
    sizes: dict[str, int]
    """Bytes written, by kind of file."""

    @property
    def ratio(self) -> float:
        """Speed of the preparation over that of the bare library."""
        return self.bare_seconds / self.seconds

    def as_json(self) -> JsonObject:
        """All of it, with ratios."""
        per_token = {name: size / self.tokens for name, size in self.sizes.items()}
        speed = {"tokens_per_s": self.tokens / self.seconds, "bare_tokens_per_s": self.tokens / self.bare_seconds}
        return self._asdict() | speed | {"ratio": self.ratio, "bytes_per_token": per_token}


def bench_preparation(config: Config, max_bytes: int) -> PreparationPace:
    """Prepare documents of about ``max_bytes`` of each collection in a temporary folder.

    Times are CPU times of this process and its threads, which other work on the machine disturbs less than wall time.

    Raises:
        LclmError: as ``prepare_corpus``.
    """
    collections = {
        name: collection.model_copy(update={"max_bytes": max_bytes})
        for name, collection in config.corpus.resolved.items()
        if collection.records == "documents"
    }
    corpus = config.corpus.model_copy(update={"kind": "python_stdlib", "path": None, "collections": collections})
    sampled = config.model_copy(update={"corpus": corpus, "data": config.data.model_copy(update={"sources": {}})})
    tokenizers = read_tokenizers(config)
    documents, reading = _timed(lambda: list(read_corpus(corpus)))
    texts = [document.text for document in documents]
    batches = [texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH)]
    backend = tokenizers.decoder.backend(plain=True)
    _, bare = _timed(lambda: [len(backend.encode_batch(batch, add_special_tokens=False)) for batch in batches])
    phases = {"reading": reading} | _phases(batches, tokenizers)
    with tempfile.TemporaryDirectory() as folder:
        manifest, seconds = _timed(lambda: prepare_corpus(sampled, folder))
        sizes, tokens = _sizes(Path(folder), manifest)
    phases["rest"] = seconds - sum(phases.values())
    return PreparationPace(len(texts), sum(len(text.encode()) for text in texts), tokens, seconds, bare, phases, sizes)


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    start = time.process_time()
    done = work()
    return done, time.process_time() - start


def _phases(texts: Sequence[list[str]], tokenizers: Tokenizers) -> dict[str, float]:
    """CPU time of each step after reading."""
    encode, cuts, vocabulary = (
        ChunkedEncoder(tokenizers.decoder),
        CutFinder(tokenizers.decoder),
        token_bytes(tokenizers.decoder),
    )
    _, tokenizing = _timed(lambda: [encode(batch) for batch in texts])
    found, cutting = _timed(lambda: [cuts.tokenize(batch) for batch in texts])
    pairs = [pair for batch, own in zip(texts, found, strict=True) for pair in zip(batch, own, strict=True)]
    columns, kinds = _timed(lambda: [document_columns("name", text, tokens, None) for text, tokens in pairs])
    _, packing = _timed(lambda: [encode_record(pack(one, vocabulary)) for one in columns])
    phases = {"tokenizing": tokenizing, "cuts": cutting - tokenizing, "kinds of cuts": kinds, "packing": packing}
    if shared_tokenization(*tokenizers) is None:
        other = CutFinder(tokenizers.encoder)
        phases["second tokenizer"] = _timed(lambda: [other.tokenize(batch) for batch in texts])[1]
    return phases


def _sizes(folder: Path, manifest: JsonObject) -> tuple[dict[str, int], int]:
    """Bytes by kind of file, and the decoder's tokens."""
    splits = [split for collection in manifest["collections"].values() for split in collection.values()]
    files = [shard["file"] for split in splits for shard in split["shards"]]
    sizes = {
        "records": sum((folder / file).stat().st_size for file in files),
        "lengths": sum((folder / lengths_name(file)).stat().st_size for file in files),
    }
    sizes["all files"] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return sizes, sum(split["decoder_tokens"] for split in splits)
