"""The PyTorch project's experiment YAML becomes ours, and what it says that ours cannot is an error."""

import textwrap
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from lclm_jax.cli.main import cli
from lclm_jax.config import load_config

ROOT = Path(__file__).parents[2] / "configs"


def source(models: dict | None = None, training: dict | None = None, stages: dict | None = None, **sections) -> dict:
    """An experiment as that project writes them."""

    def stage(lrs, warmup, encoder, decoder, **more):
        lrs = dict(zip(("adapter_lr", "encoder_lr", "decoder_lr"), lrs, strict=True))
        return lrs | {
            "train_batch_size": 1, "warmup_steps": warmup, "train_encoder": encoder, "train_decoder": decoder,
            "min_lr": 1e-6, "decoder_weight_decay": 0.0, "encoder_weight_decay": 0.01 if encoder else 0.0,
            "adapter_weight_decay": 0.01, "encoder_gradient_checkpointing": encoder,
            "dataset": "./data/packed_batches/stage-16384", "distributed": {"type": "deepspeed", "config": "x.yaml"},
        } | more  # fmt: skip

    tree = {
        "experiment": "auto",
        "models": {
            "encoder": "Qwen/Qwen3-Embedding-0.6B", "decoder": "Qwen/Qwen3-4B-Instruct-2507", "pooling": "mean",
            "adapter_type": "mlp", "encoder_window_size": 1024, "mask": "causal", "boundary_overlap": 0,
            "decoder_attn_implementation": "flash_attention_2", "embed_attn_implementation": "flash_attention_2",
        },
        "training": {
            "compression_ratio": 16, "max_encode_batch_size": 1024, "gradient_accumulation_steps": 1, "num_epochs": 1,
            "warmup_steps": 500, "max_grad_norm": 1.0, "save_steps": 100, "delete_old_checkpoints": True, "seed": 4231,
            "auto_resume": True, "preempt_save_minutes": 5, "optimizer": "adamw", "scheduler": "cosine",
            "adam_epsilon": 1e-8, "decoder_betas": "0.9,0.95", "encoder_betas": "0.9,0.95",
            "adapter_betas": "0.9,0.95", "decoder_gradient_checkpointing": True, "use_liger_kernel": True,
        },
        "data": {"num_workers": 4, "use_packing": True, "use_memory_wrapping": True, "train_wrap_tokens": True},
        "logging": {"wandb_project": "p", "wandb_name": "auto", "log_interval": 10, "log_token_counts": True},
        "stages": {
            0: stage((1e-3, 6e-5, 6e-5), 250, False, False),
            1: stage((6e-5, 6e-5, 6e-5), 500, True, False),
            2: stage((6e-5, 6e-5, 1e-5), 1000, True, True),
            3: stage((3e-5, 3e-5, 3e-5), 500, True, True),
        },
    }  # fmt: skip
    tree["models"] |= models or {}
    tree["training"] |= training or {}
    for number, changes in (stages or {}).items():
        tree["stages"][number] |= changes
    return tree | sections


def convert(tmp_path: Path, tree: dict, name: str = "out"):
    (tmp_path / "in.yaml").write_text(yaml.safe_dump(tree))
    out = tmp_path / f"{name}.yaml"
    arguments = ["config", "convert", str(tmp_path / "in.yaml"), str(out), "--recipe", str(ROOT / "base/recipe.yaml")]
    return CliRunner().invoke(cli, arguments), out


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("0.6b-4b-cs16-mean-w1024-causal-mlp-O0", {}),
        ("0.6b-4b-cs4-eos-w1024-causal-mlp-O0", {"models": {"pooling": "eos"}, "training": {"compression_ratio": 4}}),
        ("0.6b-8b-cs16-mean-w1024-causal-mlp-O0", {"models": {"decoder": "Qwen/Qwen3-8B"}}),
        (
            "4b-4b-cs16-mean-w1024-bidirectional-attn_mlp-O256",
            {
                "models": {"encoder": "Qwen/Qwen3-Embedding-4B", "mask": "bidirectional", "boundary_overlap": 256}
                | {"adapter_type": "attn_mlp", "num_adapter_layers": 1},
                "stages": {3: {"skip_step_ranges": "24-26"}},
            },
        ),
    ],
)
def test_a_published_experiment_becomes_our_file_of_that_name(tmp_path, name, changes):
    result, out = convert(tmp_path, source(**changes), name)
    assert result.exit_code == 0, result.output
    assert load_config(out) == load_config(ROOT / "experiments" / f"{name}.yaml")
    assert "left out stages.0.dataset: packed pickles are never read" in result.output
    assert "left out models.decoder_attn_implementation" in result.output


def test_from_scratch(tmp_path):
    models = {"decoder": "Qwen/Qwen3-0.6B", "random_init_encoder": True, "random_init_decoder": True}
    tree = source(models, {"max_steps": 10000, "delete_old_checkpoints": False})
    tree["stages"] = {0: tree["stages"][2] | {"decoder_weight_decay": 0.1, "skip_step_ranges": "1-2,5-5"}}
    result, out = convert(tmp_path, tree)
    assert result.exit_code == 0, result.output
    config = load_config(out)
    assert not config.init.given
    assert list(config.stages) == ["stage0"]
    stage = config.stages["stage0"]
    assert (stage.steps, stage.weight_decay.decoder, stage.skip_steps) == (10000, 0.1, ("1-2", "5-5"))
    assert (config.train.checkpoint.every_steps, config.train.checkpoint.keep_every) == (100, 100)
    assert config.train.stop.before_end_seconds == 300


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": {"poling": "mean"}}, ["unknown key models.poling", "did you mean 'pooling'"]),
        ({"stages": {2: {"decoder_ln": 1}}}, ["unknown key stages.2.decoder_ln", "did you mean 'decoder_lr'"]),
        ({"extra": {}, "training": {"optimiser": 1}}, ["unknown key extra", "unknown key training.optimiser"]),
        ({"training": {"optimizer": "sgd"}}, ["training.optimizer='sgd'", "only 'adamw'"]),
        ({"training": {"decoder_betas": "0.9,0.99"}}, ["betas differ"]),
        ({"models": {"decoder": "meta/Llama"}}, ["models.decoder='meta/Llama'", "lclm import"]),
        ({"data": {"use_memory_wrapping": False}}, ["data.use_memory_wrapping=False"]),
        ({"stages": {}, "models": {"mask": "prefix"}}, ["model.mask='prefix'"]),
    ],
)
def test_what_has_no_counterpart_is_an_error(tmp_path, changes, words):
    result, out = convert(tmp_path, source(**changes))
    assert result.exit_code != 0
    for word in words:
        assert word in str(result.exception)
    assert not out.exists()


def test_another_yaml_is_refused(tmp_path):
    result, _ = convert(tmp_path, yaml.safe_load(textwrap.dedent("a: 1\nb: {c: 2}")))
    assert "unknown key a" in str(result.exception)
    assert "models is missing" in str(result.exception)
    result, _ = convert(tmp_path, {"models": 3, "stages": {0: [1]}})
    assert "models is not a mapping of keys" in str(result.exception)
    assert "stages.0 is not a mapping of keys" in str(result.exception)
