"""Shards do not depend on the day, the time zone, the locale or the order of hashes."""

import json
import os
import subprocess
import sys

from tests.data.prepare.test_prepare_part import SENTENCES, TOWER, reply, user

from lclm_jax.text.train_tokenizer import train_tokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ strftime_now('%A %d %B %Y %H:%M %Z') }} {{ m.content }}"
    "{{ m.more | tojson }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{{ strftime_now('%A %d %B %Y %H:%M %Z') }} {% endif %}"
)
PREPARE = """
import json, sys, time
time.time = lambda: float(sys.argv[2])
from lclm_jax.config import parse_config
from lclm_jax.data.prepare.run import prepare_corpus
prepare_corpus(parse_config(json.loads(sys.argv[1])))
"""


def test_equal_rows_give_equal_bytes_anywhere(tmp_path):
    folder = train_tokenizer(SENTENCES, 300, tmp_path / "tokenizer")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    more = {"more": {"b": [1, {"d": 2, "c": None}], "a": "é"}, "z": 1, "y": 2, "x": 3}
    rows = [{"messages": [user(f"q{i}") | more, reply(f"a{i}")]} for i in range(8)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.txt").write_text("".join(SENTENCES))

    def made(name, clock, **environment):
        values = {
            "name": "t",
            "corpus": {
                "collections": {
                    "sft": {"format": "jsonl", "paths": [str(tmp_path / "a.jsonl")], "records": "chat"},
                    "text": {"format": "text", "paths": [str(tmp_path / "b.txt")]},
                },
                "validation_share": 0,
                "held_out_share": 0,
            },
            "tokenizer": {"decoder": str(folder)},
            "model": {"encoder": TOWER, "decoder": TOWER, "ratio": 4, "window": 32},
            "data": {
                "prepared": str(tmp_path / name),
                "sources": {"sft": {"collection": "sft", "objective": "chat"}},
            },
            "stages": {"s": {"lr": {"adapter": 1e-3}, "steps": 1, "mixture": {"sft": 1}}},
        }
        command = [sys.executable, "-c", PREPARE, json.dumps(values), clock]
        known = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
        subprocess.run(command, env=known, check=True, timeout=120)
        return {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}

    first = made("one", "0", TZ="UTC", LC_ALL="C", PYTHONHASHSEED="1", HOME="/nonexistent")
    assert made("two", "2e9", TZ="Asia/Tokyo", LC_ALL="C.UTF-8", PYTHONHASHSEED="2", PYTHONUTF8="0") == first
    assert len(first) >= 6
