"""What a prepared corpus holds, counted by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lclm_jax.cli.main import cli
from lclm_jax.config import dump_config, parse_config
from lclm_jax.data.inspect.stats import corpus_stats
from lclm_jax.data.inspect.validate import validate
from lclm_jax.data.prepare.corpus import split_of
from lclm_jax.data.prepare.run import prepare_corpus
from lclm_jax.data.store.shards import PreparedSplit
from lclm_jax.data.store.storage import Storage

SPLITS = ("train", "validation", "held_out")


def text(i):
    return "".join(f"Sentence {i} and {k} of a text. " for k in range(20 + i % 7))


@pytest.fixture(scope="module")
def prepared(run, tmp_path_factory):
    """A configuration over rows of which some are equal and some say their language."""
    values, tokenizers = run
    root = tmp_path_factory.mktemp("stats")
    rows = [{"id": f"r{i}", "text": text(i), "lang": ("en", "de", None)[i % 3]} for i in range(60)]
    rows += [{"id": f"again{i}", "text": text(5), "lang": "en"} for i in range(4)]
    rows += [{"id": "other", "text": text(5).replace("5", "6"), "lang": 7}]  # of equal lengths, but other text
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "no row\n")
    asked = [{"role": "assistant", "content": "So it is."}]
    chats = [{"messages": [{"role": "user", "content": f"Is {i} even?"}, *asked]} for i in (2, 2, 4)]
    (root / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    columns = {"id": "id", "language": "lang"}
    web = {"format": "jsonl", "paths": [str(root / "rows.jsonl")], "columns": columns}
    chat = {"format": "jsonl", "paths": [str(root / "chats.jsonl")], "records": "chat"}
    corpus = {"collections": {"web": web, "chat": chat}, "validation_share": 0.1, "held_out_share": 0.1}
    sources = {"a": values["data"]["sources"]["cpt"] | {"collection": "web"}}
    data = values["data"] | {"sources": sources, "prepared": str(root / "prepared")}
    stages = {"s": values["stages"]["mixed"] | {"mixture": {"a": 1}, "ratios": [4, 8]}}
    changed = {"name": "named", "corpus": corpus, "data": data, "stages": stages, "run_dir": str(root / "run")}
    config = parse_config(values | changed)
    prepare_corpus(config)
    return config, tokenizers, rows


def test_what_is_counted(prepared):
    config, tokenizers, rows = prepared
    stats = corpus_stats(config, tokenizers)
    tokens = {row["id"]: len(tokenizers.decoder.encode(row["text"], plain=True)) for row in rows}
    splits = {row["id"]: split_of(row["id"], config.corpus) for row in rows}
    for split in SPLITS:
        own = [row for row in rows if splits[row["id"]] == split]
        lengths, found = [tokens[row["id"]] for row in own], stats.of("web", split)
        assert (found.records, found.tokens) == (len(own), sum(lengths))
        assert found.percentiles()[50] == np.median(lengths)
        assert found.lengths.max() == max(lengths)
        said = {name: sum(tokens[row["id"]] for row in own if row["lang"] == name) for name in ("de", "en")}
        assert found.languages == {name: count for name, count in said.items() if count}
    assert stats.of("web").left_out == {"invalid_json": 1}
    order = sorted((splits[name] for name in ("r5", *(f"again{i}" for i in range(4)))), key=SPLITS.index)
    duplicates = stats.duplicates["web"]
    assert (duplicates.records, duplicates.tokens) == (4, 4 * tokens["r5"])
    assert duplicates.across_splits == sum(split != order[0] for split in order[1:])
    assert stats.duplicates["chat"].records == 1
    files = Path(config.data.prepared, "web").glob("train-*.array_record")
    assert stats.of("web").record_bytes == sum(path.stat().st_size for path in files)
    assert [(one.stage, one.ratio) for one in stats.fills] == [("s", 4), ("s", 8)]
    assert all(0.5 < one.decoder <= 1 for one in stats.fills)
    assert list(validate(Storage(config.data.prepared), tokenizers)) == []
    split = PreparedSplit(config.data.prepared, "web", "train")
    known = ["language" in record for record in split.read_many(range(len(split)))]
    assert any(known) and not all(known)


def test_the_command_prints_tables_and_writes_both_files(prepared, tmp_path):
    config, _, _ = prepared
    (tmp_path / "c.yaml").write_text(dump_config(config))
    page, values = tmp_path / "page.html", tmp_path / "stats.json"
    done = CliRunner().invoke(
        cli, ["data", "stats", str(tmp_path / "c.yaml"), "--html", str(page), "--json", str(values)]
    )
    assert done.exit_code == 0, done.output
    for shown in ("web/train", "a (of web)", "web: de", "web: not known", "s, N = 8", "web: invalid_json"):
        assert shown in done.output and shown in page.read_text()
    assert "data:image/png;base64" in page.read_text()
    stored = json.loads(values.read_text())
    assert stored["sources"]["a"]["train_tokens"] == stored["collections"]["web"]["train"]["tokens"]
    assert stored["duplicates"]["web"]["records"] == 4
    lengths = stored["collections"]["web"]["train"]["lengths"]
    assert lengths["p1"] <= lengths["p50"] <= lengths["p99"] <= lengths["max"]
