from types import SimpleNamespace

from lclm_jax.data.documents import Document
from lclm_jax.data.prepare.filters import DocumentFilters
from lclm_jax.data.prepare.reject_counter import RejectCounter


class Fragile:
    """As a filter of a library: it raises about one text."""

    def filter(self, document):
        return len(document.text) // (len(document.text) - 3) > 0


def test_a_filter_that_raises_spoils_its_document_alone():
    filters = object.__new__(DocumentFilters)
    filters._filters, filters._document = [("fragile", Fragile())], SimpleNamespace
    counter = RejectCounter()
    kept = [filters.keep(Document(text, text, "train"), counter) for text in ("abcdef", "abc", "ab")]
    assert kept == [True, False, False]
    assert counter.counts == {"filter_failed": 1, "filtered_fragile": 1}
    assert counter.rejects[0]["excerpt"].startswith("fragile: ZeroDivisionError")
