import json
import os
import shutil

import numpy as np
import pytest
from tests.data.helpers import assert_checksums

from lclm_jax.config import parse_config
from lclm_jax.data.prepare import prepare_part as part_maker
from lclm_jax.data.prepare.file_versions import changed_since
from lclm_jax.data.prepare.reject_counter import BadRow
from lclm_jax.data.prepare.run import finish, make_parts, plan_preparation, prepare_corpus, prepare_data
from lclm_jax.data.store import shard_writer
from lclm_jax.data.store.columns import column_text
from lclm_jax.data.store.records import chat_outline_of
from lclm_jax.data.store.shards import PreparedError, PreparedSplit, lengths_name, read_manifest
from lclm_jax.data.store.storage import Storage
from lclm_jax.errors import LclmError
from lclm_jax.text.example import DocumentTokens, chat_outline
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer

TOWER = dict(vocab_size=512, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_size=32)
FUNCTION = '''def area{i}(width, height):
    """Area of rectangle number {i}."""
    product = width * height  # {i}
    return product


'''


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(24):
        (folder / f"file{i:02d}.py").write_text("".join(FUNCTION.format(i=10 * i + k) for k in range(4)))
    (folder / "tags.py").write_text(FUNCTION.format(i=1) + "SPECIAL = '<|im_end|><|memory|>'\n")
    (folder / "short.txt").write_text("x")
    return folder


@pytest.fixture(scope="session")
def tokenizers(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    texts = [path.read_text() for path in sorted(corpus.iterdir())]
    return train_tokenizer(texts, 300, folder / "a"), train_tokenizer(texts[:3], 280, folder / "b")


def make_config(corpus, tokenizers, encoder=False, **data):
    sources = {
        "cpt": {"collection": "documents", "objective": "cpt"},
        "chat": {"collection": "chat", "objective": "chat"},
    }
    return parse_config(
        {
            "name": "t",
            "corpus": {"kind": "folder", "path": str(corpus), "validation_share": 0.2, "held_out_share": 0.2},
            "tokenizer": {"decoder": str(tokenizers[0]), "encoder": str(tokenizers[1]) if encoder else None},
            "model": {"encoder": TOWER, "decoder": TOWER, "ratio": 4, "window": 32},
            "data": {"sources": sources, "shard_bytes": 2000, **data},
            "stages": {"s": {"lr": {"adapter": 1e-3}, "steps": 1, "mixture": {"cpt": 1}}},
        }
    )


def snapshot(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_prepared_records(corpus, tokenizers, tmp_path):
    seen = []
    manifest = prepare_corpus(make_config(corpus, tokenizers), tmp_path, lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert seen == sorted(seen)
    tokenizer = Tokenizer(tokenizers[0])
    documents = manifest["collections"]["documents"]
    assert sum(split["records"] for split in documents.values()) == 25
    assert sum(split["counts"].get("too_short", 0) for split in documents.values()) == 1
    assert len(documents["train"]["shards"]) > 1
    names = set()
    for split in documents:
        reader = PreparedSplit(tmp_path, "documents", split)
        assert_checksums(reader)
        assert len(reader) == documents[split]["records"]
        assert int(reader.column("decoder_tokens").sum()) == documents[split]["decoder_tokens"]
        cuts = reader.lists("cuts", np.arange(len(reader)))
        assert reader.lists("encoder_cuts", np.arange(len(reader))) is None
        for i, record in enumerate(reader.read_many(range(len(reader)))):
            text = column_text(record["text"])
            names.add(column_text(record["id"]))
            np.testing.assert_array_equal(record["decoder_ids"], tokenizer.encode(text, plain=True))
            assert not np.isin(record["decoder_ids"], list(tokenizer.special_tokens.values())).any()
            np.testing.assert_array_equal(record["cuts"], cuts.list(i))
            first, last = len(record["cuts"]) // 3, len(record["cuts"]) // 2
            piece = bytes(record["text"][record["cut_bytes"][first] : record["cut_bytes"][last]]).decode()
            ids = record["decoder_ids"][record["cuts"][first] : record["cuts"][last]]
            np.testing.assert_array_equal(ids, tokenizer.encode(piece, plain=True))
    assert len(names) == 25


def test_chat_records_hold_the_tokenized_chat(corpus, tokenizers, tmp_path):
    manifest = prepare_corpus(make_config(corpus, tokenizers, encoder=True), tmp_path)
    decoder, encoder = Tokenizer(tokenizers[0]), Tokenizer(tokenizers[1])
    assert sum(split["counts"].get("special_token", 0) for split in manifest["collections"]["chat"].values()) == 1
    reader = PreparedSplit(tmp_path, "chat", "train")
    for i in range(0, len(reader), 7):
        record = reader.read(i)
        stored = chat_outline_of(record)
        made = chat_outline(json.loads(column_text(record["messages"])), decoder, encoder, replies="all")
        for name in ("tokens", "loss", "gaps"):
            np.testing.assert_array_equal(getattr(stored, name), getattr(made, name))
        assert [span.tolist() for span in stored.spans] == [span.tolist() for span in made.spans]
        assert reader.lists("span_tokens", np.array([i])).values.tolist() == [len(span) for span in made.spans]
        assert reader.column("decoder_tokens")[i] == len(made.tokens)
        assert made.loss.sum() > 0


def test_two_tokenizers_share_their_cuts(corpus, tokenizers, tmp_path):
    prepare_corpus(make_config(corpus, tokenizers, encoder=True), tmp_path)
    decoder, encoder = Tokenizer(tokenizers[0]), Tokenizer(tokenizers[1])
    reader = PreparedSplit(tmp_path, "documents", "train")
    for record in reader.read_many([3, 0]):
        document = DocumentTokens.from_record(record)
        assert len(document.decoder_cuts) == len(document.encoder_cuts) == len(record["cut_bytes"])
        for k in range(0, len(document.decoder_cuts) - 5, 11):
            piece = bytes(record["text"][record["cut_bytes"][k] : record["cut_bytes"][k + 5]]).decode()
            for ids, cuts, tokenizer in (
                (document.decoder_ids, document.decoder_cuts, decoder),
                (document.encoder_ids, document.encoder_cuts, encoder),
            ):
                np.testing.assert_array_equal(ids[cuts[k] : cuts[k + 5]], tokenizer.encode(piece, plain=True))


class Killed(BaseException):
    pass


def test_same_bytes_again_and_after_an_interruption(corpus, tokenizers, tmp_path, monkeypatch):
    config = make_config(corpus, tokenizers)
    whole = prepare_corpus(config, tmp_path / "a")
    names = []

    class Interrupted(shard_writer.ShardWriter):
        def add(self, columns):
            super().add(columns)
            if len(names) == 3:
                raise Killed  # in the middle of the fourth shard

        def finish(self):
            names.append(self._name)
            return super().finish()

    with monkeypatch.context() as patch:
        patch.setattr(part_maker, "ShardWriter", Interrupted)
        with pytest.raises(Killed):
            prepare_corpus(config, tmp_path / "b")
    kept = (tmp_path / "b" / names[0]).stat().st_mtime_ns
    (tmp_path / "b/documents/train-00000-of-00099.array_record").write_text("of other settings")
    assert prepare_corpus(config, tmp_path / "b") == whole
    assert (tmp_path / "b" / names[0]).stat().st_mtime_ns == kept
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    assert prepare_corpus(config, tmp_path / "b") == whole


def test_a_folder_of_another_chat_template_is_refused(corpus, tokenizers, tmp_path):
    folder = tmp_path / "tokenizer"
    shutil.copytree(tokenizers[0], folder)
    config = make_config(corpus, (folder, *tokenizers[1:]))
    prepare_corpus(config, tmp_path / "out")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{# printed otherwise #}")
    with pytest.raises(PreparedError, match=r"other settings; delete it or set data.prepared"):
        prepare_corpus(config, tmp_path / "out")


def test_folder_of_other_settings_is_refused(corpus, tokenizers, tmp_path):
    prepare_corpus(make_config(corpus, tokenizers), tmp_path)
    with pytest.raises(PreparedError, match=r"other settings; delete it or set data.prepared"):
        prepare_corpus(make_config(corpus, tokenizers, shard_bytes=999), tmp_path)


def test_damage_names_the_shard(corpus, tokenizers, tmp_path):
    prepare_corpus(make_config(corpus, tokenizers), tmp_path)
    shard = tmp_path / read_manifest(tmp_path)["collections"]["documents"]["train"]["shards"][1]["file"]
    original = shard.read_bytes()
    shard.write_bytes(original[:200] + bytes(800) + original[1000:])
    reader = PreparedSplit(tmp_path, "documents", "train")
    with pytest.raises(PreparedError, match=shard.name):
        reader.read_many(range(len(reader)))
    shard.unlink()
    assert prepare_corpus(make_config(corpus, tokenizers), tmp_path) == read_manifest(tmp_path)
    assert shard.read_bytes() == original
    lengths = tmp_path / lengths_name(str(shard.relative_to(tmp_path)))
    lengths.write_bytes(lengths.read_bytes()[:-4] + bytes(4))
    with pytest.raises(PreparedError, match=f"{lengths.name} is damaged.*delete it and prepare the data again"):
        PreparedSplit(tmp_path, "documents", "train").lists("cuts", np.arange(len(reader)))
    shard.unlink()
    with pytest.raises(PreparedError, match="is missing"):
        PreparedSplit(tmp_path, "documents", "train").read_many(range(len(reader)))
    with pytest.raises(PreparedError, match="holds no documents/test"):
        PreparedSplit(tmp_path, "documents", "test")
    with pytest.raises(PreparedError, match="lclm data prepare"):
        PreparedSplit(tmp_path / "none", "documents", "train")


def test_tokenizer_without_memory_tokens_and_useless_corpus(corpus, tokenizers, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(tokenizers[0], bare)
    text = (bare / "tokenizer.json").read_text().replace("<|memory", "<|other")
    (bare / "tokenizer.json").write_text(text)
    with pytest.raises(LclmError, match=r"lacks <\|memory_start\|>"):
        prepare_corpus(make_config(corpus, (bare, bare)), tmp_path / "out")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.txt").write_text("x")
    with pytest.raises(PreparedError, match=r"no document of the training split.*left out: nothing\)"):
        prepare_corpus(make_config(tmp_path / "c", tokenizers), tmp_path / "out2")


def test_disk_that_refuses_is_a_clear_error(corpus, tokenizers, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_writer, "save_file", full)
    with pytest.raises(PreparedError, match=r"No space left.*free some space"):
        prepare_corpus(make_config(corpus, tokenizers), tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def replace_text(path, old, new):
    """As an editor does it: the size stays, and so may the time."""
    about = path.stat()
    path.write_text(path.read_text().replace(old, new))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.fixture
def own_corpus(corpus, tmp_path):
    """A few of the files, to be changed."""
    (tmp_path / "raw").mkdir()
    for number in range(8):
        shutil.copy2(corpus / f"file{number:02d}.py", tmp_path / "raw")
    return tmp_path / "raw"


def test_a_changed_file_of_equal_size_is_refused_by_name(own_corpus, tokenizers, tmp_path):
    config, out = make_config(own_corpus, tokenizers, prepared=str(tmp_path / "out")), tmp_path / "out"
    manifest = prepare_corpus(config)
    before = snapshot(out)
    os.utime(own_corpus / "file03.py")  # only touched
    assert prepare_corpus(config) == manifest
    assert changed_since(config, Storage(out)) == []
    replace_text(own_corpus / "file03.py", "width", "WIDTH")
    with pytest.raises(PreparedError, match=r"file03.py: changed since .*out was prepared.*new folder, or delete it"):
        prepare_corpus(config)
    assert changed_since(config, Storage(out)) == [
        f"{name}: file03.py has changed since it was prepared" for name in ("documents", "chat")
    ]
    (own_corpus / "new.py").write_text("x = 1")
    assert "documents: new.py is new" in changed_since(config, Storage(out))
    assert {name: content for name, content in snapshot(out).items() if "sources" not in str(name)} == {
        name: content for name, content in before.items() if "sources" not in str(name)
    }
    shutil.rmtree(own_corpus)
    assert changed_since(config, Storage(out)) == []


def test_a_file_that_changes_before_the_end_is_read_again(own_corpus, tokenizers, tmp_path):
    config, out = make_config(own_corpus, tokenizers), tmp_path / "out"
    plan = plan_preparation(config, out)
    make_parts(plan, plan.parts)
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.array_record")}
    replace_text(own_corpus / "file03.py", "width", "WIDTH")
    with pytest.raises(PreparedError, match=r"file03.py changed while they were prepared; prepare again"):
        finish(plan)
    prepare_corpus(config, out)
    texts = [text for split in ("train", "validation", "held_out") for text in texts_of(out, split)]
    assert sum("WIDTH" in text for text in texts) == 1
    assert sum(path.stat().st_mtime_ns == time for path, time in kept.items()) > len(kept) // 2


def texts_of(out, split):
    return [column_text(record["text"]) for record in records(PreparedSplit(out, "documents", split))]


def records(split):
    return split.read_many(range(len(split)))


def test_what_an_older_version_prepared_is_not_refused(own_corpus, tokenizers, tmp_path):
    config, out = make_config(own_corpus, tokenizers), tmp_path / "out"
    manifest = prepare_corpus(config, out)
    del manifest["files_left_out"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    for path in out.rglob("*.json"):
        if path.name.endswith(".sources.json"):
            path.unlink()
        elif path.name != "manifest.json":
            report = json.loads(path.read_text())
            del report["files"]
            path.write_text(json.dumps(report))
    os.utime(own_corpus / "file03.py")
    assert prepare_corpus(config, out) == manifest
    assert changed_since(config, Storage(out)) == []


def test_files_that_cannot_be_used_are_named(own_corpus, tokenizers, tmp_path, caplog):
    (own_corpus / "broken.py").symlink_to("nowhere")
    (own_corpus / "wide.py").write_text("x = 1\n", encoding="utf-16")
    config = make_config(own_corpus, tokenizers, prepared=str(tmp_path / "out"), shard_bytes=10**6)
    with caplog.at_level("WARNING", "lclm_jax"):
        manifest = prepare_data(config, workers=1)
    named = {file["file"]: file["reason"] for file in manifest["files_left_out"]["documents"]}
    assert named == {"broken.py": "unreadable", "wide.py": "undecodable"}
    assert read_manifest(tmp_path / "out") == manifest
    assert "documents: wide.py is left out, or its end: undecodable (it is UTF-16; convert it" in caplog.text
    with pytest.raises(BadRow, match=r"(broken|wide).py: un"):
        prepare_corpus(config, tmp_path / "strict", strict=True)


def test_an_empty_split_is_said(own_corpus, tokenizers, tmp_path, caplog):
    config = make_config(own_corpus, tokenizers)
    config = config.model_copy(update={"corpus": config.corpus.model_copy(update={"held_out_share": 1e-9})})
    with caplog.at_level("WARNING", "lclm_jax"):
        prepare_corpus(config, tmp_path / "out")
    assert "of its 8 records falls into held_out" in caplog.text


def test_rows_of_one_name_are_said(tokenizers, tmp_path, caplog):
    rows = [{"text": FUNCTION.format(i=i), "id": "same"} for i in range(9)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = make_config(tmp_path, tokenizers).model_dump(mode="json")
    one = {"format": "jsonl", "paths": [str(tmp_path / "a.jsonl")], "columns": {"id": "id"}}
    values["corpus"] = {"collections": {"documents": one}, "held_out_share": 0.0, "validation_share": 0.0}
    del values["data"]["sources"]["chat"]
    with caplog.at_level("WARNING", "lclm_jax"):
        prepare_corpus(parse_config(values), tmp_path / "out")
    assert "documents: all 9 records have the same name, 'same', and so the same split" in caplog.text


def test_another_corpus_names_the_files_that_changed(own_corpus, tokenizers, tmp_path):
    config = make_config(own_corpus, tokenizers)
    prepare_corpus(config, tmp_path / "out")
    with (own_corpus / "file03.py").open("a") as file:
        file.write("x = 1\n")
    with pytest.raises(PreparedError, match=r"another corpus.*documents: file03.py has changed since"):
        prepare_corpus(config, tmp_path / "out")


@pytest.mark.parametrize("call", ["write", "close"])
def test_a_full_disk_leaves_nothing_and_is_said(own_corpus, tokenizers, tmp_path, monkeypatch, call):
    class Full:
        def __init__(self, path, options):
            self.path = path

        def write(self, data):
            if call == "write":
                raise RuntimeError("No space left on device [errno 28]; writing a chunk at file.cc:1")

        def close(self):
            raise RuntimeError("No space left on device [errno 28]; closing")

    config = make_config(own_corpus, tokenizers)
    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "ArrayRecordWriter", Full)
        with pytest.raises(PreparedError, match=r"cannot write .*array_record: No space left on device.*; free some"):
            prepare_corpus(config, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert prepare_corpus(config, tmp_path / "out")["collections"]["documents"]["train"]["records"]


def test_a_split_without_records_is_empty_columns(corpus, tokenizers, tmp_path):
    config = make_config(corpus, tokenizers)
    shares = config.corpus.model_copy(update={"held_out_share": 0.0, "validation_share": 0.0})
    manifest = prepare_corpus(config.model_copy(update={"corpus": shares}), tmp_path)
    for collection in ("documents", "chat"):
        assert manifest["collections"][collection]["held_out"]["decoder_tokens"] == 0
        assert PreparedSplit(tmp_path, collection, "held_out").column("decoder_tokens").size == 0


def test_unknown_collections_and_small_tables_are_refused_before_the_work(corpus, tokenizers, tmp_path):
    config = make_config(corpus, tokenizers)
    small = config.model.model_copy(update={"encoder": config.model.encoder.model_copy(update={"vocab_size": 200})})
    with pytest.raises(LclmError, match=r"model.encoder.vocab_size=200 is below the \d+ ids of its tokenizer"):
        prepare_corpus(config.model_copy(update={"model": small}), tmp_path)
    source = config.data.sources["chat"].model_copy(update={"collection": "chats"})
    data = config.data.model_copy(update={"sources": {"chat": source}})
    with pytest.raises(LclmError, match=r"data.sources.chat.collection='chats' .* did you mean 'chat'"):
        prepare_corpus(config.model_copy(update={"data": data}), tmp_path)
