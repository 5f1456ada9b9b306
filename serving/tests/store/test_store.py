"""The store gives back what was put in, or nothing."""

import logging
import sqlite3
import time

import ml_dtypes
import numpy as np
import pytest

from lclm_store import Document, LatentStore, StoreError, space, text_digest, window_key

SPACE = space("f" * 64, "bfloat16")


def vectors(seed, rows=3, width=8):
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def keys(count):
    return [window_key(SPACE, np.arange(5) + number) for number in range(count)]


@pytest.fixture
def store(tmp_path):
    with LatentStore(tmp_path / "latents.db") as opened:
        yield opened


def test_vectors_come_back_and_others_are_misses(store):
    first, second, third = keys(3)
    assert store.put_many([(first, vectors(1)), (second, vectors(2, rows=1))], "float32") == 2
    found = store.get_many([second, third, first, second])
    np.testing.assert_array_equal(found[0], vectors(2, rows=1))
    assert found[1] is None
    np.testing.assert_array_equal(found[2], vectors(1))
    np.testing.assert_array_equal(found[3], found[0])
    assert store.contains_many([third, first]) == [False, True]
    stat = store.stat()
    assert (stat.entries, stat.bytes, stat.hits, stat.misses) == (2, 4 * 8 * 4, 3, 1)


def test_codes_round_as_they_say(store):
    array = np.concatenate([vectors(0, 40, 16) * 1e3, np.zeros((1, 16), np.float32), vectors(1, 2, 16) * 1e-6])
    for code in ("float32", "bfloat16", "int8"):
        store.put_many([(code, array)], code)
    exact, half, byte = store.get_many(["float32", "bfloat16", "int8"])
    np.testing.assert_array_equal(exact, array)
    np.testing.assert_array_equal(half, array.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert (np.abs(byte - array) <= np.abs(array).max(1, keepdims=True) / 254 * 1.0001).all()
    assert store.stat().bytes == array.size * (4 + 2 + 1) + 4 * len(array)


def test_a_second_put_replaces_the_first_and_totals_stay_right(store):
    (key,) = keys(1)
    store.put_many([(key, vectors(1))])
    store.put_many([(key, vectors(2, rows=5))], "float32")
    np.testing.assert_array_equal(store.get_many([key])[0], vectors(2, rows=5))
    assert (store.stat().entries, store.stat().bytes) == (1, 5 * 8 * 4)


def test_least_recently_used_entries_go_first(tmp_path):
    size = vectors(0).size * 2
    first, second, third, fourth = keys(4)
    with LatentStore(tmp_path / "s", max_bytes=3 * size) as store:
        for key in (first, second, third):
            store.put_many([(key, vectors(0))])
            time.sleep(0.002)
        store.get_many([first])
        store.put_many([(fourth, vectors(0))])
        assert store.contains_many([first, second, third, fourth]) == [True, False, False, True]
        assert store.stat().dropped == 2  # down to a share of the limit
    with LatentStore(tmp_path / "s", max_bytes=size) as store:
        assert store.gc(compact=True) == 1
        assert store.contains_many([first, fourth]) == [False, True]


def test_old_entries_are_misses_and_are_collected(tmp_path):
    (key,) = keys(1)
    with LatentStore(tmp_path / "s") as store:
        store.put_many([(key, vectors(0))])
    time.sleep(0.02)
    with LatentStore(tmp_path / "s", ttl_seconds=0.01) as store:
        assert store.get_many([key]) == [None]
        assert store.contains_many([key]) == [False]
        assert store.stat().expired == 1
        assert store.gc() == 1
        assert store.stat().entries == 0


def test_what_cannot_be_kept_is_refused(store):
    with pytest.raises(StoreError, match="not finite"):
        store.put_many([("k", np.array([[np.nan]], np.float32))])
    with pytest.raises(StoreError, match=r"shape \(3,\)"):
        store.put_many([("k", np.zeros(3, np.float32))])
    with pytest.raises(StoreError, match="float16"):
        store.put_many([("k", vectors(0))], "float16")
    with pytest.raises(StoreError, match="max_bytes=0"):
        LatentStore(store.path, max_bytes=0)
    with pytest.raises(StoreError, match="fingerprint"):
        space("", "int8")


def test_keys_tell_models_codes_and_contexts_apart():
    ids = np.arange(6)
    made = {
        window_key(SPACE, ids),
        window_key(SPACE, ids[:5]),
        window_key(SPACE, ids, skip=2),
        window_key(SPACE, ids, count=4),
        window_key(space("e" * 64, "bfloat16"), ids),
        window_key(space("f" * 64, "int8"), ids),
        window_key(SPACE, ids, ratio=2),
        window_key(SPACE, ids, ratio=3),
    }
    assert len(made) == 8
    assert window_key(SPACE, ids) == window_key(SPACE, ids.astype(np.int64), 0, 6)


def test_export_and_import_carry_the_same_bytes(store, tmp_path):
    from safetensors.numpy import load_file

    first, second = keys(2)
    store.put_many([(first, vectors(1)), ("int8", vectors(3))], "int8")
    store.put_many([(second, vectors(2))])
    assert store.export(tmp_path / "all.safetensors") == 3
    assert store.export(tmp_path / "one.safetensors", [second, "missing"]) == 1
    assert load_file(tmp_path / "one.safetensors")[second].shape == (3 * 8 * 2,)
    with LatentStore(tmp_path / "other") as other:
        assert other.import_(tmp_path / "all.safetensors") == 3
        for ours, theirs in zip(store.get_many([first, second]), other.get_many([first, second]), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        whole = (tmp_path / "all.safetensors").read_bytes()
        (tmp_path / "cut.safetensors").write_bytes(whole[:-5])
        for name in ("cut.safetensors", "latents.db", "missing"):
            with pytest.raises(StoreError, match=name):
                other.import_(tmp_path / name)
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob("*.data"))


def test_documents_are_kept_by_text_and_encoder(store):
    made = Document(text_digest("ab"), SPACE, "notes.txt", tuple(keys(2)), ((0, 1), (1, 2)))
    store.put_document(made)
    store.put_document(Document(text_digest("c"), "pooled/int8/e", "c", ("pooled/int8/e/x",), ((0, 1),)))
    assert store.document(text_digest("ab"), SPACE) == made
    assert store.document(text_digest("ab"), "pooled/int8/e") is None
    assert [document.title for document in store.documents()] == ["notes.txt", "c"]
    assert list(store.documents(SPACE)) == [made]
    assert store.stat().documents == 2


def test_a_read_only_store_answers_and_writes_nothing(store, tmp_path):
    first, second = keys(2)
    with pytest.raises(StoreError, match="no store"):
        LatentStore(tmp_path / "missing", read_only=True)
    store.put_many([(first, vectors(1))], "float32")
    with LatentStore(store.path, read_only=True) as reader:
        np.testing.assert_array_equal(reader.get_many([first])[0], vectors(1))
        assert reader.put_many([(second, vectors(2))]) == 0
        assert reader.stat().failed_writes == 1
    assert store.contains_many([second]) == [False]
    # A copy on a medium that cannot be written: no side files, and none can be made.
    store.gc()
    copy = tmp_path / "medium" / "copy.db"
    copy.parent.mkdir()
    copy.write_bytes(store.path.read_bytes())
    with LatentStore(copy, read_only=True) as reader:
        np.testing.assert_array_equal(reader.get_many([first])[0], vectors(1))


def test_another_file_is_not_taken_for_a_store(tmp_path):
    text, database = tmp_path / "notes.txt", tmp_path / "other.db"
    text.write_text("not a database at all, but a text that is longer than one header\n" * 20)
    with sqlite3.connect(database) as other:
        other.execute("CREATE TABLE mine(a)")
    for path in (text, database):
        before = path.read_bytes()
        with pytest.raises(StoreError, match=path.name):
            LatentStore(path)
        assert path.read_bytes() == before
    with pytest.raises(StoreError, match="no folder"):
        LatentStore(tmp_path / "no" / "store")


def test_one_warning_for_many_failures(store, caplog):
    with caplog.at_level(logging.WARNING, "lclm_store"):
        store._database.close()
        for number in range(3):
            assert store.get_many([f"{number}"]) == [None]
            assert store.put_many([("k", vectors(0))]) in (0, 1)  # opened again after the first failure
    assert len(caplog.records) == 1
    assert store.put_many([("k", vectors(0))]) == 1
