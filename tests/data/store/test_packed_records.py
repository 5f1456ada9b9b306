import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lclm_jax.data.store.columns import column_text
from lclm_jax.data.store.lengths import Lengths, LengthsBuilder
from lclm_jax.data.store.packed_records import pack, unpack
from lclm_jax.data.store.records import EXAMPLE_COLUMNS, document_columns, lengths_of
from lclm_jax.data.store.shards import decode_record, encode_record
from lclm_jax.data.store.storage import PreparedError, Storage
from lclm_jax.data.store.vocabulary import read_vocabulary, token_bytes, write_vocabulary
from lclm_jax.text.cuts import CutFinder
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer

TEXT = "def double(x):\n    return 2 * x\n\n\nIt was late. The harbour lay still; 東京 é, 🙂!\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([TEXT], 300, folder)
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def finder(tokenizer):
    return CutFinder(tokenizer)


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, column in wanted.items():
        assert found[name].dtype == column.dtype, name
        np.testing.assert_array_equal(found[name], column, err_msg=name)


@settings(deadline=None)
@given(st.text(min_size=1, max_size=80).map(lambda text: text.encode("utf-8", "ignore").decode()).filter(len))
def test_any_text_comes_back(tokenizer, finder, text):
    (tokens,) = finder.tokenize([text])
    columns = document_columns("a", text, tokens, None)
    for vocabulary in (None, token_bytes(tokenizer)):
        stored = pack(columns, vocabulary)
        same(unpack(decode_record(encode_record(stored)), vocabulary), columns)


@settings(deadline=None)
@given(st.lists(st.integers(0, 290), min_size=1, max_size=30), st.text(max_size=9), st.data())
def test_any_ids_come_back_beside_any_text(tokenizer, ids, text, data):
    """Also where the text is not what the tokens stand for."""
    text = text.encode("utf-8", "ignore").decode()
    inner = data.draw(st.sets(st.integers(1, len(ids)))) | {len(ids), 0}
    columns = {
        "text": np.frombuffer(text.encode(), np.uint8),
        "decoder_ids": np.array(ids, np.uint32),
        "cuts": np.array(sorted(inner), np.uint32),
        "cut_bytes": np.sort(np.array([data.draw(st.integers(0, 40)) for _ in inner], np.uint32)),
        "cut_kinds": np.array([data.draw(st.sampled_from([0, 1, 7])) for _ in inner], np.uint8),
    }
    same(unpack(pack(columns, token_bytes(tokenizer)), token_bytes(tokenizer)), columns)


def test_text_is_left_out_where_its_tokens_are_it(tokenizer, finder):
    (tokens,) = finder.tokenize([TEXT])
    stored = pack(document_columns("a", TEXT, tokens, None), token_bytes(tokenizer))
    assert set(stored) == {"id", "decoder_ids.varint", "cuts.bits", "cut_kinds.flags"}
    with pytest.raises(PreparedError, match=r"vocabulary\.safetensors is missing"):
        unpack(stored, None)
    assert set(unpack(stored, None, EXAMPLE_COLUMNS)) == {"decoder_ids", "cuts"}  # training needs no vocabulary
    with pytest.raises(PreparedError, match="update it"):
        unpack({"cuts.huffman": stored["cuts.bits"]}, None)


def test_a_vocabulary_is_stored_once(tokenizer, tmp_path):
    storage = Storage(tmp_path)
    assert read_vocabulary(storage) is None
    write_vocabulary(storage, token_bytes(tokenizer))
    found = read_vocabulary(storage)
    assert column_text(found.text(tokenizer.encode(TEXT, plain=True))) == TEXT
    (tmp_path / "vocabulary.safetensors").write_bytes(b"short")
    with pytest.raises(PreparedError, match="prepare the data again"):
        read_vocabulary(storage)


def test_token_bytes_are_for_byte_level_tokenizers_that_keep_text(tokenizer, tmp_path):
    def changed(name, **parts):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer.json) | parts))
        return token_bytes(Tokenizer(folder))

    assert changed("same") is not None
    assert changed("lower", normalizer={"type": "Lowercase"}) is None
    assert changed("other", decoder={"type": "Fuse"}) is None


@settings(deadline=None)
@given(st.data())
def test_lengths_of_any_records(tmp_path_factory, data):
    """Lists of chosen rows, of records that have cuts of the encoder and of others."""
    builder, wanted = LengthsBuilder("documents"), []
    for tokens in data.draw(st.lists(st.integers(2, 40), max_size=6)):
        inner = data.draw(st.sets(st.integers(1, tokens - 1)))
        cuts = np.array(sorted(inner | {0, tokens}), np.uint32)
        columns = {"decoder_ids": np.zeros(tokens, np.uint32), "cuts": cuts, "cut_kinds": (cuts % 3).astype(np.uint8)}
        if data.draw(st.booleans()):
            columns |= {"encoder_ids": np.zeros(2 * tokens, np.uint32), "encoder_cuts": 2 * cuts}
        builder.add(*lengths_of("documents", columns))
        wanted.append(columns)
    path = tmp_path_factory.mktemp("lengths") / "lengths.safetensors"
    save_file(builder.columns(), path)
    lengths = Lengths(path)
    sizes = [one["cuts"][-1] * (2 if "encoder_cuts" in one else 1) for one in wanted]
    assert lengths.numbers("encoder_tokens").tolist() == sizes
    rows = np.array(data.draw(st.lists(st.integers(0, len(wanted) - 1), max_size=8)) if wanted else [], np.int64)
    for name in ("cuts", "cut_kinds"):
        found = lengths.lists(name, rows)
        assert [found.list(i).tolist() for i in range(len(rows))] == [wanted[row][name].tolist() for row in rows]
    found = lengths.lists("encoder_cuts", rows)
    if not any("encoder_cuts" in one for one in wanted):
        assert found is None
    else:
        own = [wanted[row].get("encoder_cuts", wanted[row]["cuts"]).tolist() for row in rows]
        assert [found.list(i).tolist() for i in range(len(rows))] == own
