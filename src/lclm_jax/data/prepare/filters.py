"""Quality, length and language filters of datatrove (extra ``[prepare]``), by name."""

from collections.abc import Iterator, Mapping
from typing import Any

from lclm_jax.config import CollectionConfig, Config
from lclm_jax.config.base import suggestion
from lclm_jax.data.documents import Document
from lclm_jax.data.prepare.corpus import read_documents
from lclm_jax.data.prepare.datatrove_engine import engine_module
from lclm_jax.data.prepare.parts import Part
from lclm_jax.data.prepare.reject_counter import RejectCounter
from lclm_jax.data.prepare.rows.decontamination import Decontamination
from lclm_jax.errors import LclmError
from lclm_jax.types import ReadOnlyJson

_LENGTH = dict.fromkeys(
    (
        "min_avg_word_length",
        "max_avg_word_length",
        "max_symbol_word_ratio",
        "max_bullet_lines_ratio",
        "max_ellipsis_lines_ratio",
        "max_non_alpha_words_ratio",
        "min_stop_words",
    )
)
"""The rules of GopherQualityFilter that ``length`` leaves out; it keeps ``min_doc_words`` and ``max_doc_words``."""

_CLASSES = {
    "c4_bad_words": "C4BadWordsFilter",
    "c4_quality": "C4QualityFilter",
    "fasttext": "FastTextClassifierFilter",
    "fineweb_quality": "FineWebQualityFilter",
    "gopher_quality": "GopherQualityFilter",
    "gopher_repetition": "GopherRepetitionFilter",
    "language": "LanguageFilter",
    "length": "GopherQualityFilter",
    "regex": "RegexFilter",
    "unigram_log_probs": "UnigramLogProbFilter",
}


class DocumentFilters:
    """The filters of a collection, made once.

    Raises:
        LclmError: a filter is unknown, its arguments are wrong, or what it needs is not installed.
    """

    def __init__(self, filters: Mapping[str, ReadOnlyJson]):
        self._filters = [(name, _make(name, arguments)) for name, arguments in filters.items()]
        self._document = engine_module("datatrove.data").Document

    def keep(self, document: Document, counter: RejectCounter) -> bool:
        """Whether every filter keeps ``document``; else it is counted as ``filtered_`` and the filter's reason.

        A document about which a filter raises is counted as ``filter_failed``.
        """
        seen = self._document(text=document.text, id=document.id)
        for name, one in self._filters:
            try:
                result = one.filter(seen)
            except Exception as error:  # noqa: BLE001 - of a library, which may raise anything about a text
                counter.reject("filter_failed", document.id, f"{name}: {type(error).__name__}: {error}")
                return False
            kept, reason = result if isinstance(result, tuple) else (result, None)
            if not kept:
                counter.note(f"filtered_{reason or name}")
                return False
        return True


def _make(name: str, arguments: ReadOnlyJson) -> Any:
    if name not in _CLASSES:
        raise LclmError(f"filter {name!r} is unknown; {suggestion(name, _CLASSES)}")
    made = getattr(engine_module("datatrove.pipeline.filters"), _CLASSES[name])
    try:
        return made(**((_LENGTH if name == "length" else {}) | dict(arguments)))
    except (TypeError, ImportError) as error:
        raise LclmError(f"filter {name} with {dict(arguments)}: {error}") from None


def part_documents(
    part: Part, collection: CollectionConfig, config: Config, counter: RejectCounter
) -> Iterator[Document]:
    """The documents of ``part`` that its filters keep and that repeat no benchmark, before duplicates are taken out."""
    documents = read_documents(part.entries, collection, config.corpus, counter)
    if collection.filters:
        filters = DocumentFilters(collection.filters)
        documents = (document for document in documents if filters.keep(document, counter))
    return Decontamination(config.corpus, counter).clean(documents)
