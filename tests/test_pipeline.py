"""configs/demo.yaml made small: raw text to a report, continued, and refused when the settings change."""

import json
from pathlib import Path

import pytest
from tests.devices import only_one_device

from lclm_jax.config import RunPaths, load_config
from lclm_jax.errors import LclmError
from lclm_jax.ops.run_folder import claim_run
from lclm_jax.pipeline import run_pipeline

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"
TOWER = (
    "{vocab_size: 512, hidden_size: 16, num_layers: 1, num_heads: 2, num_kv_heads: 1, head_dim: 8, mlp_size: 32,"
    " rope_theta: 1e4, max_positions: 2048}"
)
STAGES = ("stage3",)
SMALL = [
    "corpus.max_bytes=800000",
    "corpus.held_out_share=0.3",
    "data.pack.block_examples=500",  # not 25,000, of which two steps read 50
    f"model.encoder={TOWER}",
    f"model.decoder={TOWER}",
    "eval={examples: 8, batch_rows: 8, free_running_examples: 2, generations: 1, max_new_tokens: 4}",
    *(f"stages.{name}=null" for name in load_config(DEMO).stages if name not in STAGES),
    *(f"stages.{name}={{steps: 2, batch_rows: 8}}" for name in STAGES),
]
REPORT_KEYS = (
    "recovered_share",
    "recovered_share_standard_error",
    "verbatim_token_accuracy",
    "verbatim_token_accuracy_standard_error",
    "held_out_tokens",
    "raw_tokens_per_s",
    "wall_seconds",
    "peak_memory_bytes",
)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    config = load_config(DEMO, [*SMALL, f"run_dir={tmp_path_factory.mktemp('pipeline') / 'run'}"])
    with only_one_device(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("lclm_jax.data.prepare.run.cores", lambda: 1)  # no processes, which would import all again
        return config, run_pipeline(config)


def test_the_report_holds_the_numbers(finished_run):
    config, report = finished_run
    paths = RunPaths(config)
    stored = json.loads(paths.report.with_suffix(".json").read_text())
    for name in REPORT_KEYS:
        assert isinstance(stored[name], int | float), name
    assert set(stored["loss_nats"]) == set(stored["loss_nats_standard_error"]) == {"none", "latents", "raw"}
    assert report["recovered_share"] == stored["recovered_share"]
    assert "windows_exceed_row" in stored["rows"]["stage3"]["sources"]["chat"]["dropped"]
    text = paths.report.read_text()
    assert "windows_exceed_row" in text
    for plot in sorted((paths.root / "plots").iterdir()):
        assert f"plots/{plot.name}" in text
    assert len(list((paths.root / "plots").iterdir())) == 6
    assert {answer["task"] for answer in stored["generations"]} == {"repeat", "continue", "question"}


def test_a_second_call_does_nothing(finished_run, caplog):
    config, report = finished_run
    before = RunPaths(config).evaluation.stat().st_mtime_ns
    with caplog.at_level("INFO", "lclm_jax"):
        assert run_pipeline(config)["wall_seconds"] == report["wall_seconds"]
    assert "is complete" in caplog.text
    assert RunPaths(config).evaluation.stat().st_mtime_ns == before


def test_other_settings_in_the_same_folder_are_refused(finished_run):
    config, _ = finished_run
    with pytest.raises(LclmError, match="seed: 0 -> 5"):
        claim_run(config.model_copy(update={"seed": 5}))
    claim_run(config.model_copy(update={"run_dir": str(Path(config.run_dir).parent / "run")}))
    claim_run(config.model_copy(update={"train": config.train.model_copy(update={"log_every": 7})}))


def test_a_damaged_configuration_of_a_run_is_named(tmp_path):
    config = load_config(DEMO, [f"run_dir={tmp_path}"])
    for text in ("", "[1", "seed"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(LclmError, match=r"config\.yaml is damaged; delete it"):
            claim_run(config)


def test_a_corpus_without_held_out_files_is_refused_before_the_work(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("text")
    folder = [f"corpus.path={tmp_path / 'corpus'}", "corpus.kind=folder", "corpus.held_out_share=0"]
    with pytest.raises(LclmError, match="no file of the corpus falls into the split held_out"):
        run_pipeline(load_config(DEMO, [*folder, f"run_dir={tmp_path / 'run'}"]))


def test_a_key_added_by_a_later_version_does_not_refuse_the_run(tmp_path):
    config = load_config(DEMO, [*SMALL, f"run_dir={tmp_path}"])
    claim_run(config)
    path = RunPaths(config).resolved_config
    without = [line for line in path.read_text().splitlines() if not line.startswith("  embedding_std")]
    assert len(without) < len(path.read_text().splitlines())
    path.write_text("\n".join(without))
    with pytest.raises(LclmError, match="embedding_std"):
        claim_run(config)
    model = config.model.model_copy(update={"embedding_std": 0.02})
    claim_run(config.model_copy(update={"model": model}))
