"""The files at the top of an export, by which transformers and vLLM load it."""

import json
import shutil
from pathlib import Path

import pytest
from tests.golden.paths import CHECKPOINTS

from lclm_jax.interop import engine_config
from lclm_jax.interop.engine_config import COPIED, write_engine_files
from lclm_jax.interop.runs import export_folder
from lclm_jax.text.tokenizer import Tokenizer


def top(folder):
    return json.loads((folder / "config.json").read_text())


def test_an_export_has_one_config_for_both_towers(make_tiny, random_params, export, tmp_path):
    model = make_tiny("attn_mlp")
    out = export(random_params(model, 0), model, tmp_path / "out")
    values = top(out)
    for part, key in (("decoder", "text_config"), ("encoder", "encoder_config")):
        assert values[key] == json.loads((out / part / "config.json").read_text())
    assert (values["model_type"], values["adapter_type"], values["num_adapter_layers"]) == ("lclm", "attn_mlp", 2)
    ids = Tokenizer(out / "decoder").memory_ids
    assert (values["memory_start_id"], values["memory_end_id"], values["memory_id"]) == tuple(ids)
    for name in COPIED:
        assert (out / name).is_file() == (out / "decoder" / name).is_file()
    assert (out / "tokenizer.json").read_bytes() == (out / "decoder" / "tokenizer.json").read_bytes()


def test_the_fingerprint_is_of_the_encoder_alone(make_tiny, random_params, export, tmp_path):
    model = make_tiny()
    params = random_params(model, 0)
    first = top(export(params, model, tmp_path / "first"))["fingerprint"]
    assert top(export(params, model, tmp_path / "shards", shard_bytes=10_000))["fingerprint"] == first
    params["decoder"]["final_norm"]["scale"] += 1
    assert top(export(params, model, tmp_path / "decoder"))["fingerprint"] == first
    wider = model.model_copy(update={"window": 16, "overlap": 4})
    assert top(export(params, wider, tmp_path / "window"))["fingerprint"] == first
    others = {first}
    for name, changes in (
        ("mask", {"mask": "bidirectional"}),
        ("ratio", {"ratio": 8}),
        ("pooling", {"pooling": "eos"}),
    ):
        others.add(top(export(params, model.model_copy(update=changes), tmp_path / name))["fingerprint"])
    others.add(top(export(params, model, tmp_path / "half", dtype="bfloat16"))["fingerprint"])
    params["encoder"]["embed"]["table"][5, 3] += 1e-6
    others.add(top(export(params, model, tmp_path / "encoder"))["fingerprint"])
    assert len(others) == 6


def test_published_folders_get_the_same_files(tmp_path):
    folder = shutil.copytree(CHECKPOINTS["mlp-tied"], tmp_path / "published")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    write_engine_files(folder)
    assert {path: path.read_bytes() for path in before} == before
    values = top(folder)
    assert values["architectures"] == ["LclmForConditionalGeneration"] and len(values["fingerprint"]) == 64
    export_folder(folder, tmp_path / "again")
    compression = ("compression_ratio", "encoder_window_size", "pooling", "memory_id")
    assert {name: top(tmp_path / "again")[name] for name in compression} == {name: values[name] for name in compression}


def test_folders_that_lack_something_are_refused(tmp_path):
    folder = shutil.copytree(CHECKPOINTS["mlp-tied"], tmp_path / "published")
    values = json.loads((folder / "model_config.json").read_text())
    (folder / "model_config.json").write_text(json.dumps({"pooling": values["pooling"]}))
    with pytest.raises(ValueError, match="lacks compression_ratio"):
        write_engine_files(folder)
    (folder / "model_config.json").write_text("[")
    with pytest.raises(ValueError, match="is not JSON"):
        write_engine_files(folder)
    (folder / "model_config.json").write_text(json.dumps(values))
    shutil.copy(folder / "encoder" / "tokenizer.json", folder / "decoder" / "tokenizer.json")
    with pytest.raises(ValueError, match="memory_start"):
        write_engine_files(folder)
    (folder / "lora").mkdir()
    with pytest.raises(ValueError, match="export it merged"):
        write_engine_files(folder)
    assert not (folder / "config.json").exists()


def test_the_serving_distribution_has_the_same_module():
    root = Path(__file__).parents[2]
    ours, theirs = Path(engine_config.__file__), root / "serving" / "src" / "lclm_serving" / "engine_config.py"
    codes = [path.read_text().split('"""', 2)[2].replace("lclm_serving", "lclm_jax") for path in (ours, theirs)]
    assert codes[0] == codes[1]
