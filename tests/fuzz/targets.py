"""What is fuzzed: each target takes one drawn input, and fails on anything but a result or an ``LclmError``.

Where a target gives a result, it is compared with the input: no text may come back changed.
"""

import bz2
import gzip
import io
import json
import lzma
import shutil
import tarfile
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from safetensors.numpy import save_file
from tests.fuzz.damage import TEXTS, damaged_bytes, damaged_tree

from lclm_jax.config import parse_config
from lclm_jax.data.prepare.run import prepare_corpus
from lclm_jax.data.store import PreparedSplit, column_text
from lclm_jax.errors import LclmError
from lclm_jax.interop.import_hf import ImportOptions, import_model
from lclm_jax.text.cuts import CutFinder
from lclm_jax.text.memory_tags import MEMORY_TOKENS
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer
from lclm_jax.train.checkpoints.lazy_checkpoint import LazyCheckpoint

PROSE = (
    "It rained all day; the river rose. Nobody went out.\nAt 7 they lit the lamps — 東京, é, 🙂.\n\n"
    "def f(x):\n    return x\n"
)
TOWER = dict(vocab_size=512, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_size=32)
OLD_RUN = Path(__file__).parents[1] / "fixtures" / "run-0.1.tar.gz"
_ENDING = {"jsonl": "jsonl", "parquet": "parquet", "text": "txt"}
_COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


class Targets:
    """The targets, and what they share: made once, in a temporary folder."""

    def __init__(self, home: Path):
        self._home = home
        train_tokenizer([PROSE], 300, home / "tokenizer")
        self._tokenizer = Tokenizer(home / "tokenizer")

    @cached_property
    def all(self) -> dict[str, Callable[[DataObject], None]]:
        """Name -> target."""
        named = (self.texts, self.rows, self.damaged_files, self.chats, self.tokenizers)
        return {one.__name__: one for one in (*named, self.configurations, self.models, self.checkpoints)}

    def texts(self, data: DataObject) -> None:
        """Any text, as JSON lines, Parquet or files, compressed or not: it comes back as it was, with its own ids."""
        texts = data.draw(st.lists(TEXTS, min_size=1, max_size=5))
        kind = data.draw(st.sampled_from(["jsonl", "parquet", "text"]))
        with self._folder() as folder:
            if kind == "text":
                for i, text in enumerate(texts):
                    _write(folder / "raw" / f"{i}.txt", text.encode("utf-8", "surrogatepass"))
            else:
                whole = [text.encode("utf-8", "replace").decode() for text in texts]
                ending = data.draw(st.sampled_from(list(_COMPRESS))) if kind == "jsonl" else ""
                content = _table(whole) if kind == "parquet" else _COMPRESS[ending](_lines(texts))
                _write(folder / "raw" / f"a.{kind}", content)
                texts = whole if kind == "parquet" else texts
            self._prepare(folder, kind, set(texts))

    def rows(self, data: DataObject) -> None:
        """Rows of a wrong shape among good ones: counted, and the good ones are used."""
        rows = [damaged_tree(data, {"id": str(i), "text": f"{PROSE} {i}", "more": {"a": [1]}}) for i in range(3)]
        with self._folder() as folder:
            _write(
                folder / "raw" / "a.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows) + _lines([PROSE])
            )
            found = self._prepare(folder, "jsonl", None)
            assert found is not None and PROSE.strip() in {text.strip() for text in found}

    def damaged_files(self, data: DataObject) -> None:
        """A damaged file beside a sound one: the sound one is used whatever becomes of the other."""
        kind = data.draw(st.sampled_from(["jsonl", "parquet", "text"]))
        ending = data.draw(st.sampled_from(list(_COMPRESS))) if kind == "jsonl" else ""
        content = {"jsonl": _lines, "parquet": _table, "text": lambda texts: texts[0].encode()}[kind](
            [PROSE, PROSE * 3]
        )
        with self._folder() as folder:
            _write(folder / "raw" / f"a.{_ENDING[kind]}", damaged_bytes(data, _COMPRESS[ending](content)))
            sound = _table([PROSE]) if kind == "parquet" else PROSE.encode() if kind == "text" else _lines([PROSE])
            _write(folder / "raw" / f"b.{_ENDING[kind]}", sound)
            found = self._prepare(folder, kind, None)
            assert found is not None and PROSE.strip() in {text.strip() for text in found}

    def chats(self, data: DataObject) -> None:
        """Chats of any shape: no text of theirs becomes a special token."""
        good = {
            "messages": [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"}],
            "tools": [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}],
        }
        chats = [damaged_tree(data, good) for _ in range(2)] + [good]
        with self._folder() as folder:
            lines = [json.dumps(chat) for chat in chats]
            _write(folder / "raw" / "a.jsonl", "".join(f"{line}\n" for line in lines).encode())
            self._prepare(folder, "jsonl", None, records="chat")
            start, end = (self._tokenizer.token_id(one) for one in ("<|im_start|>", "<|im_end|>"))
            split = PreparedSplit(folder / "out", "c", "train")
            for record in split.read_many(range(len(split))):
                messages = json.loads(column_text(record["messages"]))
                assert (record["tokens"] == start).sum() == (record["tokens"] == end).sum() == len(messages)

    def tokenizers(self, data: DataObject) -> None:
        """A damaged ``tokenizer.json``: refused, or every text is cut where it tells."""
        settings = json.loads(self._tokenizer.json)
        with self._folder() as folder:
            if data.draw(st.booleans()):
                content = json.dumps(damaged_tree(data, settings)).encode()
            else:
                content = damaged_bytes(data, self._tokenizer.json)
            _write(folder / "tokenizer" / "tokenizer.json", content)
            for name in ("tokenizer_config.json", "chat_template.jinja"):
                shutil.copy(self._tokenizer.folder / name, folder / "tokenizer" / name)
            with suppress(LclmError):
                tokenizer = Tokenizer(folder / "tokenizer")
                finder = CutFinder(tokenizer)
                (found,) = finder.tokenize([PROSE])
                assert found.cuts[0] == 0 and found.cuts[-1] == len(found.ids)
                assert np.array_equal(found.ids, tokenizer.encode(PROSE, plain=True))

    def configurations(self, data: DataObject) -> None:
        """A damaged configuration: refused by key, or loaded."""
        with suppress(LclmError):
            parse_config(damaged_tree(data, self._config(self._home, "jsonl", "documents").model_dump(mode="json")))

    def models(self, data: DataObject) -> None:
        """A damaged folder of a foreign model: refused, or loaded as what it says."""
        with self._folder() as folder:
            source = folder / "source"
            shutil.copytree(self._release, source)
            path = source / data.draw(st.sampled_from([one.name for one in sorted(self._release.iterdir())]))
            if path.suffix == ".json" and data.draw(st.booleans()):
                path.write_text(json.dumps(damaged_tree(data, json.loads(path.read_text()))))
            else:
                path.write_bytes(damaged_bytes(data, path.read_bytes()))
            with suppress(LclmError):
                import_model(source, folder / "out", "decoder", ImportOptions())

    def checkpoints(self, data: DataObject) -> None:
        """Damaged metadata of a checkpoint: refused, or its parameters are read."""
        with self._folder() as folder:
            shutil.copytree(self._checkpoint, folder / "5")
            names = ["params/_METADATA", "params/_sharding", "_CHECKPOINT_METADATA", "manifest.json", "meta/metadata"]
            path = folder / "5" / data.draw(st.sampled_from(names))
            if data.draw(st.booleans()):
                path.write_text(json.dumps(damaged_tree(data, json.loads(path.read_text()))))
            else:
                path.write_bytes(damaged_bytes(data, path.read_bytes()))
            with suppress(LclmError):
                leaves = LazyCheckpoint(folder / "5")
                for name in leaves.shapes:
                    leaves.read(name)

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self._home) as folder:
            yield Path(folder)

    @cached_property
    def _checkpoint(self) -> Path:
        with tarfile.open(OLD_RUN) as archive:
            archive.extractall(self._home / "old", filter="data")
        return self._home / "old/runs/run/stages/only/checkpoints/5"

    @cached_property
    def _release(self) -> Path:
        """A Llama folder with a tokenizer that lacks the memory tokens."""
        folder = self._home / "release"
        folder.mkdir()
        rng, block = np.random.default_rng(0), "model.layers.0."
        shapes = {"model.embed_tokens": (300, 16), "model.norm": (16,), f"{block}self_attn.q_proj": (16, 16)}
        shapes |= {f"{block}self_attn.{name}_proj": (8, 16) for name in "kv"} | {f"{block}self_attn.o_proj": (16, 16)}
        shapes |= {f"{block}mlp.{name}_proj": (24, 16) for name in ("gate", "up")} | {f"{block}mlp.down_proj": (16, 24)}
        shapes |= {f"{block}{name}_layernorm": (16,) for name in ("input", "post_attention")}
        tensors = {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        save_file(tensors, folder / "model.safetensors")
        config = dict(model_type="llama", vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        config |= dict(num_key_value_heads=1, head_dim=8, intermediate_size=24, max_position_embeddings=64)
        config |= dict(tie_word_embeddings=True, bos_token_id=1, eos_token_id=[2, 7], rope_theta=10000.0)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7], "temperature": 0.6}))
        settings = json.loads(self._tokenizer.json)
        settings["added_tokens"] = [one for one in settings["added_tokens"] if one["content"] not in MEMORY_TOKENS]
        (folder / "tokenizer.json").write_text(json.dumps(settings))
        names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
        (folder / "tokenizer_config.json").write_text(json.dumps(names))
        return folder

    def _config(self, folder: Path, kind: str, records: str):
        source = {"collection": "c", "objective": "cpt" if records == "documents" else "chat"}
        collection = {"format": kind, "paths": [str(folder / "raw")], "records": records}
        return parse_config(
            {
                "name": "fuzz",
                "run_dir": str(folder / "run"),
                "corpus": {"collections": {"c": collection}, "validation_share": 0, "held_out_share": 0},
                "tokenizer": {"decoder": str(self._home / "tokenizer")},
                "model": {"encoder": TOWER, "decoder": TOWER, "ratio": 4, "window": 16},
                "data": {"prepared": str(folder / "out"), "sources": {"s": source}},
                "stages": {"only": {"lr": {"adapter": 1e-3}, "steps": 1, "mixture": {"s": 1}}},
            }
        )

    def _prepare(self, folder: Path, kind: str, raw: set[str] | None, records: str = "documents") -> list[str] | None:
        """The texts that are prepared, after a look at their ids, which must be among ``raw``; None: there are none."""
        try:
            prepare_corpus(self._config(folder, kind, records))
        except LclmError:
            assert raw is None or not any(map(self._is_usable, raw))
            return None
        if records != "documents":
            return []
        split, found = PreparedSplit(folder / "out", "c", "train"), []
        known = None if raw is None else [_plain(one) for one in raw]
        for record in split.read_many(range(len(split))):
            text = column_text(record["text"])
            assert np.array_equal(record["decoder_ids"], self._tokenizer.encode(text, plain=True))
            # Blank lines and a byte order mark before a text are left out, and nothing else.
            before = [] if known is None else [one[: -len(text)] for one in known if one.endswith(text)]
            assert known is None or any(not one.replace("\ufeff", "").strip() for one in before), text
            found.append(text)
        return found

    def _is_usable(self, text: str) -> bool:
        """Whether nothing speaks against a text: it has tokens to learn, no half characters and no zero bytes."""
        whole = text == text.encode("utf-8", "replace").decode() and "\0" not in text
        return whole and len(self._tokenizer.encode(_plain(text).strip().strip("\ufeff"), plain=True)) > 1


def _plain(text: str) -> str:
    """A text as it is prepared: in Unicode's form C."""
    return unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _lines(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def _table(texts: list[str]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), sink)
    return sink.getvalue()
