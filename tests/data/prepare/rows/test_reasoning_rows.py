"""Reasoning rows through a whole preparation: which are compressed, up to where, what is counted."""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.prepare.published_mixture import BASE, MESSAGES, reasoning, thoughts, write_mixture
from tests.data.prepare.test_chat_rows import TEMPLATE, lines
from tests.data.prepare.test_prepare_part import TOWER, reply, user

from lclm_jax.config import ConfigError, parse_config, result_values
from lclm_jax.config.corpus import CollectionConfig
from lclm_jax.data.prepare.rows.reasoning import chosen
from lclm_jax.data.prepare.rows.selection import without_values
from lclm_jax.data.prepare.run import prepare_corpus
from lclm_jax.data.store import PreparedSplit, column_text
from lclm_jax.data.store.records import chat_outline_of
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer

POLICY = {"share": 0.5, "keep_last": 16, "separators": ["Final Answer:"]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = train_tokenizer([thoughts(i) for i in range(40)], 400, tmp_path_factory.mktemp("rows") / "tokenizer")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return Tokenizer(folder)


def make_config(tokenizer, out, **collections):
    return parse_config(
        {
            "name": "t",
            "corpus": {
                "collections": {name: {"records": "chat", **one} for name, one in collections.items()},
                "validation_share": 0,
                "held_out_share": 0,
            },
            "tokenizer": {"decoder": str(tokenizer.folder)},
            "model": {"encoder": TOWER, "decoder": TOWER, "ratio": 4, "window": 32},
            "data": {"prepared": str(out), "sources": {"a": {"collection": min(collections), "objective": "chat"}}},
            "stages": {"s": {"lr": {"adapter": 1e-3}, "steps": 1, "mixture": {"a": 1}}},
        }
    )


def prepared(tokenizer, out, workers=1, **collections):
    """Collection -> (counts, name -> (text with loss, texts of the spans))."""
    manifest, found = prepare_corpus(make_config(tokenizer, out, **collections), workers=workers), {}
    for name in collections:
        split, shown = PreparedSplit(out, name, "train"), {}
        for record in split.read_many(range(len(split))):
            outline = chat_outline_of(record)
            trained = tokenizer.decode(outline.tokens[outline.loss > 0])
            shown[column_text(record["id"])] = trained, [tokenizer.decode(span) for span in outline.spans]
        found[name] = manifest["collections"][name]["train"]["counts"], shown
    return found


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    return write_mixture(tmp_path_factory.mktemp("mixture")) / "raw"


def test_the_published_kinds_of_rows(tokenizer, mixture, tmp_path):
    base = {"format": "parquet", "paths": [str(mixture / "base")], "train_on": "last_reply"}
    found = prepared(
        tokenizer,
        tmp_path,
        reasoning={**base, "where": {"sub_dataset": ["reasoning_data", "dolci_think"]}, "compress_reasoning": POLICY},
        rest={**base, "where": {"sub_dataset": ["wildchat", "chatqa_v1", "triviaqa_rc", "redpajama_arxiv"]}},
        native={"format": "parquet", "paths": [str(mixture / "native_agents")]},
        expanded={"format": "parquet", "paths": [str(mixture / "expanded_agents")]},
    )
    counts, rows = found["reasoning"]
    kinds = {name.removeprefix("reasoning_"): n for name, n in counts.items() if name.startswith("reasoning_")}
    assert kinds.pop("retagged") == 24
    assert sum(kinds.values()) == len(rows) == 48
    assert kinds == {"tags": 6, "separator": 8, "last_tokens": 8, "raw": 26}, "the draw never changes"
    assert counts["not_selected:sub_dataset=wildchat"] == 12
    assert sum(bool(spans) for _, spans in rows.values()) == 22
    for trained, spans in rows.values():
        assert len(spans) <= 1
        for span in spans:
            assert span.lstrip().startswith("Step 0 adds")
            assert span not in trained
            assert trained.startswith(("<think></think>\n\nThe sum", "Final Answer: ")) or "<think>" not in trained
            assert trained.endswith("<|im_end|>\n")

    counts, rows = found["rest"]
    assert len(rows) == 48
    assert all(len(spans) == 1 and spans[0].startswith("Chapter ") for _, spans in rows.values())

    counts, rows = found["native"]
    assert [spans for _, spans in rows.values()] == [[]] * 24, "no memory"
    assert '[ls {"path": "/3"}]<|im_end|>\nThere are two files in 3.<|im_end|>\n' in {text for text, _ in rows.values()}

    counts, rows = found["expanded"]
    for trained, spans in rows.values():
        assert trained == '[expand {"segment_id": "seg_3"}]<|im_end|>\nFINAL: sums<|im_end|>\n'
        assert len(spans) == 8
        assert spans[2].startswith("Record 3 of")


def test_the_same_rows_are_chosen_whatever_their_file_tags_and_workers(tokenizer, mixture, tmp_path):
    where = {"sub_dataset": ["reasoning_data", "dolci_think"]}
    one = {"format": "parquet", "where": where, "compress_reasoning": POLICY}
    ((_, first),) = prepared(tokenizer, tmp_path / "a", a={**one, "paths": [str(mixture / "base")]}).values()
    rows = [reasoning(i) for i in reversed(range(48))]
    for row in rows:
        row["target"] = row["target"].replace("<|memory_start|>", "").replace("<|memory_end|>", "")
    (tmp_path / "other").mkdir()
    for number in range(3):
        path = tmp_path / "other" / f"{number}.parquet"
        pq.write_table(pa.Table.from_pylist(rows[number::3], schema=BASE), path)
    moved = {**one, "paths": [str(tmp_path / "other")]}
    ((_, second),) = prepared(tokenizer, tmp_path / "b", workers=2, a=moved).values()
    assert sorted(first.values()) == sorted(second.values())


def test_the_share_is_kept_and_does_not_depend_on_the_split():
    names = [f"row {i}" for i in range(4000)]
    drawn = np.array([[chosen(name, share) for name in names] for share in (0, 0.25, 0.5, 1)])
    np.testing.assert_allclose(drawn.mean(axis=1), [0, 0.25, 0.5, 1], atol=0.02)
    assert (drawn[1] <= drawn[2]).all(), "a larger share keeps what a smaller one has"


def test_rows_without_a_part_to_compress_stay_raw(tokenizer, tmp_path):
    rows = [
        {"messages": [user("q"), reply("short")]},
        {"messages": [user("q"), reply("<think>\n</think>" + thoughts(1))]},
        {"messages": [user("q"), reply(thoughts(1)) | {"weight": 0}, user("r"), reply("b")]},
        {"messages": [user("q"), reply("a<|memory_start|>b")]},
        {"compression_prompt": [user("x <|memory_start|>y<|memory_end|> z")], "target": "NA_string_only"},
    ]
    everything = {"share": 1, "keep_last": 16}
    source = {"format": "jsonl", "paths": [str(lines(tmp_path, rows))], "compress_reasoning": everything}
    ((counts, shown),) = prepared(tokenizer, tmp_path / "out", a=source).values()
    assert counts == {"reasoning_whole": 3, "unbalanced_tags": 1}
    assert [spans for _, spans in shown.values()] == [[], [], [], ["y"]]


def test_values_that_no_collection_takes_are_named(tokenizer, tmp_path, caplog):
    rows = [{"sub_dataset": name, "messages": [user("q"), reply("a")]} for name in ("a", "b", "c", "c")]
    rows += [{"messages": [user("q"), reply("a")]}]
    path = str(lines(tmp_path, rows))
    with caplog.at_level(logging.WARNING):
        found = prepared(
            tokenizer,
            tmp_path / "out",
            a={"format": "jsonl", "paths": [path], "where": {"sub_dataset": ["a"]}},
            b={"format": "jsonl", "paths": [path], "where": {"sub_dataset": ["b"]}},
        )
    assert found["a"][0] == {
        "missing_column": 1,
        "not_selected:sub_dataset=b": 1,
        "not_selected:sub_dataset=c": 2,
    }
    assert without_values(found["a"][0]) == {"missing_column": 1, "not_selected": 3}, "in the log"
    assert [len(rows) for _, rows in found.values()] == [1, 1]
    said = [record.message for record in caplog.records if "none of them" in record.message]
    assert said == [
        "a, b: 2 rows with sub_dataset=c are in none of them; add the value to where of one, or another collection"
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"records": "documents", "compress_reasoning": {}}, "compress_reasoning is about the replies of chats"),
        ({"records": "documents", "train_on": "last_reply"}, "train_on is about the replies of chats"),
        ({"format": "text", "where": {"a": ["b"]}}, "where=.* asks for columns"),
        ({"where": {"a": []}}, "where.a has no value"),
        ({"compress_reasoning": {"separators": [""]}}, "empty text"),
        ({"compress_reasoning": {"share": 2}}, "share"),
    ],
)
def test_keys_without_a_meaning_are_refused(tokenizer, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_config(tokenizer, tmp_path, a={"format": "jsonl", "paths": ["x"], **changes})


def test_unset_keys_change_no_digest():
    values = result_values(CollectionConfig(format="jsonl", paths=("x",)))
    assert not {"where", "train_on", "compress_reasoning"} & set(values)


def test_prompts_of_the_published_rows_are_lists_or_json(tokenizer, tmp_path):
    assert BASE.field("prompt").type == MESSAGES
    row = reasoning(0)
    as_text = [{**row, "compression_prompt": str(row["compression_prompt"]).replace("'", '"')}]
    source = {"format": "jsonl", "paths": [str(lines(tmp_path, as_text))], "compress_reasoning": POLICY}
    ((_, shown),) = prepared(tokenizer, tmp_path / "out", a=source).values()
    assert len(shown) == 1
