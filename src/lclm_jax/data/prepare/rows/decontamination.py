"""Documents and chats that repeat a benchmark, found by the n-gram filter of datatrove (extra ``[prepare]``)."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Protocol

from lclm_jax.config import CorpusConfig
from lclm_jax.data.documents import Document, RawChat
from lclm_jax.data.prepare.datatrove_engine import engine_module
from lclm_jax.data.prepare.readers.files import file_bytes
from lclm_jax.data.prepare.reject_counter import RejectCounter
from lclm_jax.data.store.storage import driver_errors
from lclm_jax.errors import LclmError
from lclm_jax.text.memory_tags import MEMORY_TOKENS
from lclm_jax.types import JsonObject, ReadOnlyJson

_LONGEST_CONTEXT = 300
"""Words of a context that is itself a question (GSM8K); longer ones are documents that others may have as well."""
_WORDING = 3
"""Samples that share an n-gram which is then the wording of their task."""


def benchmark_bytes(path: str) -> bytes:
    """The file that ``corpus.decontaminate`` names; raises ``LclmError``."""
    try:
        with driver_errors():
            return b"".join(file_bytes(path))
    except OSError as error:
        raise LclmError(
            f"corpus.decontaminate={path}: {error.strerror or error}; name the samples.jsonl of a suite"
            " (lclm suite SUITE.yaml --samples)"
        ) from None


class _Filter(Protocol):
    """What is called of datatrove's filters."""

    def filter(self, document: object) -> object:
        """True, or why ``document`` is left out."""


class Decontamination:
    """Which texts repeat a benchmark.

    Args:
        config: ``decontaminate`` names a file of samples, a JSON object a line with ``task``, ``question``,
            ``answers``, ``gold`` and ``context``.
        counter: What is left out is counted as ``contaminated:TASK``.

    Raises:
        LclmError: The extra is not installed, or the file cannot be used.
    """

    def __init__(self, config: CorpusConfig, counter: RejectCounter):
        self._filter, self._document, self._counter = None, None, counter
        if (path := config.decontaminate) is not None:
            self._filter = _filter(path, benchmark_bytes(path))
            self._document = engine_module("datatrove.data").Document

    def clean(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The documents that repeat nothing."""
        return (document for document in documents if self.keeps(document.id, document.text))

    def keeps_chat(self, chat: RawChat) -> bool:
        """Whether the messages of ``chat``, end to end and without memory tags, repeat nothing."""
        if self._filter is None:
            return True
        text = "\n".join(message["content"] for message in chat.messages)
        for tag in MEMORY_TOKENS:
            text = text.replace(tag, "")
        return self.keeps(chat.id, text)

    def keeps(self, name: str, text: str) -> bool:
        """Whether ``text`` shares no n-gram with a sample; else it is counted, as is what the filter raises about."""
        if self._filter is None or self._document is None:
            return True
        document = self._document(text=text, id=name)
        try:
            result = self._filter.filter(document)
        except Exception as error:  # noqa: BLE001 - of a library, which may raise anything about a text
            self._counter.reject("filter_failed", name, f"decontaminate: {type(error).__name__}: {error}")
            return False
        if result is True:
            return True
        self._counter.note(f"contaminated:{document.metadata['contaminated_task']}")
        return False


@lru_cache(maxsize=1)
def _filter(path: str, content: bytes) -> _Filter:
    """The filter of datatrove with the n-grams of the samples that ``content``, the file at ``path``, holds."""
    module = engine_module("datatrove.pipeline.decont.n_grams")
    made = module.NGramsDecontFilter(".", module.NGramsDecontConfig(find_query_ngrams=True))
    tasks: dict[int, str] = {}
    samples: Counter[int] = Counter()
    for task, query, labels in _texts(path, content):
        # The indexer's own rule, on the filter's word tokenizer; made as an object it would ask for lighteval.
        hashes = {one for label in labels for one in module.NGramsDecontIndexer.compute_hashes(made, label, query)}
        tasks |= dict.fromkeys(hashes, task)
        samples.update(hashes)
    if not samples:
        raise LclmError(
            f"{path} has no samples of {made.config.n_grams} words or more; make them with lclm suite SUITE.yaml"
            " --samples"
        )
    # What it would read from the indexer's files.
    made._index_hashes = {one: task for one, task in tasks.items() if samples[one] < _WORDING}
    filter_: _Filter = made
    return filter_


def _texts(path: str, content: bytes) -> Iterator[tuple[str, str, Sequence[str]]]:
    """(task, what is asked, right answers) of every sample."""
    for number, line in enumerate(content.splitlines(), 1):
        try:
            sample: JsonObject = json.loads(line)
            if set(sample) == {"tasks"}:  # the first line of a suite's file
                continue
            yield _text_of(sample)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LclmError(
                f"{path}, line {number}: no sample of a benchmark ({type(error).__name__}: {error}); it needs task,"
                " question and answers"
            ) from None


def _text_of(sample: ReadOnlyJson) -> tuple[str, str, Sequence[str]]:
    context = sample.get("context") or ""
    query = (context if len(context.split()) <= _LONGEST_CONTEXT else "") + sample["question"]
    labels = [*sample["answers"], *([sample["gold"]] if sample.get("gold") else [])]
    task, query, *answers = (str(one).encode(errors="replace").decode() for one in (sample["task"], query, *labels))
    return task, query, answers or [""]
