"""The configuration tree: YAML, overrides, and errors that name the key and the fix."""

import textwrap
from pathlib import Path

import pytest

from lclm_jax.config import Config, ConfigError, config_hash, describe_keys, dump_config, load_config, parse_config
from lclm_jax.config.train import parse_skip_range

YAML = """
tokenizer: {vocab_size: 512}
model:
  encoder: &tower {vocab_size: 512, hidden_size: 64, num_layers: 2, num_heads: 4, num_kv_heads: 2, head_dim: 16,
    mlp_size: 128}
  decoder: *tower
  ratio: 4
  window: 64
data:
  sources:
    cpt: {collection: documents, objective: cpt}
  pack: {row_length: 256, encoder_rows: 2, encoder_row_length: 128}
stages:
  stage0: {lr: {adapter: 1e-3}, steps: 10, mixture: {cpt: 1}}
"""


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(textwrap.dedent(YAML))
    return path


def test_name_is_the_stem_and_floats_need_no_dot(yaml_file):
    config = load_config(yaml_file)
    assert config.name == "small"
    assert config.run_dir == "runs/small"
    assert config.stages["stage0"].lr.adapter == 1e-3


def test_overrides_reach_any_depth(yaml_file):
    config = load_config(yaml_file, ["stages.stage0.steps=3", "data.sources.cpt.spans.law=fixed"])
    assert config.stages["stage0"].steps == 3
    assert config.data.sources["cpt"].spans.law == "fixed"


def test_dump_and_parse_round_trip(yaml_file):
    import yaml

    config = load_config(yaml_file)
    again = parse_config(yaml.safe_load(dump_config(config)))
    assert again == config
    assert config_hash(again) == config_hash(config)
    assert config_hash(load_config(yaml_file, ["seed=1"])) != config_hash(config)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.windw=3", ["model.windw", "did you mean 'window'"]),
        ("stages.stage0.stps=3", ["stages.stage0.stps", "did you mean 'steps'"]),
        ("model.window=65", ["window=65", "ratio=4", "64 or 68"]),
        ("stages.stage0.lr.adapter=null", ["stage trains nothing"]),
        ("model.decoder.preset=qwen3_4", ["did you mean 'qwen3_4b'"]),
        ("data.pack.encoder_row_length=32", ["encoder_row_length=32", "64"]),
        ("data.pack.encoder_row_length=130", ["encoder_row_length=130", "multiple"]),
        ("stages.stage0.mixture.cptt=1", ["cptt", "did you mean 'cpt'"]),
        ("stages.stage0.skip_steps=['9-3']", ["9-3", "FIRST-LAST"]),
        ("stages.stage0.microbatches=3", ["batch_rows=256", "microbatches=3"]),
        ("tokenizer.decoder=somewhere", ["exactly one"]),
        ("seed=-1", ["seed", "greater than or equal to 0"]),
        ("seed", ["--set a.b=value"]),
        ("model.encoder.num_kv_heads=3", ["num_heads=4", "num_kv_heads=3"]),
        ("run_dir=az://bucket/runs", ["run_dir=az://bucket/runs", "cannot be written to az://; use gs://"]),
        ("train.checkpoint.local_dir=s3://b", ["train.checkpoint.local_dir=s3://b is a URL"]),
    ],
)
def test_bad_values_name_the_key_and_the_fix(yaml_file, override, words):
    with pytest.raises(ConfigError) as error:
        load_config(yaml_file, [override])
    for word in words:
        assert word in str(error.value)


def test_duplicate_keys_are_an_error(yaml_file):
    yaml_file.write_text(yaml_file.read_text() + "\nseed: 1\nseed: 2\n")
    with pytest.raises(ConfigError, match="'seed' occurs twice"):
        load_config(yaml_file)


def test_missing_file_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(tmp_path / "absent.yaml")


def test_base_is_merged_under(yaml_file, tmp_path):
    child = tmp_path / "child.yaml"
    child.write_text("base: small.yaml\nstages: {stage0: {steps: 77}}\n")
    config = load_config(child)
    assert config.name == "child"
    assert config.stages["stage0"].steps == 77
    assert config.stages["stage0"].lr.adapter == 1e-3


def test_null_removes_a_mapping(yaml_file):
    config = load_config(yaml_file, ["data.sources.more={collection: chat, objective: chat}", "data.sources.more=null"])
    assert list(config.data.sources) == ["cpt"]


def test_memory_rows_follow_the_decoder(yaml_file):
    stage = load_config(yaml_file).stages["stage0"]
    assert stage.peak_lr("memory_rows") == 6e-5
    assert stage.peak_lr("decoder") is None
    trained = load_config(yaml_file, ["stages.stage0.lr.decoder=1e-5"]).stages["stage0"]
    assert trained.peak_lr("memory_rows") == 1e-5


def test_steps_follow_from_tokens_unless_they_are_given(yaml_file):
    in_tokens = ["stages.stage0.steps=0", "stages.stage0.batch_rows=8", "stages.stage0.tokens=9000"]
    config = load_config(yaml_file, in_tokens)
    assert config.stages["stage0"].steps == 4  # 9000 / (8 rows of 256 positions) = 4.4
    assert load_config(yaml_file, [*in_tokens, "data.pack.row_length=512"]).stages["stage0"].steps == 2
    own_pack = "stages.stage0.pack={row_length: 128, encoder_rows: 1, encoder_row_length: 64}"
    assert load_config(yaml_file, [*in_tokens, own_pack]).stages["stage0"].steps == 9
    assert load_config(yaml_file, [*in_tokens, "stages.stage0.tokens=1"]).stages["stage0"].steps == 1
    assert load_config(yaml_file, [*in_tokens, "stages.stage0.steps=7"]).stages["stage0"].steps == 7
    with pytest.raises(ConfigError, match="no length; set steps, or tokens"):
        load_config(yaml_file, ["stages.stage0.steps=0"])


def test_skip_ranges_are_inclusive(yaml_file):
    stage = load_config(yaml_file, ["stages.stage0.skip_steps=['2-4','7']"]).stages["stage0"]
    assert [parse_skip_range(text) for text in stage.skip_steps] == [(2, 4), (7, 7)]


def test_every_key_is_documented():
    undocumented = [name for name, _, doc, _ in describe_keys(Config) if not doc]
    assert undocumented == []


def test_presets_fill_what_is_not_given(yaml_file):
    yaml_file.write_text(
        yaml_file.read_text().replace("decoder: *tower", "decoder: {preset: qwen3_0p6b, num_layers: 2}")
    )
    config = load_config(yaml_file)
    assert config.model.decoder.num_layers == 2
    assert config.model.decoder.hidden_size == 1024


def test_overrides_merge_into_mappings(yaml_file):
    config = load_config(yaml_file, ["stages.stage0={steps: 3, batch_rows: 8}"])
    assert config.stages["stage0"].steps == 3
    assert config.stages["stage0"].lr.adapter == 1e-3
