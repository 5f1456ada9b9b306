import json
import subprocess
import sys
from collections import Counter

import pytest

from lclm_jax.config import CorpusConfig
from lclm_jax.data.demo.function_chats import chats_of
from lclm_jax.data.documents import Document
from lclm_jax.data.prepare.corpus import (
    list_collection,
    read_corpus,
    read_documents,
    read_tokenizer_texts,
    split_of,
)
from lclm_jax.data.prepare.reject_counter import RejectCounter
from lclm_jax.errors import LclmError
from lclm_jax.text.memory_tags import split_memory


def folder(tmp_path, **files):
    for name, content in files.items():
        (tmp_path / f"{name}.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    return CorpusConfig(kind="folder", path=str(tmp_path), validation_share=0, held_out_share=0)


def entries_of(config):
    return list_collection(config.resolved["documents"], 10**6)


def test_unusable_files_are_counted_by_reason(tmp_path):
    config = folder(tmp_path, good="one\ntwo\n", empty="", blank=" \n\n", latin="é".encode("latin-1"), other="x")
    (tmp_path / "ignored.bin").write_bytes(b"x")
    counter = RejectCounter()
    assert [document.id for document in read_corpus(config, counter=counter)] == ["good.txt", "other.txt"]
    assert counter.counts == {"empty": 2, "undecodable": 1}


def test_unreadable_file_is_counted(tmp_path):
    config = folder(tmp_path, a="x")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "a.txt")
    entries = entries_of(config)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "b.txt").write_text("y")
    counter = RejectCounter()
    assert not list(read_documents(entries, config.resolved["documents"], config, counter))
    assert counter.counts == {"unreadable": 2}


def test_long_files_are_cut_at_a_line_or_a_whole_character(tmp_path):
    config = folder(tmp_path, lines="ab\ncd\nef", wide="é" * 10).model_copy(update={"max_file_bytes": 7})
    counter = RejectCounter()
    assert {d.id: d.text for d in read_corpus(config, counter=counter)} == {"lines.txt": "ab\ncd\n", "wide.txt": "ééé"}
    assert counter.counts == {"cut": 2}


def test_text_is_normalized_and_starts_with_its_first_line(tmp_path):
    config = folder(tmp_path, a=b"\xef\xbb\xbf \n\n  indented\n", b="e\u0301")
    assert [document.text for document in read_corpus(config)] == ["  indented\n", "é"]


def test_missing_and_empty_corpus_say_what_to_do(tmp_path):
    with pytest.raises(LclmError, match=r"names no file to read.*check the path"):
        entries_of(CorpusConfig(kind="folder", path=str(tmp_path / "none")))
    with pytest.raises(LclmError, match=r"a collection is empty.*name files that exist"):
        entries_of(folder(tmp_path, a="x" * 9).model_copy(update={"max_bytes": 5}))


def test_splits_depend_on_the_name_alone_and_follow_their_shares():
    config = CorpusConfig(validation_share=0.2, held_out_share=0.1)
    splits = Counter(split_of(f"file{i}.py", config) for i in range(2000))
    assert splits["held_out"] == pytest.approx(200, abs=45)
    assert splits["validation"] == pytest.approx(400, abs=60)


def test_max_bytes_takes_a_stable_sample_in_the_order_of_names(tmp_path):
    config = folder(tmp_path, **{f"f{i:02d}": "x" * 10 for i in range(40)})
    small, large = (
        [entry.id for entry in entries_of(config.model_copy(update={"max_bytes": size}))] for size in (100, 200)
    )
    assert len(small) == 10
    assert len(large) == 20
    assert set(small) < set(large)
    assert small == sorted(small)


def test_python_corpus_has_code_and_manual_but_no_tests_and_no_machine_files():
    names = [entry.id for entry in entries_of(CorpusConfig())]
    assert names == sorted(set(names))
    assert {"stdlib/argparse.py", "topics/assert"} <= set(names)
    assert not any("/test/" in n or "site-packages" in n or "_sysconfigdata" in n or "idlelib" in n for n in names)


SOURCE = '''
def area(width, height, *, unit="m"):
    """Area of a rectangle in square units."""
    product = width * height
    return f"{product} {unit}2"

class Box:
    def close(self):
        """Close the lid of the box gently."""
        self.lid.move(0)
        self.closed = True
'''


def test_chats_ask_about_sources_without_their_docstrings():
    chats = [chat for i in range(40) for chat in chats_of(Document(f"{i}.py", SOURCE, "train"))]
    assert len(chats) == 80
    answers = set()
    for chat in chats:
        assert [message["role"] for message in chat] == ["user", "assistant"] * (len(chat) // 2)
        spans = [piece.text for piece in split_memory(chat[0]["content"]) if piece.kind == "span"]
        assert 1 <= len(spans) <= 2
        assert not any("Area of" in span or "Close the lid" in span for span in spans)
        answers |= {message["content"] for message in chat if message["role"] == "assistant"}
    assert {
        "Area of a rectangle in square units.",
        "width, height, unit",
        "area",
        "close",
        "def close(self):",
    } <= answers
    assert {len(chat) for chat in chats} == {2, 4}
    assert chats == [chat for i in range(40) for chat in chats_of(Document(f"{i}.py", SOURCE, "train"))]


def test_what_is_no_python_gives_no_chat():
    counts = Counter()
    assert not list(chats_of(Document("a.txt", SOURCE, "train"), counts))
    assert not list(chats_of(Document("a.py", "def f(:", "train"), counts))
    assert counts == {"unparseable": 1}


def test_choice_of_chats_does_not_depend_on_the_process(tmp_path):
    code = (
        "from lclm_jax.data.demo.function_chats import chats_of; from lclm_jax.data.prepare.corpus import Document;"
        f"print(list(chats_of(Document('a.py', {SOURCE!r}, 'train'))))"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert seen.strip() == str(list(chats_of(Document("a.py", SOURCE, "train"))))


def test_a_tokenizer_is_trained_on_documents_or_if_there_are_none_on_chats(tmp_path):
    (tmp_path / "a.txt").write_text("a document")
    said = [
        {"role": "user", "content": "<|memory_start|>old<|memory_end|>why?"},
        {"role": "assistant", "content": "so"},
    ]
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": said}) + "\n")
    chats = {"format": "jsonl", "paths": [str(tmp_path / "b.jsonl")], "records": "chat"}
    documents = {"format": "text", "paths": [str(tmp_path / "a.txt")]}

    def texts(**collections):
        config = CorpusConfig(collections=collections, validation_share=0, held_out_share=0)
        return list(read_tokenizer_texts(config, RejectCounter(), 2**30))

    assert texts(chats=chats, documents=documents) == ["a document"]
    assert texts(chats=chats) == ["old", "why?", "so"]
