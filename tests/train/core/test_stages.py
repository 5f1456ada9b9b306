import logging
import shutil
import sysconfig
from pathlib import Path

import jax
import numpy as np
import pytest
from tests.train.core import programs

from lclm_jax.config import MeshConfig, RunPaths, parse_config
from lclm_jax.data.packing.mixture import RatioSchedule
from lclm_jax.data.prepare.run import prepare_corpus
from lclm_jax.errors import LclmError
from lclm_jax.model.lclm import abstract_params, init_params
from lclm_jax.parallel import make_mesh
from lclm_jax.text.train_tokenizer import train_tokenizer
from lclm_jax.train.checkpoints.checkpoint import CheckpointError, Checkpoints, DamagedCheckpoint
from lclm_jax.train.checkpoints.provenance import ChangedConfigError, checkpoints_folder
from lclm_jax.train.checkpoints.run_params import load_params
from lclm_jax.train.core.initial_state import random_params
from lclm_jax.train.core.stages import finished, train
from lclm_jax.train.logging.records import read_metrics
from lclm_jax.train.supervise.step_monitor import StepMonitor

BACKBONE = dict(hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_size=8, vocab_size=300)
SPANS = {"min_tokens": 8, "max_tokens": 16, "raw_min_tokens": 8, "raw_max_tokens": 16}
EVERYTHING = {"adapter": 1e-3, "encoder": 1e-3, "decoder": 1e-3}


def stage(steps, **lr):
    return {"lr": lr, "steps": steps, "batch_rows": 8, "mixture": {"cpt": 1}}


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """Values of a prepared run of two stages."""
    root = tmp_path_factory.mktemp("run")
    (root / "corpus").mkdir()
    for name in ("bisect.py", "heapq.py", "stat.py"):
        shutil.copy(Path(sysconfig.get_path("stdlib")) / name, root / "corpus" / name)
    texts = [path.read_text() for path in sorted((root / "corpus").iterdir())]
    train_tokenizer(texts, 300, root / "tokenizer")
    pack = {"row_length": 64, "encoder_rows": 2, "encoder_row_length": 32}
    values = {
        "name": "test",
        "run_dir": str(root),
        "corpus": {"kind": "folder", "path": str(root / "corpus"), "validation_share": 0, "held_out_share": 0},
        "tokenizer": {"decoder": str(root / "tokenizer")},
        "model": {"encoder": BACKBONE, "decoder": BACKBONE, "ratio": 4, "window": 16, "remat": "none"},
        "data": {
            "sources": {"cpt": {"collection": "documents", "objective": "cpt", "max_tokens": 60, "spans": SPANS}},
            "pack": pack,
        },
        "stages": {"base": stage(3, **EVERYTHING), "stage0": stage(2, adapter=1e-3)},
    }
    prepare_corpus(parse_config(values), root / "data")
    return values


def edited(values, **stages):
    return parse_config(values | {"stages": values["stages"] | stages})


def test_the_chain_of_stages(values, caplog):
    config = edited(values)
    with pytest.raises(LclmError, match="stage0 starts from base, which is not finished; train base first"):
        train(config, only_stage="stage0")
    with pytest.raises(LclmError, match="'stage2' is unknown; did you mean 'stage0'"):
        train(config, only_stage="stage2")
    with pytest.raises(CheckpointError, match="has no checkpoint; train first"):
        load_params(config)
    with caplog.at_level(logging.INFO, logger="lclm_jax"):
        train(config, only_stage="base")
        train(config)
    assert "base: finished before" in caplog.messages
    assert all(finished(config, name) for name in config.stages)
    base, last = load_params(config, "base"), load_params(config)
    for part in ("encoder", "decoder"):
        for a, b in zip(flat(base[part]), flat(last[part]), strict=True):
            assert (a[0] == "memory_rows") or np.array_equal(a[1], b[1]), a[0]
    assert not np.array_equal(base["adapter"]["fc1"]["kernel"], last["adapter"]["fc1"]["kernel"])
    log = list(read_metrics(RunPaths(config).stage("base") / "metrics.jsonl"))
    assert [record["step"] for record in log] == [0, 1, 2] and all(record["loss_nats"] > 0 for record in log)
    with Checkpoints(checkpoints_folder(config, "stage0")) as checkpoints:
        meta = checkpoints.meta(2)
        assert (meta["rows_consumed"], meta["step"]) == (16, 2) and set(meta["provenance"]["ancestors"]) == {"base"}
        rates = checkpoints.restore_params(2, abstract_params(config.model))
        assert set(rates) == {"encoder", "adapter", "decoder"}
    check_changes(values)
    check_damaged_metadata(config, caplog)
    sharded = load_params(config, "base", mesh=make_mesh(MeshConfig()))
    assert isinstance(sharded["encoder"]["embed"]["table"].sharding, jax.sharding.NamedSharding)
    with pytest.raises(CheckpointError, match=r"stage base has no checkpoint of step 2; it has: 3"):
        load_params(config, "base", step=2)


def check_changes(values):
    """A changed stage is refused, and so are the stages that came from it."""
    longer = edited(values, base=stage(4, **EVERYTHING))
    with pytest.raises(ChangedConfigError, match=r"stages.base.steps: 3 -> 4\).*delete .*stages/base to train"):
        train(longer)
    with pytest.raises(ChangedConfigError, match="stage stage0 started from base, whose settings have changed"):
        finished(longer, "stage0")
    wider = parse_config(values | {"model": values["model"] | {"decoder": BACKBONE | {"mlp_size": 16}}})
    with pytest.raises(CheckpointError, match=r"of another model \(model.decoder.mlp_size: 8, now 16\)"):
        load_params(wider)


def check_damaged_metadata(config, caplog):
    """The checkpoint that says that a stage is finished: without its metadata the stage is not, and goes on."""
    folder = checkpoints_folder(config, "stage0")
    path = next((folder / "2" / "meta").rglob("metadata*"))
    whole = path.read_text()
    for damaged in (whole[:-9], whole.replace("index_digest", "index_dagest")):  # no JSON; JSON of other content
        path.write_text(damaged)
        assert not finished(config, "stage0")
        assert "2 is damaged" in caplog.messages[-1] and "meta/" in caplog.messages[-1]
        with Checkpoints(folder) as checkpoints, pytest.raises(DamagedCheckpoint, match="damaged"):
            checkpoints.meta(2)
    path.write_text(whole)
    assert finished(config, "stage0")


def flat(tree):
    return [(path[-1].key, leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_lora_added_between_stages(values, tmp_path):
    """A run that was trained without LoRA gets it: fresh leaves, the stages before stay finished, the base frozen."""
    run = values | {"run_dir": str(tmp_path)}
    shutil.copytree(Path(values["run_dir"]) / "data", tmp_path / "data")
    config = parse_config(run | {"stages": {"base": stage(1, **EVERYTHING)}})
    train(config)
    base = load_params(config)
    lora = {"decoder": {"rank": 2, "dropout": 0.1}}
    stages = {"base": stage(1, **EVERYTHING), "low": stage(2, decoder_lora=1e-2)}
    config = parse_config(run | {"model": run["model"] | {"lora": lora}, "stages": stages})
    assert finished(config, "base")
    fresh = load_params(config, "base")
    assert not fresh["decoder"]["layers"]["attn"]["q"]["lora_b"].any()
    expected = init_params(config.model, jax.random.key(config.seed))
    np.testing.assert_array_equal(*(p["decoder"]["layers"]["mlp"]["up"]["lora_a"] for p in (fresh, expected)))
    train(config)
    after = load_params(config)
    assert after["decoder"]["layers"]["attn"]["q"]["lora_b"].any()
    for path, leaf in by_path(base).items():
        assert path == "decoder/memory_rows" or np.array_equal(leaf, by_path(after)[path]), path
    assert {path for path in by_path(after) if path not in by_path(base)} == {
        f"decoder/layers/{target}/{leaf}"
        for target in ("attn/q", "attn/k", "attn/v", "attn/o", "mlp/gate", "mlp/up", "mlp/down")
        for leaf in ("lora_a", "lora_b")
    }
    changed = parse_config(run | {"model": run["model"] | {"lora": {"decoder": {"rank": 3}}}, "stages": stages})
    with pytest.raises(ChangedConfigError, match=r"model.lora.decoder.dropout: 0.1 -> 0.0, model.lora.decoder.rank"):
        finished(changed, "low")
    with pytest.raises(CheckpointError, match=r"of another model \(model.lora.decoder.rank: 2, now 3\)"):
        load_params(changed)


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_lora_on_imported_weights(values, tmp_path):
    """The reader of imports is asked for a model without LoRA, which the stage adds."""
    shutil.copytree(Path(values["run_dir"]) / "data", tmp_path / "data")
    model = values["model"] | {"lora": {"decoder": {"rank": 2, "targets": ["q"]}}}
    changes = {"run_dir": str(tmp_path), "model": model, "init": {"lclm": "imported"}}
    config = parse_config(values | changes | {"stages": {"low": stage(1, decoder_lora=1e-2)}})
    asked = []

    def read_imports(config, mesh):
        asked.append(config.model)
        return random_params(config.model, 5, mesh)

    train(config, read_imports=read_imports)
    assert [model == model.plain for model in asked] == [True]
    after = by_path(load_params(config))
    assert after["decoder/layers/attn/q/lora_b"].any()
    for path, leaf in by_path(init_params(asked[0], jax.random.key(5))).items():
        assert path == "decoder/memory_rows" or np.array_equal(leaf, after[path]), path


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_stage_of_several_ratios_goes_on_exactly_and_counts_its_compiles(values, tmp_path, monkeypatch):
    def run(name, kill_at=None):
        mixed = stage(8, **EVERYTHING) | {"ratios": [4, 8]}
        checkpoints = {"train": {"checkpoint": {"every_steps": 2}}}
        folders = {"run_dir": str(tmp_path / name), "data": values["data"] | {"prepared": f"{values['run_dir']}/data"}}
        config = parse_config(values | {"stages": {"base": mixed}} | checkpoints | folders)
        if kill_at is not None:
            with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
                patch.setattr(StepMonitor, "step", dying(StepMonitor.step, kill_at))
                train(config, make_step=programs.train_step)
        train(config, make_step=programs.train_step)
        return config, list(read_metrics(RunPaths(config).stage("base") / "metrics.jsonl"))

    (config, whole), (killed, again) = run("whole"), run("killed", kill_at=5)
    ratios = [RatioSchedule(config, "base").ratio(step) for step in range(8)]
    assert set(ratios) == {4, 8}
    assert [record["loss_nats"] for record in again] == [record["loss_nats"] for record in whole]
    assert jax.tree.all(jax.tree.map(np.array_equal, load_params(killed), load_params(config)))
    # The second ratio's compilation is in one record and not in its pace: its step's, or, as metrics are fetched a step
    # late, that of the step before.
    second = next(step for step in range(8) if ratios[step] != ratios[0])
    compiled = [step for step, record in enumerate(whole) if record.get("compile_seconds")]
    assert compiled[0] == 0 and compiled[1] in (second - 1, second) and len(compiled) == 2


def dying(step_method, kill_at):
    def step(watch, step, *arguments):
        step_method(watch, step, *arguments)
        if step == kill_at:
            raise RuntimeError("killed")

    return step
