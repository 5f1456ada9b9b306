import io
import json
import pydoc_data.topics

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from lclm_jax.errors import LclmError
from lclm_jax.interop.memory_tokens import add_memory_tokens, copy_tokenizer, plan_rows
from lclm_jax.text.chunked_encoding import ChunkedEncoder
from lclm_jax.text.cuts import CutFinder
from lclm_jax.text.memory_tags import MEMORY_TOKENS
from lclm_jax.text.sentencepiece import read_sentencepiece
from lclm_jax.text.tokenizer import Tokenizer

LINES = "\n".join(list(pydoc_data.topics.topics.values())[:20]).split("\n")
LLAMA = dict(
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    split_digits=True,
    allow_whitespace_only_pieces=True,
    user_defined_symbols=["<tool>"],
)
KINDS = {"unigram": {}, "bpe": dict(model_type="bpe"), "llama": dict(model_type="bpe") | LLAMA, "plain": LLAMA}
PIECES = st.sampled_from(
    [" ", "  ", "\n", "\n\n", "\t", "\u00a0", "a", "foo", "The", "é", "東", "12", ".", "<s>", "    x"]
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, options in KINDS.items():
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LINES), model_writer=out, vocab_size=420, minloglevel=2, **options
        )
        (root / name).mkdir()
        (root / name / "tokenizer.model").write_bytes(out.getvalue())
    return root


@pytest.fixture(params=KINDS)
def folder(request, models):
    return models / request.param


def original(folder):
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((folder / "tokenizer.model").read_bytes())
    proto.normalizer_spec.add_dummy_prefix = False
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())


def test_ids_and_text_are_those_of_sentencepiece(folder):
    tokenizer, theirs = Tokenizer(folder), original(folder)
    for line in LINES[::7]:
        if line.strip():
            ids, starts, ends = tokenizer.encode_with_offsets(line.strip())
            expected = theirs.encode(line.strip())
            assert ids.tolist() == expected or sum(map(theirs.get_score, ids.tolist())) == pytest.approx(
                sum(map(theirs.get_score, expected))
            )
            assert starts[0] == 0
            assert ends[-1] == len(line.strip())
            ids = np.array(expected)
            assert tokenizer.decode(ids).replace("<unk>", " ⁇ ") == theirs.decode(ids.tolist())


def test_special_and_memory_tokens(folder):
    tokenizer, size = Tokenizer(folder), original(folder).vocab_size()
    assert list(tokenizer.memory_ids) == [size, size + 1, size + 2]
    assert tokenizer.vocab_size == size + 3
    assert tokenizer.plain_vocab_size == size
    assert tokenizer.eos_id == original(folder).eos_id()
    assert tokenizer.encode("</s>").tolist() == [tokenizer.eos_id]
    assert tokenizer.eos_id not in tokenizer.encode("x </s>", plain=True)
    assert Tokenizer(folder / "tokenizer.model").digest == tokenizer.digest
    with pytest.raises(LclmError, match="has no chat template"):
        tokenizer.render_chat([])


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES, min_size=2, max_size=14), st.data())
def test_slices_at_cuts_are_what_tokenizing_them_gives(models, pieces, data):
    for name in KINDS:
        finder, text = CutFinder(Tokenizer(models / name)), "".join(pieces)
        found = finder.tokenize([text])[0]
        first = data.draw(st.integers(0, len(found.cuts) - 1))
        last = data.draw(st.integers(first, len(found.cuts) - 1))
        assert finder.is_stable(text, found, first, last), (name, text, first, last)


def test_chunks_give_what_the_whole_text_gives(folder, monkeypatch):
    encoder, text = ChunkedEncoder(Tokenizer(folder), 60), "\n".join(LINES[:40])
    whole, seen, encode = ChunkedEncoder(Tokenizer(folder), len(text))([text])[0], [], encoder._encode
    monkeypatch.setattr(encoder, "_encode", lambda texts: (seen.extend(texts), encode(texts))[1])
    assert all(np.array_equal(*pair) for pair in zip(encoder([text])[0], whole, strict=True))
    assert text not in seen and len(seen) > 20


def test_documents_have_many_cuts(folder):
    found = CutFinder(Tokenizer(folder)).tokenize(["\n".join(LINES[:40])])[0]
    assert len(found.cuts) > len(found.ids) / 8


def test_added_tokens_and_import(models, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.model").write_bytes((models / "llama" / "tokenizer.model").read_bytes())
    (source / "added_tokens.json").write_text(json.dumps({"<pad>": 420}))
    (source / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>"}))
    assert Tokenizer(source).pad_id == 420
    assert Tokenizer(source).memory_ids.start == 421
    out = tmp_path / "out"
    out.mkdir()
    copy_tokenizer(source, out, memory_tokens=False)
    assert list(add_memory_tokens(out)) == list(MEMORY_TOKENS)
    assert plan_rows(source, out, 421).fresh == {421, 422, 423}
    np.testing.assert_array_equal(Tokenizer(out).encode("a <pad> b"), Tokenizer(source).encode("a <pad> b"))
    (source / "added_tokens.json").write_text(json.dumps({"<pad>": 500}))
    with pytest.raises(LclmError, match=r"gives '<pad>' the id 500, but the model gives it 420"):
        Tokenizer(source)


def test_what_is_no_model_is_an_error(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(LclmError, match="is not a SentencePiece model"):
        read_sentencepiece(tmp_path / "tokenizer.model")
    with pytest.raises(LclmError, match=r"tokenizer.json or a SentencePiece"):
        Tokenizer(tmp_path / "none")
