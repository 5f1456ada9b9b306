import shutil
import sysconfig
from pathlib import Path

import pytest

from lclm_jax.bench import step
from lclm_jax.config import load_config, parse_config
from lclm_jax.data.prepare.run import prepare_corpus
from lclm_jax.text.train_tokenizer import train_tokenizer

TOWER = dict(hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_size=8, vocab_size=300)
SPANS = {"min_tokens": 8, "max_tokens": 16, "raw_min_tokens": 8, "raw_max_tokens": 16}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    (root / "corpus").mkdir()
    shutil.copy(Path(sysconfig.get_path("stdlib")) / "heapq.py", root / "corpus")
    train_tokenizer([(root / "corpus" / "heapq.py").read_text()], 300, root / "tokenizer")
    source = {"collection": "documents", "objective": "cpt", "max_tokens": 60, "spans": SPANS}
    rates = dict.fromkeys(("adapter", "encoder", "decoder"), 1e-3)
    config = parse_config(
        {
            "name": "bench",
            "run_dir": str(root),
            "corpus": {"kind": "folder", "path": str(root / "corpus"), "validation_share": 0, "held_out_share": 0},
            "tokenizer": {"decoder": str(root / "tokenizer")},
            "model": {"encoder": TOWER, "decoder": TOWER, "ratio": 4, "window": 16, "compute_dtype": "float32"},
            "data": {
                "sources": {"cpt": source},
                "pack": {"row_length": 64, "encoder_rows": 2, "encoder_row_length": 32},
            },
            "stages": {"only": {"lr": rates, "steps": 9, "batch_rows": 8, "mixture": {"cpt": 1}}},
        }
    )
    prepare_corpus(config, root / "data")
    return config


@pytest.mark.slow
@pytest.mark.parametrize("on_cpu", [True, False])
def test_both_sides_start_alike_and_the_ratio_is_split(config, monkeypatch, tmp_path, on_cpu):
    """In turn on a CPU; on an accelerator PyTorch first, which then gives its memory back."""
    monkeypatch.setattr(step, "on_cpu", lambda: on_cpu)
    result = step.bench_step(config, None, steps=2, repeats=3, torch=True, profile=tmp_path)
    other = result["pytorch"]
    assert other["first_loss"] == pytest.approx(result["first_loss"], rel=1e-5)
    assert len(other["ratios"]) == 3 and min(other["ratios"]) <= other["ratio"] <= max(other["ratios"])
    assert other["of_which_padding_saved"] * other["of_which_arithmetic"] == pytest.approx(other["ratio"])
    assert result["tokens_per_s"]["decoder"] > 0 and result["mfu"] > 0
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_what_it_is_measured_with_is_a_configuration():
    folder = Path(__file__).parents[2] / "benchmarks"
    large, small = (load_config(folder / f"{name}.yaml") for name in ("step", "step-cpu"))
    assert (large.model.encoder.num_layers, large.model.decoder.hidden_size) == (28, 2048)
    assert small.model.decoder.hidden_size == 128 and small.stages == large.stages
