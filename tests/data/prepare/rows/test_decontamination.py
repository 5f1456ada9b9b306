"""What is refused before any work; the filter itself is tested beside datatrove (tests/datatrove)."""

import sys

import pytest

from lclm_jax.config import CorpusConfig
from lclm_jax.data.documents import Document
from lclm_jax.data.prepare.reject_counter import RejectCounter
from lclm_jax.data.prepare.rows.decontamination import Decontamination
from lclm_jax.errors import LclmError


def test_without_the_extra_the_key_names_what_to_install(tmp_path, monkeypatch):
    for name in ("datatrove", "datatrove.pipeline.decont.n_grams"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "samples.jsonl").write_text('{"task": "a", "question": "b", "answers": ["c"]}\n')
    with pytest.raises(LclmError, match=r"pip install 'lclm-jax\[prepare\]'"):
        Decontamination(CorpusConfig(decontaminate=str(tmp_path / "samples.jsonl")), RejectCounter())


@pytest.mark.parametrize("name", ["absent.jsonl", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(LclmError, match=r"corpus.decontaminate=.*name the samples.jsonl of a suite"):
        Decontamination(CorpusConfig(decontaminate=str(tmp_path / name)), RejectCounter())


def test_without_the_key_everything_is_kept():
    counter = RejectCounter()
    documents = [Document("a", "text", "train")]
    assert list(Decontamination(CorpusConfig(), counter).clean(documents)) == documents
    assert not counter.counts


def test_a_text_that_the_library_cannot_read_is_counted():
    class Fragile:
        def filter(self, document):
            raise RecursionError("too long")

    counter = RejectCounter()
    found = object.__new__(Decontamination)
    found._filter, found._counter, found._document = Fragile(), counter, lambda **_: None
    assert not found.keeps("a", "text")
    assert counter.counts == {"filter_failed": 1}
