"""Cluster files fit every experiment, and their flags reach the process before JAX does."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lclm_jax.config import ConfigError, apply_environment, load_config
from lclm_jax.errors import LclmError
from lclm_jax.ops.run_folder import claim_run
from lclm_jax.train.checkpoints.provenance import ChangedConfigError, check_provenance, provenance

ROOT = Path(__file__).parents[2] / "configs"
CLUSTERS = sorted((ROOT / "clusters").glob("*.yaml"))
EXPERIMENT = ROOT / "experiments" / "0.6b-4b-cs16-mean-w1024-causal-mlp-O0.yaml"
ROWS = {"v5p-128": 4, "h100-8": 2}
"""Rows a chip at once, where it is not one."""
CHIPS = {"v5e-256": 256, "v5p-128": 64, "v6e-256": 256, "h100-8": 8, "h100-256": 256}


def test_every_cluster_is_there():
    assert {path.stem for path in CLUSTERS} == set(CHIPS)


@pytest.mark.parametrize("cluster", CLUSTERS, ids=lambda path: path.stem)
def test_a_cluster_fits_every_experiment(cluster):
    plain = load_config(EXPERIMENT)
    config = load_config(EXPERIMENT, (), cluster)
    assert config.name == plain.name
    assert math.prod(config.mesh.model_dump().values()) == CHIPS[cluster.stem]
    for name, stage in config.stages.items():
        rows = stage.batch_rows // stage.microbatches
        assert rows == ROWS.get(cluster.stem, 1) * config.mesh.replica * config.mesh.fsdp
        assert stage.steps == plain.stages[name].steps
    search = load_config(ROOT / "search" / "mean-w1024-causal-mlp-O0.yaml", (), cluster)
    assert list(search.stages) == ["scratch"]


@pytest.mark.parametrize("cluster", CLUSTERS, ids=lambda path: path.stem)
def test_every_flag_is_explained(cluster):
    """A source stands above each group of flags."""
    lines = cluster.read_text().splitlines()
    for name in ("LIBTPU_INIT_ARGS", "XLA_FLAGS"):
        if name in (values := load_config(EXPERIMENT, (), cluster).environment):
            assert all(flag.startswith("--xla") for flag in values[name])
    assert any("Source:" in line for line in lines)


def test_the_command_line_wins_over_the_cluster_and_it_over_the_experiment():
    config = load_config(EXPERIMENT, ["mesh.fsdp=32"], ROOT / "clusters" / "v5p-128.yaml")
    assert (config.mesh.fsdp, config.stages["stage2"].microbatches) == (32, 1)
    own = load_config(EXPERIMENT, ["stages.stage2.microbatches=8"], ROOT / "clusters" / "v5p-128.yaml")
    assert [stage.microbatches for stage in own.stages.values()] == [1, 1, 8, 1]


def test_the_users_environment_wins():
    target = {"XLA_FLAGS": "--b=2", "NCCL_DEBUG": "INFO"}
    wanted = {"XLA_FLAGS": ("--a=1", "--b=1"), "NCCL_DEBUG": "WARN", "LIBTPU_INIT_ARGS": ("--c",), "OTHER": "x"}
    apply_environment(wanted, target)
    assert target == {"XLA_FLAGS": "--a=1 --b=1 --b=2", "NCCL_DEBUG": "INFO", "LIBTPU_INIT_ARGS": "--c", "OTHER": "x"}


@pytest.mark.parametrize("name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "DB_PASSWORD"])
def test_secrets_are_refused(name):
    with pytest.raises(ConfigError, match=f"environment.{name} looks like a secret"):
        load_config(EXPERIMENT, [f"environment.{name}=abc"])


def test_bad_names_are_refused():
    with pytest.raises(ConfigError, match="not a variable name"):
        load_config(EXPERIMENT, ["environment.A-B=abc"])


def test_flags_are_set_before_jax_is_imported(tmp_path):
    cluster = tmp_path / "four.yaml"
    cluster.write_text("environment: {XLA_FLAGS: [--xla_force_host_platform_device_count=4]}\n")
    code = (
        "import sys; from pathlib import Path\n"
        "from lclm_jax.cli.options import load_for_devices\n"
        f"load_for_devices(Path({str(EXPERIMENT)!r}), (), Path({str(cluster)!r}))\n"
        "assert 'jax' not in sys.modules, 'too late: JAX is imported'\n"
        "import jax; print(jax.device_count())\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "4", done.stderr


@pytest.mark.parametrize("cluster", ["h100-8", "h100-256"])
def test_jaxlib_knows_the_flags_for_gpus(cluster):
    """An unknown flag ends the process when the first device is touched."""
    flags = load_config(EXPERIMENT, (), ROOT / "clusters" / f"{cluster}.yaml").environment["XLA_FLAGS"]
    environment = {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr


def test_a_run_may_go_on_in_another_layout():
    here = load_config(EXPERIMENT, (), ROOT / "clusters" / "v5p-128.yaml")
    there = load_config(EXPERIMENT, ["model.remat=none"], ROOT / "clusters" / "h100-8.yaml")
    assert here.stages["stage3"].microbatches != there.stages["stage3"].microbatches
    check_provenance(there, "stage3", provenance(here, "stage3"))
    with pytest.raises(ChangedConfigError, match="window: 1024 -> 512"):
        check_provenance(load_config(EXPERIMENT, ["model.window=512"]), "stage3", provenance(here, "stage3"))


def test_a_folder_takes_a_run_of_another_layout(tmp_path):
    folder = f"run_dir={tmp_path}"
    claim_run(load_config(EXPERIMENT, [folder], ROOT / "clusters" / "v5p-128.yaml"))
    claim_run(load_config(EXPERIMENT, [folder, "model.remat=none"], ROOT / "clusters" / "h100-256.yaml"))
    with pytest.raises(LclmError, match="another configuration"):
        claim_run(load_config(EXPERIMENT, [folder, "model.ratio=8"], ROOT / "clusters" / "h100-256.yaml"))
