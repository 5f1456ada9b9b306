"""Public corpora in miniature: their columns as published, read by the configuration of the documentation."""

import gzip
import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from lclm_jax.config import CollectionConfig
from lclm_jax.data.prepare.corpus import list_collection, read_documents
from lclm_jax.data.prepare.reject_counter import RejectCounter

PAGE = Path(__file__).parents[3] / "docs/how-to/prepare-data.md"
TEXTS = ["One page.\nIt has two lines.\n", "Another page: é, 東京.\n"]


def parquet(*rows):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return sink.getvalue()


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def fineweb(text, i):
    return {
        "text": text,
        "id": f"<urn:uuid:{i}>",
        "dump": "CC-MAIN-2024-10",
        "url": f"https://example.org/{i}",
        "date": "2024-02-20T21:40:24Z",
        "file_path": "s3://commoncrawl/a.warc.gz",
        "language": "en",
        "language_score": 0.98,
        "token_count": 7,
    }


def the_stack(text, i):
    return {
        "hexsha": f"{i:040x}",
        "size": len(text),
        "ext": "py",
        "lang": "Python",
        "max_stars_repo_path": "a/b.py",
        "max_stars_repo_licenses": ["MIT", "Apache-2.0"],
        "max_stars_count": None,
        "content": text,
        "avg_line_length": 9.5,
    }


def dolma(text, i):
    times = {"added": "2023-04-11T09:57:03.044571+00:00", "created": "2020-01-17T12:48:45Z"}
    return {
        "id": f"doc{i}",
        "text": text,
        "source": "common-crawl",
        **times,
        "metadata": {"url": "https://example.org"},
    }


def redpajama(text, i):
    meta = {"timestamp": "2014-09", "url": f"https://example.org/{i}", "language": "en"}
    return {"text": text, "meta": json.dumps(meta) if i else meta, "red_pajama_subset": "arxiv"}


FILES = {
    "fineweb": {"data/000_00000.parquet": parquet(*map(fineweb, TEXTS, range(2)))},
    "the_stack": {"data/python/data-00000-of-00001.parquet": parquet(*map(the_stack, TEXTS, range(2)))},
    "dolma": {"cc_en_head-0000.json.gz": gzip.compress(lines(*map(dolma, TEXTS, range(2))))},
    "redpajama": {
        "arxiv_0.jsonl": lines(redpajama(TEXTS[0], 0)),
        "c4/c4_1.jsonl.zst": zstd(lines(redpajama(TEXTS[1], 1))),
    },
}
IDS = {
    "fineweb": ["<urn:uuid:0>", "<urn:uuid:1>"],
    "the_stack": [f"{i:040x}" for i in range(2)],
    "dolma": ["doc0", "doc1"],
    "redpajama": ["arxiv_0.jsonl:0", "c4/c4_1.jsonl.zst:0"],
}


def documented():
    """The collections of the section on text corpora."""
    section = PAGE.read_text().split("## Text corpora", 1)[1].split("\n## ", 1)[0]
    return yaml.safe_load(re.search(r"```yaml\n(.*?)```", section, re.S).group(1))["corpus"]["collections"]


@pytest.mark.parametrize("name", FILES)
def test_the_documented_configuration_reads_the_corpus(tmp_path, name):
    values = documented()[name]
    for path, content in FILES[name].items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    collection = CollectionConfig(**values | {"paths": (str(tmp_path),)})
    counter = RejectCounter(strict=True)
    config = type("Shares", (), {"held_out_share": 0.0, "validation_share": 0.0})
    found = list(read_documents(list_collection(collection, 10**9), collection, config, counter))
    assert [document.text for document in found] == TEXTS
    assert [document.id for document in found] == IDS[name]
    assert not counter.counts
