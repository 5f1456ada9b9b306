"""Foreign folders: files that disagree, vocabularies with holes, and checkpoints of the older layout."""

import json
import shutil

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from tests.exporting import export_model

import tokenizers
from lclm_jax.cli.main import cli
from lclm_jax.errors import LclmError
from lclm_jax.interop.foreign import older_layout, reread
from lclm_jax.interop.import_hf import ImportOptions, import_model
from lclm_jax.interop.load import load_hf
from lclm_jax.interop.memory_tokens import NewRows
from lclm_jax.interop.model_card import write_card
from lclm_jax.interop.safetensors_io import CheckpointError, TensorFolder
from lclm_jax.text.memory_tags import MEMORY_TOKENS
from lclm_jax.text.tokenizer import Tokenizer

CONFIG = dict(
    model_type="llama", vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, intermediate_size=24, max_position_embeddings=64, tie_word_embeddings=True,
    bos_token_id=1, eos_token_id=[2, 7],
)  # fmt: skip


def write(path, **changes):
    values = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(values | changes))


@pytest.fixture
def release(tokenizer, tmp_path):
    """A Llama folder made by hand, its tokenizer without the memory tokens."""
    folder = tmp_path / "release"
    folder.mkdir()
    rng = np.random.default_rng(0)
    shapes = dict(embed_tokens=(300, 16), norm=(16,))
    block = {"self_attn.q_proj": (16, 16), "self_attn.k_proj": (8, 16), "self_attn.v_proj": (8, 16)}
    block |= {"self_attn.o_proj": (16, 16), "mlp.gate_proj": (24, 16), "mlp.up_proj": (24, 16)}
    block |= {"mlp.down_proj": (16, 24), "input_layernorm": (16,), "post_attention_layernorm": (16,)}
    shapes |= {f"layers.0.{name}": shape for name, shape in block.items()}
    arrays = {f"model.{n}.weight": rng.normal(size=shape).astype(np.float32) for n, shape in shapes.items()}
    save_file(arrays, folder / "model.safetensors")
    write(folder / "config.json", **CONFIG)
    values = json.loads((tokenizer / "tokenizer.json").read_text())
    values["added_tokens"] = [t for t in values["added_tokens"] if t["content"] not in MEMORY_TOKENS]
    (folder / "tokenizer.json").write_text(json.dumps(values))
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    write(folder / "tokenizer_config.json", **names)
    shutil.copyfile(tokenizer / "chat_template.jinja", folder / "chat_template.jinja")
    return folder


def test_stops_of_the_configuration_are_kept(release, tmp_path):
    import_model(release, tmp_path / "out", "decoder")
    assert {2, 7} <= Tokenizer(tmp_path / "out").stop_ids
    write(release / "generation_config.json", eos_token_id=[5], temperature=0.6, do_sample=True)
    import_model(release, tmp_path / "out", "decoder")
    assert 5 in Tokenizer(tmp_path / "out").stop_ids and 7 not in Tokenizer(tmp_path / "out").stop_ids
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 0.6


def test_a_vocabulary_with_holes(release, tmp_path):
    path = release / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary, merges = values["model"]["vocab"], values["model"]["merges"]
    top = max(vocabulary.values())
    gone = next(t for t, i in vocabulary.items() if i == top - 6)
    del vocabulary[gone]
    parts = [m if isinstance(m, list) else m.split(" ") for m in merges]
    values["model"]["merges"] = [m for m, p in zip(merges, parts, strict=True) if "".join(p) != gone and gone not in p]
    vocabulary |= {token["content"]: token["id"] for token in values["added_tokens"]}
    path.write_text(json.dumps(values))
    import_model(release, tmp_path / "out", "decoder")
    before, after = Tokenizer(release, memory_tokens=False), Tokenizer(tmp_path / "out")
    ids, old = after.memory_ids, before.backend().get_vocab()
    assert len({*ids, *old.values()}) == 3 + len(old)
    assert all(after.token_id(token) == index for token, index in old.items())
    assert [after.encode(token).tolist() for token in MEMORY_TOKENS] == [[index] for index in ids]
    table = load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"]
    kept = [row for row in range(300) if row not in ids]
    stored = load_file(release / "model.safetensors")["model.embed_tokens.weight"]
    np.testing.assert_array_equal(table[kept], stored[kept])


def test_bos_and_stops_survive_an_export(release, make_tiny, random_params, tmp_path):
    built = tokenizers.Tokenizer.from_file(str(release / "tokenizer.json"))
    built.add_special_tokens(["<|bos|>", "<|eot|>"])
    bos, end = built.token_to_id("<|bos|>"), built.token_to_id("<|eot|>")
    built.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", bos)]
    )
    built.save(str(release / "tokenizer.json"))
    write(release / "tokenizer_config.json", bos_token="<|bos|>")
    write(release / "generation_config.json", eos_token_id=[2, 7])
    (release / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}<|eot|>{% endfor %}")
    import_model(release, tmp_path / "in", "decoder")
    tokenizer = Tokenizer(tmp_path / "in")
    model = make_tiny().model_copy(update={"memory_token_ids": tuple(tokenizer.memory_ids)})
    folders = dict(decoder_tokenizer=tmp_path / "in", encoder_tokenizer=tmp_path / "in")
    export_model(random_params(model, 0), model, tmp_path / "out", **folders)
    out = tmp_path / "out" / "decoder"
    written, config = (json.loads((out / f"{name}.json").read_text()) for name in ("generation_config", "config"))
    stops = sorted({2, 7, end, tokenizer.eos_id, tokenizer.pad_id})
    assert (written["eos_token_id"], written["bos_token_id"], config["bos_token_id"]) == (stops, bos, bos)
    again = Tokenizer(out)
    assert (again.bos_id, sorted(again.stop_ids)) == (bos, stops)
    write_card(tmp_path / "out", model, "float32", "merge", "a test", None)
    card = (tmp_path / "out" / "README.md").read_text()
    assert rf"| a text begins with | `<\|bos\|>` ({bos}) |" in card and rf"`<\|eot\|>` ({end})" in card


FILES = [
    ("generation_config.json", dict(suppress_tokens=[3]), r"suppress_tokens=\[3\] is not supported"),
    ("generation_config.json", dict(stop_strings=["###"]), r"stop_strings=\['###'\] is not supported"),
    ("generation_config.json", dict(odd_setting=1), "odd_setting=1 is not a setting of generation"),
    ("generation_config.json", dict(eos_token_id=[2, 400]), r"eos_token_id=\[2, 400\] is not a list of ids below"),
    ("tokenizer_config.json", dict(split_special_tokens=True), "split_special_tokens=True is not supported"),
    ("tokenizer_config.json", dict(auto_map={"AutoTokenizer": ["x", None]}), "auto_map=.*is not supported"),
    ("tokenizer_config.json", dict(lower="yes"), "lower='yes' is not a setting of a tokenizer"),
    ("tokenizer_config.json", dict(pad_token="[PAD]"), r"pad_token='\[PAD\]' is not in tokenizer.json"),
    ("tokenizer_config.json", dict(added_tokens_decoder={"9": {"content": "<|im_end|>"}}), "'<|im_end|>' has id 9, in"),
    ("added_tokens.json", {"<new>": 290}, "'<new>' has id 290, in tokenizer.json None"),
    ("special_tokens_map.json", dict(odd=[1]), r"odd=\[1\] is not a setting"),
    ("config.json", dict(num_hidden_layers=10**12), "has 11 tensors, and its configuration says 1000000000000 layers"),
    ("config.json", dict(rope_scaling={"type": "ntk"}), "'ntk' is not supported; supported are default"),
    ("model.safetensors.index.json", dict(weight_map={"model.norm.weight": 7}), "file of model.norm.weight is 7"),
    ("model.safetensors.index.json", dict(weight_map={"a": "../x.safetensors"}), "not a file of that folder"),
    ("model.safetensors.index.json", dict(weight_map={"a": "model.safetensors"}), "disagree about"),
]


@pytest.mark.parametrize(("name", "change", "message"), FILES)
def test_files_are_understood_or_refused(release, tmp_path, name, change, message):
    write(release / name, **change)
    with pytest.raises(CheckpointError, match=f"(?s){message.replace('|', '[|]')}"):
        import_model(release, tmp_path / "out", "decoder")
    assert not (tmp_path / "out").exists()


def test_damaged_weights_are_refused_by_name(release, tmp_path):
    path, whole = release / "model.safetensors", load_file(release / "model.safetensors")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        import_model(release, tmp_path / "out", "decoder")
    name = "model.norm.weight"
    for array, message in ((whole[name].astype(np.float64), "stored as F64"), (whole[name][:8], "has shape"),
                           (np.full(16, np.nan, np.float32), "NaN")):  # fmt: skip
        save_file(whole | {name: array}, path)
        with pytest.raises(CheckpointError, match=rf"(?s){name.replace('.', '[.]')}.*{message}|{message}.*{name}"):
            import_model(release, tmp_path / "out", "decoder")
    save_file(whole, path)
    save_file({name: whole[name]}, release / "more.safetensors")
    with pytest.raises(CheckpointError, match=f"tensor {name} is in both"):
        import_model(release, tmp_path / "out", "decoder")


def test_what_was_written_is_read_again(release, tmp_path, monkeypatch):
    blocks = NewRows.blocks

    def torn(self, source, tensor):
        for block in blocks(self, source, tensor):
            block[5] = 0
            yield block

    with monkeypatch.context() as patched:
        patched.setattr(NewRows, "blocks", torn)
        with pytest.raises(CheckpointError, match=r"row 5 of model\.embed_tokens\.weight is not what was imported"):
            import_model(release, tmp_path / "out", "decoder")
    import_model(release, tmp_path / "out", "decoder")
    out = tmp_path / "out"
    values = json.loads((out / "tokenizer.json").read_text())
    swapped = dict(values["model"]["vocab"])
    a, b = list(swapped)[:2]
    swapped[a], swapped[b] = swapped[b], swapped[a]
    (out / "tokenizer.json").write_text(json.dumps(values | {"model": values["model"] | {"vocab": swapped}}))
    with pytest.raises(CheckpointError, match=r"has id 0, in the source 1|has id 1, in the source 0"):
        reread.check_tokenizer(release, out)
    (out / "tokenizer.json").write_text(json.dumps(values))
    write(out / "tokenizer_config.json", pad_token="<|im_end|>")
    with pytest.raises(CheckpointError, match=r"pad_token='<\|im_end\|>', in the source '<\|endoftext\|>'"):
        reread.check_tokenizer(release, out)


OLDER = dict(
    pooling_token="summary_mean", chunk_size=4, batch_summary_tokens=8, embed_mask_type="causal", overlap_tokens=0,
    use_adapter_attention=False,
)  # fmt: skip


@pytest.fixture
def older(make_tiny, random_params, export, tmp_path):
    """``older(settings, name)``: an LCLM as the older public checkpoints lie."""
    made = export(random_params(make_tiny(), 0), make_tiny(), tmp_path / "made")

    def lay(settings, name="release/stage2-hf"):
        folder = tmp_path / name
        for ours, theirs in {"decoder": "llm", "encoder": "embedder", "adapter": "projectors"}.items():
            shutil.copytree(made / ours, folder / theirs, dirs_exist_ok=True)
        (folder / "projectors" / "adapter.safetensors").rename(folder / "projectors" / "code_adapter.safetensors")
        if settings is not None:
            (folder / "model_config.json").write_text(json.dumps(settings))
        return folder

    return lay


def test_an_older_checkpoint_is_imported(older, make_tiny, random_params, tmp_path):
    source = older(OLDER | {"llm_model_name": "Qwen/Qwen3-4B-Instruct-2507"})
    done = CliRunner().invoke(cli, ["import", str(source), str(tmp_path / "in")], catch_exceptions=False)
    assert done.exit_code == 0 and yaml.safe_load((tmp_path / "in" / "lclm.yaml").read_text())["model"]["window"] == 8
    model, params = load_hf(tmp_path / "in", compute_dtype="float32")
    assert model == make_tiny()
    expected = random_params(model, 0)
    np.testing.assert_array_equal(params["adapter"]["fc2"]["kernel"], expected["adapter"]["fc2"]["kernel"])
    for part, folder in (("decoder", "llm"), ("encoder", "embedder"), ("adapter", "projectors")):
        old, new = TensorFolder(source / folder), TensorFolder(tmp_path / "in" / part)
        assert {n: old.read(n).tobytes() for n in old.shapes} == {n: new.read(n).tobytes() for n in new.shapes}


def test_what_an_older_checkpoint_does_not_say_is_asked_for(older, tmp_path):
    source = older(None, "Qwen3-Embedding-0.6B-Qwen3-4B-cs4-summary_mean-bst8-mlp-ov0/stage2-hf")
    with pytest.raises(CheckpointError, match="says its encoder_mask_type; say it with --mask"):
        import_model(source, tmp_path / "in")
    keys = import_model(source, tmp_path / "in", options=ImportOptions(compression={"mask": "causal"}))
    assert (keys["model"]["ratio"], keys["model"]["window"], keys["model"]["pooling"]) == (4, 8, "mean")
    with pytest.raises(CheckpointError, match="says encoder_window_size=8, --window says 16"):
        import_model(source, tmp_path / "in", options=ImportOptions(compression={"mask": "causal", "window": 16}))
    other = older_layout.translated(source, "owner/lclm_chunk_size16_summary-concat_bst1024-attn_mlp-ov256-causal@v1",
                                    {"adapter_layers": 2})  # fmt: skip
    assert list(other.values()) == [16, 1024, "concat", "causal", 256, "attn_mlp", 2]
    for change, message in (
        ({"pooling_token": "mean"}, "the meaning of pooling_token='mean' is not known.*--pooling"),
        ({"chunk_size": None}, "says its compression_ratio; say it with --ratio"),
        ({"chunk_size": "4"}, "meaning of chunk_size='4'"),
        ({"use_adapter_attention": True}, "says its adapter_type; say it with --adapter"),
        ({"use_adapter_attention": True, "adapter_order": "attention_mlp"}, "say it with --adapter-layers"),
        ({"encoder_positions": "rotary"}, "encoder_positions='rotary' is not a setting of an older LCLM"),
    ):
        with pytest.raises(CheckpointError, match=message):
            import_model(older(OLDER | change, "plain"), tmp_path / "in")
        shutil.rmtree(tmp_path / "plain")
    with pytest.raises(LclmError, match="window: only told of a checkpoint in the older layout"):
        import_model(tmp_path / "made", tmp_path / "in", options=ImportOptions(compression={"window": 8}))
    (source / "projectors" / "code_adapter.safetensors").rename(source / "projectors" / "code_adapter.pt")
    with pytest.raises(CheckpointError, match=r"pickled weights \(code_adapter\.pt\)"):
        import_model(source, tmp_path / "in", options=ImportOptions(compression={"mask": "causal"}))
