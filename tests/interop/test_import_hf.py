"""Import: towers and complete models, memory tokens, rows, strictness, and the way back out, bit for bit."""

import json

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import tokenizers
from lclm_jax.cli.main import cli
from lclm_jax.config import BackboneConfig
from lclm_jax.errors import LclmError
from lclm_jax.interop import hub
from lclm_jax.interop.import_hf import ImportOptions, import_model
from lclm_jax.interop.load import load_hf
from lclm_jax.interop.memory_tokens import add_memory_tokens
from lclm_jax.interop.safetensors_io import CheckpointError, TensorFolder
from lclm_jax.text.memory_tags import MEMORY_TOKENS
from lclm_jax.text.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NUMPY = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


@pytest.fixture(scope="module")
def plain_tokenizer(tokenizer, tmp_path_factory):
    """The tokenizer without the memory tokens, as a released model has it."""
    folder = tmp_path_factory.mktemp("plain")
    values = json.loads((tokenizer / "tokenizer.json").read_text())
    values["added_tokens"] = [t for t in values["added_tokens"] if t["content"] not in MEMORY_TOKENS]
    (folder / "tokenizer.json").write_text(json.dumps(values))
    config = json.loads((tokenizer / "tokenizer_config.json").read_text()) | {"additional_special_tokens": []}
    listed = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in values["added_tokens"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": listed}))
    return folder


@pytest.fixture
def release(plain_tokenizer, tmp_path):
    """Save a tiny model as transformers does, with the plain tokenizer: ``release(kind, rows, dtype, **config)``."""

    def save(kind="Qwen3", rows=300, dtype="float32", **config):
        folder = tmp_path / f"{kind}-{dtype}"
        sizes = dict(vocab_size=rows, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
        sizes |= dict(head_dim=8, intermediate_size=40, tie_word_embeddings=True) | config
        torch.manual_seed(0)
        family = getattr(transformers, f"{kind}Config")(**sizes)
        model = getattr(transformers, f"{kind}ForCausalLM")(family).to(DTYPES[dtype])
        model.save_pretrained(folder, max_shard_size="20KB")
        for path in plain_tokenizer.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        return folder

    return save


def stored(folder):
    tensors = TensorFolder(folder)
    return {name: tensors.read(name) for name in tensors.shapes}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "tied"), [("Qwen3", True), ("Qwen3", False), ("Llama", True)])
def test_a_released_model_becomes_a_decoder(release, plain_tokenizer, tmp_path, kind, tied, dtype):
    # Two rows of padding: two of the memory tokens take them, the third grows the table.
    used = Tokenizer(plain_tokenizer).vocab_size
    source = release(kind, used + 2, dtype, tie_word_embeddings=tied)
    keys = import_model(source, tmp_path / "out", "decoder")
    before, after = stored(source), stored(tmp_path / "out")
    assert before.keys() == after.keys()
    ids = list(Tokenizer(tmp_path / "out").memory_ids)
    grown = ["model.embed_tokens.weight"] + ["lm_head.weight"] * (not tied)
    for name, array in before.items():
        assert after[name].dtype == NUMPY[dtype], name
        kept = [row for row in range(len(array)) if row not in ids] if name in grown else slice(None)
        assert after[name][kept].tobytes() == array[kept].tobytes(), name
    for name in grown:
        mean = before[name][:used].astype(np.float64).mean(axis=0).astype(np.float32).astype(NUMPY[dtype])
        for row in ids:
            np.testing.assert_array_equal(after[name][row], mean)
    backbone = BackboneConfig(**keys["model"]["decoder"])
    assert backbone.vocab_size == len(after["model.embed_tokens.weight"]) and backbone.tie_embeddings == tied
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(loaded).__name__ == f"{kind}ForCausalLM"
    text = "a few<|memory_start|>words<|memory_end|><|memory|>"
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs(text)["input_ids"] == Tokenizer(tmp_path / "out").encode(text).tolist()


def test_tables_grow_and_never_shrink(release, tmp_path, plain_tokenizer):
    used = Tokenizer(plain_tokenizer).vocab_size
    source = release(rows=used)
    for pad_to, rows in ((1, used + 3), (64, -(-(used + 3) // 64) * 64)):
        out = tmp_path / f"out{pad_to}"
        keys = import_model(source, out, "decoder", ImportOptions(pad_to=pad_to))
        table = stored(out)["model.embed_tokens.weight"]
        assert len(table) == rows == keys["model"]["decoder"]["vocab_size"]
        assert json.loads((out / "config.json").read_text())["vocab_size"] == rows
        before = stored(source)["model.embed_tokens.weight"]
        np.testing.assert_array_equal(table[:used], before)
        np.testing.assert_allclose(table[used:], np.tile(before.mean(axis=0), (rows - used, 1)), atol=1e-8)


def test_memory_rows_as_given(release, tmp_path, rng):
    rows = rng.normal(size=(3, 24)).astype(np.float32)
    save_file({"memory_rows": rows}, tmp_path / "rows.safetensors")
    options = ImportOptions(memory_rows=tmp_path / "rows.safetensors")
    import_model(release(tie_word_embeddings=False), tmp_path / "out", "decoder", options)
    after = stored(tmp_path / "out")
    ids = list(Tokenizer(tmp_path / "out").memory_ids)
    np.testing.assert_array_equal(after["model.embed_tokens.weight"][ids], rows)
    assert not np.array_equal(after["lm_head.weight"][ids], rows)
    save_file({"memory_rows": rows[:2]}, tmp_path / "rows.safetensors")
    with pytest.raises(LclmError, match=r"memory_rows has shape \(2, 24\), the table needs \(3, 24\)"):
        import_model(tmp_path / "Qwen3-float32", tmp_path / "out", "decoder", options)


def test_a_released_model_becomes_an_encoder(release, tmp_path):
    source = release("Llama", tie_word_embeddings=False)
    keys = import_model(source, tmp_path / "out", "encoder")
    before, after = stored(source), stored(tmp_path / "out")
    assert {f"model.{name}" for name in after} == before.keys() - {"lm_head.weight"}
    for name, array in after.items():
        assert array.tobytes() == before[f"model.{name}"].tobytes()
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert keys["init"] == {"encoder": str(tmp_path / "out")}
    loaded, info = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(loaded).__name__ == "LlamaModel" and not info["missing_keys"] and not info["unexpected_keys"]
    import_model(source, tmp_path / "out", "encoder", ImportOptions(memory_tokens=True))
    assert Tokenizer(tmp_path / "out").memory_ids


@pytest.mark.parametrize(
    ("dtype", "adapter", "pooling"), [("bfloat16", "attn_mlp", "mean"), ("float16", "mlp", "concat")]
)
def test_a_complete_model_comes_out_as_it_went_in(make_tiny, random_params, export, tmp_path, dtype, adapter, pooling):
    model = make_tiny(adapter, pooling, tie_embeddings=pooling == "mean")
    source = export(random_params(model, 0), model, tmp_path / "source", dtype=dtype, shard_bytes=20_000)
    run = CliRunner().invoke(cli, ["import", str(source), str(tmp_path / "in")], catch_exceptions=False)
    assert run.exit_code == 0
    assert load_hf(tmp_path / "in", compute_dtype="float32")[0] == model
    keys = yaml.safe_load((tmp_path / "in" / "lclm.yaml").read_text())
    assert keys["init"] == {"lclm": str(tmp_path / "in")} and keys["model"]["ratio"] == model.ratio
    out = ["export", str(tmp_path / "in"), str(tmp_path / "out"), "--dtype", dtype]
    assert CliRunner().invoke(cli, out, catch_exceptions=False).exit_code == 0
    for part in ("decoder", "encoder", "adapter"):
        first, last = stored(source / part), stored(tmp_path / "out" / part)
        assert first.keys() == last.keys()
        assert all(first[name].dtype == last[name].dtype for name in first)
        assert all(first[name].tobytes() == last[name].tobytes() for name in first)
    assert "None of these weights" in (tmp_path / "out" / "README.md").read_text()


def test_memory_tokens_move_no_other_token(plain_tokenizer, tmp_path):
    for path in plain_tokenizer.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "added_tokens.json").write_text("{}")
    added = add_memory_tokens(tmp_path)
    assert list(added) == list(MEMORY_TOKENS)
    before, after = (tokenizers.Tokenizer.from_file(str(p / "tokenizer.json")) for p in (plain_tokenizer, tmp_path))
    assert after.get_vocab() == before.get_vocab() | added
    listed = json.loads((tmp_path / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert {listed[str(index)]["content"] for index in added.values()} == set(MEMORY_TOKENS)
    assert json.loads((tmp_path / "added_tokens.json").read_text()) == added
    assert add_memory_tokens(tmp_path) == {}


def test_what_is_wrong_is_said(release, tmp_path):
    source = release()
    with pytest.raises(LclmError, match="say with --role"):
        import_model(source, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(LclmError, match="not an import"):
        import_model(source, tmp_path / "mine", "decoder")
    index = next(source.glob("*.index.json"))
    names = json.loads(index.read_text())["weight_map"]
    path = source / names["model.norm.weight"]
    tensors = load_file(path)
    save_file({("extra" if k == "model.norm.weight" else k): v for k, v in tensors.items()}, path)
    names["extra"] = names.pop("model.norm.weight")
    index.write_text(json.dumps({"weight_map": names}))
    with pytest.raises(CheckpointError, match=r"(?s)missing model.norm.weight \(24,\).*unexpected extra \(24,\)"):
        import_model(source, tmp_path / "out", "decoder")
    assert not (tmp_path / "out").exists()
    for path in source.glob("*.safetensors*"):
        path.unlink()
    (source / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"pickled weights \(pytorch_model\.bin\).*run any code"):
        import_model(source, tmp_path / "out", "decoder")


def test_quantized_tensors_are_refused(release, tmp_path):
    source = release()
    path = next(source.glob("*.safetensors"))
    save_file({name: array.astype(np.int8) for name, array in load_file(path).items()}, path)
    with pytest.raises(CheckpointError, match=r"stored as I8.*not quantized"):
        import_model(source, tmp_path / "out", "decoder")


def test_sources_are_folders_or_repositories(tmp_path, monkeypatch):
    assert hub.resolve_source(str(tmp_path)) == tmp_path
    with pytest.raises(LclmError, match="neither a folder nor a repository id"):
        hub.resolve_source(str(tmp_path / "no" / "such" / "folder"))
    asked = {}

    def snapshot(repository, revision, allow_patterns):
        asked.update(repository=repository, revision=revision, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    with pytest.raises(LclmError, match="repository owner/name has no safetensors; pickled weights are never"):
        hub.resolve_source("owner/name")
    (tmp_path / "model.safetensors").touch()
    assert hub.resolve_source("owner/name", "v1") == tmp_path
    assert asked["repository"] == "owner/name" and asked["revision"] == "v1"
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in asked["patterns"])

    def unreachable(*args, **options):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(LclmError, match=r"cannot be fetched \(no route to host\); name a local"):
        hub.resolve_source("owner/name")
