"""Launchers: what they would run, the manifests against published schemas, the shell against shellcheck."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCHEMAS = Path(__file__).parent / "schemas"
CONFIG = "configs/experiments/0.6b-4b-cs16-mean-w1024-causal-mlp-O0.yaml"
ARGUMENTS = [CONFIG, "--cluster", "configs/clusters/v5p-128.yaml", "--set", "run_dir=/runs/my run"]
VARIABLES = {
    "JOB_NAME": "lclm-16x", "IMAGE": "registry/lclm:1", "GKE_HOSTS": "16", "GKE_CLAIM": "lclm-runs",
    "GKE_TPU_ACCELERATOR": "tpu-v5p-slice", "GKE_TPU_TOPOLOGY": "4x4x4", "GKE_GPU_ACCELERATOR": "nvidia-h100-mega-80gb",
    "XPK_CLUSTER": "cluster", "XPK_TPU_TYPE": "v5p-128", "TPU_ZONE": "us-east5-a", "TPU_TYPE": "v5p-128",
    "SKY_BUCKET": "gs://bucket",
}  # fmt: skip
SKY = {name: VARIABLES[name] for name in ("JOB_NAME", "IMAGE", "SKY_BUCKET")} | {"SKY_ACCELERATORS": "H100:8"}
SHELL = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "lclm.sbatch"])


def launch(script, *arguments, **variables):
    """Run a launcher where none of the programs that it would call exist."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")} | variables
    return subprocess.run([LAUNCH / script, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT)


def validate(name, text):
    validator = Draft202012Validator(json.loads((SCHEMAS / f"{name}.json").read_text()))
    tree = yaml.safe_load(text)
    errors = [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in validator.iter_errors(tree)
    ]
    assert not errors, errors
    return tree


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck comes with the extra [dev]")
def test_shell_passes_shellcheck():
    done = subprocess.run(["shellcheck", "-x", *SHELL], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", [path.name for path in SHELL if path.suffix == ".sh" and path.name != "common.sh"])
def test_every_launcher_explains_itself(script):
    done = launch(script, "--help")
    assert done.returncode == 0
    assert f"launch/{script} [--dry-run]" in done.stdout
    assert launch(script).returncode == 2  # no configuration


def test_jobs_of_a_study():
    done = launch("slurm.sh", "--dry-run", "configs/ablate/ratio.yaml", LCLM_VERB="ablate", SBATCH_ARGS="--array=0-3")
    assert done.stdout.startswith("+ sbatch --array=0-3") and done.stdout.endswith(
        "lclm.sbatch configs/ablate/ratio.yaml\n"
    )
    done = launch("skypilot.sh", "--dry-run", "gpu", "STUDY.yaml", "--job", "3", LCLM_VERB="ablate", **SKY)
    assert yaml.safe_load(done.stdout)["run"].splitlines()[-1] == "lclm ablate STUDY.yaml --job 3"


def test_local_and_slurm():
    done = launch("local.sh", "--dry-run", *ARGUMENTS)
    assert done.stdout.startswith(f"+ lclm train {CONFIG} --cluster")
    assert r"run_dir=/runs/my\ run" in done.stdout
    done = launch("slurm.sh", "--dry-run", *ARGUMENTS, SBATCH_ARGS="--nodes=32 --time=1:00:00")
    assert re.match(rf"\+ sbatch --nodes=32 --time=1:00:00 \S*/lclm.sbatch {CONFIG}", done.stdout)


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_gke(kind):
    done = launch("gke.sh", "--dry-run", kind, *ARGUMENTS, **VARIABLES)
    assert done.returncode == 0, done.stderr
    job = validate("jobset", done.stdout)
    pod = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"] == ["train", *ARGUMENTS]
    assert pod["terminationGracePeriodSeconds"] == 600


def test_the_schemas_notice_a_misspelt_key():
    text = launch("gke.sh", "--dry-run", "tpu", *ARGUMENTS, **VARIABLES).stdout
    for right, wrong in (("failurePolicy", "failPolicy"), ("backoffLimit", "backOffLimit"), ("mountPath", "path")):
        with pytest.raises(AssertionError):
            validate("jobset", text.replace(right, wrong))
    text = launch("skypilot.sh", "--dry-run", "gpu", *ARGUMENTS, **VARIABLES, SKY_ACCELERATORS="H100:8").stdout
    with pytest.raises(AssertionError):
        validate("skypilot", text.replace("num_nodes", "nodes"))


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_skypilot(kind):
    accelerators = {"tpu": "tpu-v5p-128", "gpu": "H100:8"}[kind]
    done = launch("skypilot.sh", "--dry-run", kind, *ARGUMENTS, **VARIABLES, SKY_ACCELERATORS=accelerators)
    assert done.returncode == 0, done.stderr
    task = validate("skypilot", done.stdout)
    assert task["run"].rstrip().endswith(r"'run_dir=/runs/my run'") or r"my\ run" in task["run"]
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]


def test_xpk_and_tpu_vm():
    done = launch("xpk.sh", "--dry-run", *ARGUMENTS, **VARIABLES)
    assert "+ xpk workload create --workload=lclm-16x --cluster=cluster --tpu-type=v5p-128" in done.stdout
    assert "--restart-on-exit-codes=75" in done.stdout
    done = launch("tpu_vm.sh", "--dry-run", *ARGUMENTS, **VARIABLES, TPU_SPOT="1")
    assert done.returncode == 0, done.stderr
    steps = [line.split(" lclm-16x")[0] for line in done.stdout.splitlines()]
    assert steps == [
        "+ gcloud compute tpus queued-resources create",
        "+ gcloud compute tpus tpu-vm ssh",
        "+ gcloud compute tpus queued-resources delete",
    ]
    assert "--spot" in done.stdout
    assert "--worker=all" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gke.sh", "tpu", CONFIG], "JOB_NAME is not set; for example: export JOB_NAME=lclm-16x"),
        (["gke.sh", "cpu", CONFIG], "say tpu or gpu, not cpu"),
        (["skypilot.sh", "gpu"], "name a configuration"),
        (["tpu_vm.sh", CONFIG], "JOB_NAME is not set"),
        (["slurm.sh", "configs/none.yaml"], "cannot read configs/none.yaml"),
    ],
)
def test_what_is_missing_is_named(arguments, words):
    done = launch(*arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_local_starts_again_after_status_75(tmp_path):
    lclm = tmp_path / "lclm"
    lclm.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n[ $(wc -l < {tmp_path}/calls) -ge 3 ] || exit 75\n')
    lclm.chmod(0o755)
    done = launch("local.sh", CONFIG, PATH=f"{tmp_path}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().splitlines() == [f"train {CONFIG}"] * 3
    (tmp_path / "calls").unlink()
    assert launch("local.sh", CONFIG, PATH=f"{tmp_path}:/usr/bin:/bin", LCLM_MAX_RESTARTS="1").returncode == 75


def test_no_secrets_in_the_files():
    for path in LAUNCH.rglob("*"):
        if path.is_file():
            assert not re.search(r"(token|secret|password|api_key)\s*[:=]\s*\S", path.read_text(), re.IGNORECASE), path
