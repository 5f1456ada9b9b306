"""Launchers: what they would run, the manifests against published schemas, the shell against shellcheck."""

import base64
import importlib.util
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
    "TPU_BUCKET": "bucket", "SKY_BUCKET": "gs://bucket", "RAY_WORKERS": "4", "RAY_ADDRESS": "http://head:8265",
}  # fmt: skip
SKY = {name: VARIABLES[name] for name in ("JOB_NAME", "IMAGE", "SKY_BUCKET")} | {"SKY_ACCELERATORS": "H100:8"}
STARTED = sorted(path.name for path in LAUNCH.glob("*.sh") if path.name != "common.sh")
SHELL = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("setup/*.sh"), LAUNCH / "lclm.sbatch"])


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


@pytest.mark.parametrize(
    "script",
    [path.name for path in SHELL if path.parent == LAUNCH and path.suffix == ".sh" and path.name != "common.sh"],
)
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


def gke(kind, *arguments, **variables):
    """(JobSet, its Job, pod specification, container of the run) of a dry run, valid against the schemas."""
    done = launch("gke.sh", "--dry-run", kind, *(arguments or ARGUMENTS), **VARIABLES | variables)
    assert done.returncode == 0, done.stderr
    jobset = validate("jobset", done.stdout)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    return jobset, job, pod, container


def environment_of(container):
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_gke(kind):
    jobset, job, pod, container = gke(kind)
    assert container["args"] == ["train", *ARGUMENTS]
    assert pod["terminationGracePeriodSeconds"] == 600
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 10
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    # An error fails the job at once; 75 and disruptions start the pod again and count nowhere; a crash restarts all.
    rules = job["podFailurePolicy"]["rules"]
    assert [one["action"] for one in rules] == ["FailJob", "Ignore", "Ignore"]
    assert [one["onExitCodes"]["values"] for one in rules[:2]] == [[1, 2], [75]]
    assert rules[2]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    attempt = {"fieldRef": {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/restart-attempt']"}}
    assert environment_of(container)["LCLM_RESTARTS"] == attempt
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi" if kind == "tpu" else "64Gi"}
    assert pod.get("hostNetwork", False) == (kind == "tpu") and "priorityClassName" not in pod


TPUS = {
    "v5e": ("tpu-v5-lite-podslice", "16x16", 64),
    "v5p": ("tpu-v5p-slice", "4x4x4", 16),
    "v6e": ("tpu-v6e-slice", "16x16", 64),
    "tpu7x": ("tpu7x", "4x4x8", 32),
}


@pytest.mark.parametrize("kind", TPUS)
def test_slices_of_each_tpu(kind):
    accelerator, topology, hosts = TPUS[kind]
    shape = {"GKE_TPU_ACCELERATOR": accelerator, "GKE_TPU_TOPOLOGY": topology, "GKE_HOSTS": ""}
    _, job, pod, container = gke("tpu", **shape)
    assert (job["completions"], container["resources"]["limits"]["google.com/tpu"]) == (hosts, 4)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    assert pod["dnsPolicy"] == "ClusterFirstWithHostNet"
    done = launch("gke.sh", "--dry-run", "tpu", CONFIG, **VARIABLES | shape | {"GKE_HOSTS": "7"})
    assert done.returncode == 2 and f"{hosts} hosts of 4, not GKE_HOSTS=7" in done.stderr


def test_a3_mega_has_the_daemon_and_networks_of_tcpxo():
    _, job, pod, container = gke("gpu")
    (daemon,) = pod["initContainers"]
    assert daemon["restartPolicy"] == "Always", "a sidecar ends with the run"
    assert daemon["image"].endswith("/tcpgpudmarxd-dev:v1.0.21") and "privileged" not in daemon["securityContext"]
    assert {one["mountPath"] for one in daemon["volumeMounts"]} == {"/usr/local/nvidia", "/hostsysfs", "/hostprocsysfs"}
    annotations = job["template"]["metadata"]["annotations"]
    interfaces = json.loads(annotations["networking.gke.io/interfaces"])
    assert [one["network"] for one in interfaces] == ["default", *(f"vpc{number}" for number in range(1, 9))]
    devices = yaml.safe_load(annotations["devices.gke.io/container.tcpxo-daemon"])
    assert len(devices) == 11 and {"path": "/dev/dmabuf_import_helper"} in devices
    variables = environment_of(container)
    assert variables["NCCL_FASTRAK_LLCM_DEVICE_DIRECTORY"] == "/dev/aperture_devices"
    assert kubernetes(container["command"][2]) == 'source $NCCL_LIB_DIR/nccl-env-profile.sh && exec lclm "$@"'
    assert container["securityContext"] == {"runAsUser": 0, "capabilities": {"add": ["IPC_LOCK"]}}
    assert "/dev/aperture_devices" in {one["mountPath"] for one in container["volumeMounts"]}


@pytest.mark.parametrize("accelerator", ["nvidia-h200-141gb", "nvidia-b200"])
def test_a3_ultra_and_a4_have_gib(accelerator):
    _, job, pod, container = gke("gpu", GKE_GPU_ACCELERATOR=accelerator)
    interfaces = json.loads(job["template"]["metadata"]["annotations"]["networking.gke.io/interfaces"])
    assert [one["network"] for one in interfaces] == ["default", "gvnic-1", *(f"rdma-{number}" for number in range(8))]
    assert "set_nccl_env.sh" in container["command"][2] and "initContainers" not in pod
    assert {"name": "gib", "hostPath": {"path": "/home/kubernetes/bin/gib"}} in pod["volumes"]
    assert pod["nodeSelector"]["cloud.google.com/gke-accelerator"] == accelerator


def test_the_command_of_a_gpu_pod_passes_its_arguments_on():
    _, _, _, container = gke("gpu", CONFIG, *AWKWARD)
    command = [kubernetes(one) for one in (*container["command"], *container["args"])]
    script = command[2].replace("source $NCCL_LIB_DIR/nccl-env-profile.sh && exec lclm", "printf '%s\\0'")
    done = subprocess.run([*command[:2], script, *command[3:]], capture_output=True, text=True, check=True)
    assert done.stdout.split("\0")[:-1] == ["train", CONFIG, *AWKWARD]


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_what_a_cluster_may_ask_for(kind):
    asked = {"GKE_QUEUE": "lclm", "GKE_QUEUE_PRIORITY": "lclm-long", "GKE_PRIORITY": "high", "GKE_SPOT": "1",
             "GKE_RESERVATION": "mine", "GKE_LOCAL_DISK": "1", "GKE_HOST_NETWORK": "1", "GKE_SHM": "100Gi",
             "LCLM_PREFLIGHT": "1", "LCLM_RESUME": "never", "LCLM_MAX_RESTARTS": "3"}  # fmt: skip
    jobset, job, pod, container = gke(kind, **asked)
    assert jobset["metadata"]["labels"] == {
        "kueue.x-k8s.io/queue-name": "lclm",
        "kueue.x-k8s.io/priority-class": "lclm-long",
    }
    assert jobset["spec"]["suspend"] and jobset["spec"]["failurePolicy"]["maxRestarts"] == 3
    assert pod["priorityClassName"] == "high"
    assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["nodeSelector"]["cloud.google.com/reservation-name"] == "mine"
    assert "cloud.google.com/gke-spot" in {one["key"] for one in pod["tolerations"]}
    local = {one["name"]: one for one in pod["volumes"]}["local"]["hostPath"]
    assert local == {"path": "/mnt/stateful_partition/kube-ephemeral-ssd/lclm", "type": "DirectoryOrCreate"}
    assert {"name": "local", "mountPath": "/local"} in container["volumeMounts"]
    variables = environment_of(container)
    assert (variables["LCLM_PREFLIGHT"], variables["LCLM_RESUME"]) == ("1", "never")
    if kind == "gpu":  # pods on the network of the host are given no interfaces, and reach the devices themselves
        assert container["securityContext"]["privileged"]
        assert "networking.gke.io/interfaces" not in job["template"]["metadata"]["annotations"]


def test_where_a_run_lies_on_gke():
    _, job, pod, container = gke("tpu", GKE_CLAIM="", GKE_BUCKET="bucket")
    csi = {one["name"]: one for one in pod["volumes"]}["runs"]["csi"]
    assert csi["driver"] == "gcsfuse.csi.storage.gke.io" and csi["volumeAttributes"]["bucketName"] == "bucket"
    assert job["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    _, _, pod, container = gke("gpu", CONFIG, "--set", "run_dir=gs://bucket/runs/x", GKE_CLAIM="")
    assert "runs" not in {one["name"] for one in pod["volumes"]} and container["workingDir"] == "/tmp"
    for variables, words in (({"GKE_CLAIM": ""}, "GKE_CLAIM is not set"), ({"GKE_BUCKET": "b"}, "are both set")):
        done = launch("gke.sh", "--dry-run", "gpu", CONFIG, **VARIABLES | variables)
        assert done.returncode == 2 and words in done.stderr


def test_the_queue_of_kueue_is_what_jobs_name():
    documents = list(yaml.safe_load_all((LAUNCH / "gke" / "kueue.yaml").read_text()))
    for document in documents:
        validate("kueue", yaml.safe_dump(document))
    by_kind = {document["kind"]: document for document in documents}
    flavours = by_kind["ClusterQueue"]["spec"]["resourceGroups"][0]["flavors"]
    assert [one["name"] for one in flavours] == [by_kind["ResourceFlavor"]["metadata"]["name"]]
    assert by_kind["LocalQueue"]["spec"]["clusterQueue"] == by_kind["ClusterQueue"]["metadata"]["name"]
    assert by_kind["ResourceFlavor"]["spec"]["nodeLabels"].items() <= gke("tpu")[2]["nodeSelector"].items()


def test_conditions_in_a_template():
    spec = importlib.util.spec_from_file_location("render", LAUNCH / "render.py")
    render = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(render)
    text = "a\n  # if X\nb ${X}\n  # if Y=1|2\nc\n  # end\n# end\n# if Z\nd ${NOT_SET}\n# end\n"
    assert render.render(text, {"X": "x", "Y": "2", "Z": ""}) == "a\nb x\nc\n"
    assert render.render(text, {"Y": "2"}) == "a\n"
    for broken in ("# if X\n", "# end\n"):
        with pytest.raises(ValueError, match="without its"):
            render.render(broken, {})


def test_what_a_job_is_told_about_resuming_is_checked():
    for script in ("gke.sh gpu", "skypilot.sh gpu", "slurm.sh", "xpk.sh", "tpu_vm.sh", "ray.sh"):
        name, *kind = script.split()
        done = launch(name, "--dry-run", *kind, CONFIG, **VARIABLES, SKY_ACCELERATORS="H100:8", LCLM_RESUME="perhaps")
        assert done.returncode == 2 and "LCLM_RESUME=perhaps is none of required, auto, never" in done.stderr, script


def test_the_schemas_notice_a_misspelt_key():
    text = launch("gke.sh", "--dry-run", "tpu", *ARGUMENTS, **VARIABLES).stdout
    for right, wrong in (("failurePolicy", "failPolicy"), ("backoffLimit", "backOffLimit"), ("mountPath", "path")):
        with pytest.raises(AssertionError):
            validate("jobset", text.replace(right, wrong))
    text = launch("skypilot.sh", "--dry-run", "gpu", *ARGUMENTS, **VARIABLES, SKY_ACCELERATORS="H100:8").stdout
    with pytest.raises(AssertionError):
        validate("skypilot", text.replace("num_nodes", "nodes"))


def test_skypilot_chooses_machines_and_network():
    task = validate("skypilot", launch("skypilot.sh", "--dry-run", "gpu", CONFIG, **SKY).stdout)
    resources = task["resources"]
    assert (resources["use_spot"], resources["network_tier"], "infra" in resources) == (True, "best", False)
    assert resources["job_recovery"]["max_restarts_on_errors"] == 0, "an error is no reason to start again"
    asked = {"SKY_SPOT": "0", "SKY_NETWORK": "standard", "SKY_INFRA": "aws", "LCLM_PREFLIGHT": "1"}
    task = validate("skypilot", launch("skypilot.sh", "--dry-run", "gpu", CONFIG, **SKY, **asked).stdout)
    resources = task["resources"]
    assert (resources["use_spot"], resources["network_tier"], resources["infra"]) == (False, "standard", "aws")
    assert task["envs"]["LCLM_PREFLIGHT"] == "1"
    on_bucket = ["--set", "run_dir=gs://bucket/runs/x"]
    task = launch("skypilot.sh", "--dry-run", "tpu", CONFIG, *on_bucket, **SKY | {"SKY_BUCKET": ""}).stdout
    assert "file_mounts" not in validate("skypilot", task) and yaml.safe_load(task)["resources"]["infra"] == "gcp"


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


def test_xpk_on_gpus():
    variables = VARIABLES | {"XPK_TPU_TYPE": "", "XPK_DEVICE_TYPE": "h100-mega-80gb-8", "XPK_NODES": "16"}
    asked = {"XPK_PRIORITY": "high", "LCLM_PREFLIGHT": "1", "LCLM_MAX_RESTARTS": "7"}
    done = launch("xpk.sh", "--dry-run", CONFIG, "a b", **variables, **asked)
    words = shell_words(done.stdout.removeprefix("+ "))
    assert {"--device-type=h100-mega-80gb-8", "--num-nodes=16", "--priority=high", "--max-restarts=7"} <= set(words)
    assert "--env=LCLM_PREFLIGHT=1" in words and not any(word.startswith("--tpu-type") for word in words)
    # What the pod makes of the command: the address as lclm reads it, and the arguments.
    pod = {"PATH": os.environ["PATH"], "JAX_COORDINATOR_ADDRESS": "host", "JAX_COORDINATOR_PORT": "6002"}
    pod |= {"NNODES": "16", "NODE_RANK": "3"}
    script = words[-1].removeprefix("--command=").replace("lclm train", "show train")
    show = "show() { printf '%s\\0' $JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID \"$@\"; }\n"
    done = subprocess.run(["bash", "-c", show + script], capture_output=True, text=True, env=pod, check=True)
    assert done.stdout.split("\0")[:-1] == ["host:6002", "16", "3", "train", CONFIG, "a b"]


@pytest.fixture
def worker(fake):
    """``worker(mounted, *arguments, **variables)``: what a worker of a TPU VM does with the remote command."""

    def run(mounted, *arguments, **variables):
        done = launch("tpu_vm.sh", "--dry-run", CONFIG, *arguments, **VARIABLES | variables)
        assert done.returncode == 0, done.stderr
        (ssh,) = [line for line in done.stdout.splitlines() if "tpu-vm ssh" in line]
        (remote,) = [word for word in shell_words(ssh.removeprefix("+ ")) if word.startswith("--command=")]
        for name in ("sudo", "gcsfuse", "gcloud"):
            fake(name)
        fake("mountpoint", f"exit {0 if mounted else 1}")
        command = ["bash", "-c", remote.removeprefix("--command=")]
        done = subprocess.run(command, env=fake.environment, capture_output=True, text=True)
        return done, fake.calls("sudo")

    return run


def test_workers_of_tpu_vms_mount_the_bucket_and_log_in(worker):
    done, calls = worker(True, IMAGE="us-docker.pkg.dev/project/lclm:1", LCLM_PREFLIGHT="1")
    assert done.returncode == 0, done.stderr
    assert calls[0] == ["gcloud", "auth", "configure-docker", "us-docker.pkg.dev", "--quiet"]
    docker = calls[-1]
    assert {"--volume=/mnt/lclm-runs:/runs", "--workdir=/runs", "--ulimit=memlock=-1", "--shm-size=16g"} <= set(docker)
    assert {"--env=LCLM_RESTARTS=0", "--env=LCLM_PREFLIGHT=1"} <= set(docker)
    assert docker[-3:] == ["us-docker.pkg.dev/project/lclm:1", "train", CONFIG]


def test_workers_refuse_storage_that_is_not_mounted(worker):
    done, calls = worker(False)
    assert done.returncode == 2 and "is not mounted, so the run would start anew there" in done.stderr
    assert ["gcsfuse", "--implicit-dirs", "-o", "allow_other", "bucket", "/mnt/lclm-runs"] in calls
    assert not any("docker" in call and "run" in call for call in calls)
    done, calls = worker(False, TPU_BUCKET="", TPU_RUNS="/mnt/filestore")
    assert done.returncode == 2 and "/mnt/filestore is not mounted" in done.stderr


def test_a_run_on_a_bucket_needs_no_mount(worker):
    done, calls = worker(False, "--set", "run_dir=gs://bucket/runs/x", TPU_BUCKET="")
    assert done.returncode == 0 and not any(word.startswith("--volume") for word in calls[-1])
    done = launch("tpu_vm.sh", "--dry-run", CONFIG, **VARIABLES | {"TPU_BUCKET": ""})
    assert done.returncode == 2 and "the workers' own disks go with them" in done.stderr


def test_a_new_slice_has_to_find_the_folder_of_the_run(fake):
    """The second start, after a preemption, says that it is one."""
    ssh = f"""*ssh*) echo >> '{fake.environment["PATH"].split(":")[0]}/starts';
        (($(wc -l < '{fake.environment["PATH"].split(":")[0]}/starts') > 1)) || exit 255;;"""
    fake("gcloud", f'case "$*" in *describe*) echo ACTIVE;; {ssh} esac')
    assert launch("tpu_vm.sh", CONFIG, **VARIABLES, **fake.environment).returncode == 0
    starts = [word for call in fake.calls("gcloud") for word in call if word.startswith("--command=")]
    assert [re.findall(r"LCLM_RESTARTS=(\d)", start) for start in starts] == [["0"], ["1"]]


def test_whole_nodes_and_containers_on_slurm(fake, tmp_path):
    done = launch("slurm.sh", "--dry-run", CONFIG, LCLM_NODES="32", SBATCH_ARGS="--time=1:00:00")
    assert "+ sbatch --nodes=32 --exclusive --mem=0 --gpus-per-node=8 --time=1:00:00 " in done.stdout
    missing = launch("slurm.sh", "--dry-run", CONFIG, LCLM_CONTAINER=f"{tmp_path}/none.sqsh")
    assert missing.returncode == 2 and "enroot import -o" in missing.stderr
    fake("srun")
    container = {"LCLM_CONTAINER": "registry#lclm:1", "LCLM_MOUNTS": "/shared:/shared"}
    assert sbatch_script(fake, **container, SLURM_TASKS_PER_NODE="8(x32)", SLURM_GPUS_ON_NODE="8")[0] == 0
    here = os.getcwd()
    assert fake.calls("srun")[0][:7] == [
        "--kill-on-bad-exit=0", "--cpu-bind=cores", "--gpu-bind=none", "--container-image=registry#lclm:1",
        "--no-container-mount-home", f"--container-workdir={here}", f"--container-mounts={here}:{here},/shared:/shared",
    ]  # fmt: skip
    assert sbatch_script(fake, SLURM_TASKS_PER_NODE="1(x32)")[0] == 0
    assert fake.calls("srun")[1][:3] == ["--kill-on-bad-exit=0", "--cpu-bind=none", "lclm"]


def test_nodes_are_looked_at_first(fake):
    fake("srun", '[[ "$*" != *nvidia-smi* ]] || exit 1')
    status, _ = sbatch_script(fake, LCLM_PREFLIGHT="1", SLURM_GPUS_ON_NODE="8")
    assert status == 1 and len(fake.calls("srun")) == 1, "the run does not begin"
    fake("srun")
    assert sbatch_script(fake, LCLM_PREFLIGHT="1", SLURM_GPUS_ON_NODE="8")[0] == 0
    assert [call[0] for call in fake.calls("srun")[1:]] == ["--ntasks-per-node=1", "--kill-on-bad-exit=0"]


@pytest.mark.parametrize("name", ["aws-efa", "azure-ndv5", "rocm"])
def test_files_for_nodes_of_other_clouds_set_an_environment_alone(name):
    done = subprocess.run(["bash", "-euc", f"source {LAUNCH}/setup/{name}.sh; env"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert {"aws-efa": "FI_PROVIDER=efa", "azure-ndv5": "NCCL_IB_PCI", "rocm": "/opt/rocm/lib"}[name] in done.stdout


def test_ray_on_a_cluster():
    done = launch("ray.sh", "--dry-run", CONFIG, *AWKWARD, **VARIABLES, RAY_GPUS="4", LCLM_PREFLIGHT="1")
    words = shell_words(done.stdout.removeprefix("+ "))
    assert words[:7] == ["ray", "job", "submit", "--address", "http://head:8265", "--submission-id", "lclm-16x"]
    assert json.loads(words[words.index("--runtime-env-json") + 1]) == {"env_vars": {"LCLM_PREFLIGHT": "1"}}
    driver = words[words.index("--") + 1 :]
    assert driver[:4] == ["python", "ray_job.py", "--workers", "4"] and driver[-3:-1] == ["--gpus", "4"]
    assert json.loads(base64.b64decode(driver[-1])) == [CONFIG, *AWKWARD]
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", driver[-1]), "nothing that a shell would change"


def test_a_job_that_ray_took_without_an_answer_is_not_submitted_twice(fake):
    silent, known = 'echo "Connection timed out" >&2; exit 1', 'echo "Job lclm-16x already exists." >&2; exit 1'
    fake("ray", f"if ((n < 2)); then {silent}; fi; {known}")
    done = launch("ray.sh", CONFIG, **VARIABLES, **fake.environment)
    assert done.returncode == 0 and len(fake.calls("ray")) == 2
    assert launch("ray.sh", CONFIG, **VARIABLES, **fake.environment).returncode == 1, "another job has the name"


@pytest.mark.parametrize("kind", ["GPUS", "TPUS"])
def test_ray_on_kubernetes(kind):
    asked = {
        "RAY_KUBERNETES": "1",
        "RAY_NODE": "pool=h100",
        "RAY_CLAIM": "lclm-runs",
        f"RAY_{kind}": "4",
        "RAY_QUEUE": "q",
    }
    done = launch("ray.sh", "--dry-run", CONFIG, **VARIABLES, **asked)
    job = validate("rayjob", done.stdout)
    assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "q"} and job["spec"]["suspend"]
    assert job["spec"]["backoffLimit"] == 0 and job["spec"]["entrypoint"].startswith(
        "python /opt/lclm/launch/ray/ray_job.py"
    )
    (workers,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == 4
    pod = workers["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"][{"GPUS": "nvidia.com/gpu", "TPUS": "google.com/tpu"}[kind]] == 4
    assert container["securityContext"]["capabilities"] == {"add": ["IPC_LOCK"]}
    assert pod["nodeSelector"] == {"pool": "h100"} and {one["name"] for one in pod["volumes"]} == {"runs", "shm"}
    done = launch("ray.sh", "--dry-run", CONFIG, **VARIABLES, **asked | {"RAY_CLAIM": ""})
    assert done.returncode == 2 and "RAY_CLAIM is not set" in done.stderr


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
    lclm.write_text(
        f'#!/bin/sh\necho "$LCLM_RESTARTS $@" >> {tmp_path}/calls\n[ $(wc -l < {tmp_path}/calls) -ge 3 ] || exit 75\n'
    )
    lclm.chmod(0o755)
    done = launch("local.sh", CONFIG, PATH=f"{tmp_path}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().splitlines() == [f"{number} train {CONFIG}" for number in range(3)]
    (tmp_path / "calls").unlink()
    assert launch("local.sh", CONFIG, PATH=f"{tmp_path}:/usr/bin:/bin", LCLM_MAX_RESTARTS="1").returncode == 75


AWKWARD = [
    "a b",
    "it's",
    'say "so"',
    "two\nlines",
    "$HOME",
    "$(id)",
    "`id`",
    "a$$b",
    "k=v=w",
    "",
    "-",
    "é ✓ 😀",
    "a\\b",
    "*",
    "#x",
]
"""Arguments that a shell, YAML or Kubernetes might read as something else."""


@pytest.fixture
def fake(tmp_path):
    """``fake(name, script)``: a program on PATH; ``fake.calls(name)``: the arguments of its calls."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(name, script="exit 0"):
        log = f"""printf '%s\\0' "$@" >> '{folder}/{name}.calls'; printf '\\0' >> '{folder}/{name}.calls'"""
        count = f"n=$(tr -cd '\\n' < '{folder}/{name}.count' | wc -c)"
        text = f"#!/bin/bash\n{log}\necho >> '{folder}/{name}.count'\n{count}\n{script}\n"
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)

    def calls(name):
        path = folder / f"{name}.calls"
        return [call.split("\0") for call in path.read_text().split("\0\0")[:-1]] if path.exists() else []

    make.calls = calls
    make.environment = {"PATH": f"{folder}:/usr/bin:/bin", "LCLM_RETRY_SECONDS": "0"}
    return make


def test_arguments_reach_the_program_as_they_are(fake):
    for name in ("lclm", "sbatch", "gcloud"):
        fake(name, "echo ACTIVE" if name == "gcloud" else "exit 0")
    settings = [one for one in AWKWARD if one]
    assert launch("local.sh", CONFIG, *settings, **fake.environment).returncode == 0
    assert fake.calls("lclm") == [["train", CONFIG, *settings]]
    assert launch("slurm.sh", CONFIG, *settings, **fake.environment).returncode == 0
    assert fake.calls("sbatch")[0][1:] == [CONFIG, *settings]
    done = launch("tpu_vm.sh", CONFIG, *settings, **VARIABLES, **fake.environment)
    assert done.returncode == 0, done.stderr
    (ssh,) = [call for call in fake.calls("gcloud") if "ssh" in call]
    (remote,) = [one.removeprefix("--command=") for one in ssh if one.startswith("--command=")]
    for name in ("sudo", "gcsfuse", "mountpoint"):
        fake(name)
    subprocess.run(["bash", "-c", remote], env=fake.environment, check=True)
    assert fake.calls("sudo")[-1][-len(settings) :] == settings


def shell_words(text):
    """What bash makes of a command line."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {text}"], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def kubernetes(argument):
    """What Kubernetes makes of an argument: ``$$`` is a dollar sign, ``$(NAME)`` a variable."""
    return re.sub(r"\$\$|\$\((\w+)\)", lambda found: "EXPANDED" if found[1] else "$", argument)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_arguments_in_manifests_stay_what_they_are(locale):
    awkward = [*AWKWARD, "\x7f", "\u2028", "\x85", "no", "1e3"]
    done = launch("gke.sh", "--dry-run", "gpu", CONFIG, *awkward, **VARIABLES, LC_ALL=locale)
    assert done.returncode == 0, done.stderr
    pod = validate("jobset", done.stdout)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert [kubernetes(one) for one in pod["containers"][0]["args"]] == ["train", CONFIG, *awkward]
    done = launch("skypilot.sh", "--dry-run", "gpu", CONFIG, *AWKWARD, **SKY, LC_ALL=locale)
    command = validate("skypilot", done.stdout)["run"].splitlines()[-1]
    assert shell_words(command) == ["lclm", "train", CONFIG, *AWKWARD]
    done = launch("xpk.sh", "--dry-run", CONFIG, *AWKWARD, **VARIABLES, LC_ALL=locale)
    *_, last = shell_words(done.stdout.removeprefix("+ "))
    assert shell_words(last.removeprefix("--command=")) == ["lclm", "train", CONFIG, *AWKWARD]


def test_names_in_manifests_are_texts():
    done = launch("gke.sh", "--dry-run", "tpu", CONFIG, **{**VARIABLES, "JOB_NAME": "1e3", "IMAGE": 'a:"b" # c'})
    job = yaml.safe_load(done.stdout)
    assert job["metadata"]["name"] == "1e3"
    pod = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == 'a:"b" # c'


@pytest.mark.parametrize(
    ("script", "name", "words"),
    [
        ("gke.sh tpu", "LCLM_16x", "is not a name that the cluster takes: use a-z, 0-9 and -"),
        ("gke.sh gpu", "lclm-", "is not a name that the cluster takes"),
        ("gke.sh tpu", "lclm\nx", "is not a name that the cluster takes"),
        ("gke.sh tpu", "n" * 50, "has 50 characters, and here a name has at most 46; shorten it"),
        ("xpk.sh", "16x", "begin with a letter"),
        ("xpk.sh", "n" * 41, "has 41 characters, and here a name has at most 40"),
        ("tpu_vm.sh", "n" * 64, "has 64 characters, and here a name has at most 63"),
        ("tpu_vm.sh", "a.b", "is not a name that the cluster takes"),
        ("skypilot.sh gpu", "a b", "is not a name that SkyPilot takes"),
        ("ray.sh", "A", "is not a name that the cluster takes"),
    ],
)
def test_names_are_checked_before_anything_is_submitted(script, name, words):
    done = launch(*script.split(), CONFIG, **{**VARIABLES, **SKY, "JOB_NAME": name})
    assert done.returncode == 2 and done.stdout == ""
    assert words in done.stderr or "is not on PATH" in done.stderr
    done = launch(*script.replace(".sh", ".sh --dry-run").split(), CONFIG, **{**VARIABLES, **SKY, "JOB_NAME": name})
    assert done.returncode == 2 and done.stdout == "" and words in done.stderr


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("local.sh", "the program lclm is not on PATH; activate the environment"),
        ("slurm.sh", "the program sbatch is not on PATH; run this on a login node"),
        ("gke.sh gpu", "the program kubectl is not on PATH"),
        ("skypilot.sh gpu", "the program sky is not on PATH"),
        ("xpk.sh", "the program xpk is not on PATH"),
        ("tpu_vm.sh", "the program gcloud is not on PATH"),
        ("ray.sh", "the program ray is not on PATH; pip install 'ray[default]'"),
    ],
)
def test_a_missing_program_is_named(script, words, tmp_path):
    for name in ("bash", "env", "dirname", "python3", "xargs", "sed"):
        (tmp_path / name).symlink_to(shutil.which(name, path="/usr/bin:/bin"))
    done = launch(*script.split(), CONFIG, **{**VARIABLES, **SKY, "PATH": str(tmp_path)})
    assert done.returncode == 2 and words in done.stderr


def test_options_of_the_schedulers_may_be_quoted(fake):
    options = "--nodes=2\n--comment='a b' --export=\"X=it's\" "
    done = launch("slurm.sh", "--dry-run", CONFIG, SBATCH_ARGS=options)
    assert shell_words(done.stdout.removeprefix("+ "))[1:4] == ["--nodes=2", "--comment=a b", "--export=X=it's"]
    done = launch("xpk.sh", "--dry-run", CONFIG, **VARIABLES, XPK_ARGS="--project='my project'")
    assert "--project=my project" in shell_words(done.stdout.removeprefix("+ "))
    for variable in ("SBATCH_ARGS", "LCLM_SRUN_ARGS"):
        done = launch("slurm.sh", "--dry-run", CONFIG, **{variable: "--comment='open"})
        assert done.returncode == 2 and "a quote is not closed" in done.stderr and done.stdout == ""


def test_a_slurm_controller_that_is_away_is_asked_again(fake):
    fake("sbatch", 'if ((n < 3)); then echo "Unable to contact slurm controller (connect failure)" >&2; exit 1; fi')
    fake("squeue")
    done = launch("slurm.sh", CONFIG, **fake.environment)
    assert done.returncode == 0 and len(fake.calls("sbatch")) == 3 and not fake.calls("squeue")
    fake("sbatch", 'echo "Unable to contact slurm controller (connect failure)" >&2; exit 1')
    (tmp := Path(fake.environment["PATH"].split(":")[0]) / "sbatch.calls").unlink()
    assert launch("slurm.sh", CONFIG, **fake.environment, LCLM_SUBMIT_TRIES="2").returncode == 1
    assert len(fake.calls("sbatch")) == 2
    tmp.unlink()
    fake("sbatch", 'echo "Invalid partition name specified" >&2; exit 1')
    assert launch("slurm.sh", CONFIG, **fake.environment).returncode == 1
    assert len(fake.calls("sbatch")) == 1, "a refusal stays one"


@pytest.mark.parametrize("taken", [True, False])
def test_a_job_that_slurm_took_without_an_answer_is_not_submitted_twice(fake, taken):
    silent = 'echo "Socket timed out on send/recv operation" >&2; exit 1'
    fake("sbatch", f"if ((n < 2)); then {silent}; fi")
    row = f'echo "77 $(date +%Y-%m-%dT%H:%M:%S) {LAUNCH}/lclm.sbatch {CONFIG}"' if taken else "exit 0"
    fake("squeue", row)
    done = launch("slurm.sh", CONFIG, **fake.environment)
    assert done.returncode == 0, done.stderr
    assert len(fake.calls("sbatch")) == (1 if taken else 2)
    assert ("Submitted batch job 77" in done.stdout) == taken


def test_kubernetes_is_asked_again_and_told_the_same(fake):
    fake(
        "kubectl",
        'cat >> "$0.manifests"; if ((n < 3)); then echo "Unable to connect to the server: EOF" >&2; exit 1; fi',
    )
    done = launch("gke.sh", "gpu", CONFIG, **VARIABLES, **fake.environment)
    assert done.returncode == 0, done.stderr
    assert fake.calls("kubectl") == [["apply", "-f", "-"]] * 3
    manifests = Path(fake.environment["PATH"].split(":")[0]) / "kubectl.manifests"
    assert manifests.read_text().count("kind: JobSet") == 3
    fake("kubectl", 'echo "error: validation failed" >&2; exit 1')
    assert launch("gke.sh", "gpu", CONFIG, **VARIABLES, **fake.environment).returncode == 1
    assert len(fake.calls("kubectl")) == 4


def test_a_slice_is_not_deleted_or_asked_for_again_when_google_cloud_is_away(fake):
    away = 'echo "ERROR: Connection aborted" >&2; exit 1'
    describe = f"*describe*) ((n > 3)) || {{ {away}; }}; ((n < 12)) && echo ACTIVE || {{ {away}; }};;"
    fake("gcloud", f'case "$*" in {describe} *ssh*) exit 255;; esac')
    done = launch("tpu_vm.sh", CONFIG, **VARIABLES, **fake.environment)
    assert done.returncode == 2 and "cannot tell whether lclm-16x runs" in done.stderr
    verbs = [word for call in fake.calls("gcloud") for word in call if word in ("create", "delete", "ssh")]
    assert set(verbs) == {"ssh"}


def sbatch_script(fake, **variables):
    """Run the job's own script with fakes; its exit status and standard error."""
    environment = {**fake.environment, "SLURM_JOB_ID": "42", **variables}
    done = subprocess.run([LAUNCH / "lclm.sbatch", CONFIG], capture_output=True, text=True, env=environment)
    return done.returncode, done.stderr


def test_one_task_of_an_array_is_requeued_alone(fake):
    fake("srun", "exit 75")
    fake("squeue", "echo RUNNING")
    fake("scontrol")
    assert sbatch_script(fake, SLURM_ARRAY_JOB_ID="42", SLURM_ARRAY_TASK_ID="3", LCLM_VERB="ablate")[0] == 0
    assert fake.calls("squeue")[0][1] == "--jobs=42_3" and fake.calls("scontrol") == [["requeue", "42_3"]]


def test_a_job_is_requeued_though_the_controller_is_away_for_a_moment(fake):
    fake("srun", "exit 75")
    for name, answer in (("squeue", "echo RUNNING"), ("scontrol", "exit 0")):
        fake(name, f"if ((n < 3)); then echo 'Unable to contact slurm controller' >&2; exit 1; fi; {answer}")
    options = "--container-image='my image' --x"
    assert sbatch_script(fake, LCLM_SRUN_ARGS=options)[0] == 0
    assert fake.calls("scontrol") == [["requeue", "42"]] * 3
    assert fake.calls("srun") == [
        ["--kill-on-bad-exit=0", "--cpu-bind=none", "--container-image=my image", "--x", "lclm", "train", CONFIG]
    ]
    fake("squeue", "exit 1")
    status, errors = sbatch_script(fake, LCLM_SUBMIT_TRIES="2")
    assert status == 75 and "the controller gives no answer: submit the job again" in errors


def dockerfile(name):
    """Instructions of a Dockerfile as (keyword, rest), continued lines joined."""
    text = re.sub(r"^#.*\n", "", (LAUNCH / "docker" / f"{name}.Dockerfile").read_text(), flags=re.MULTILINE)
    return [tuple(line.split(maxsplit=1)) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("name", ["gpu", "tpu"])
def test_images_are_pinned_and_hold_what_launchers_start(name):
    steps = dockerfile(name)
    base = dict(rest.split("=") for keyword, rest in steps if keyword == "ARG")["BASE"]
    assert re.fullmatch(r"python:3\.12\.\d+-slim-[a-z]+", base)
    (install,) = [rest for keyword, rest in steps if keyword == "RUN" and "pip install" in rest]
    assert "-c constraints-py312.txt" in install and "--no-cache-dir" in install
    copied = [rest.split() for keyword, rest in steps if keyword == "COPY"]
    assert all((ROOT / source).exists() for *sources, _ in copied for source in sources)
    assert ["launch/ray/ray_job.py", "./launch/ray/"] in copied, "the entry point of a RayJob"
    (apt,) = [rest for keyword, rest in steps if keyword == "RUN" and "apt-get install" in rest]
    assert "--no-install-recommends" in apt and "rm -rf /var/lib/apt/lists" in apt
    assert steps[-1] == ("ENTRYPOINT", '["lclm"]')
    if name == "gpu":
        assert {"libibverbs1", "ibverbs-providers", "librdmacm1", "libnuma1"} <= set(apt.split())
        assert ("USER", "10001") in steps and "-c constraints-cuda.txt" in install
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored[0] == "*" and all(
        f"!{source.split('/')[0]}" in ignored for *sources, _ in copied for source in sources
    )


def test_the_gpu_image_pins_what_jax_brings():
    pins = (LAUNCH / "docker" / "constraints-cuda.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in pins if not line.startswith("#"))
    jaxlib = re.search(r"^jaxlib==(.*)$", (ROOT / "constraints-py312.txt").read_text(), re.MULTILINE)[1]
    assert any(line.startswith("jax-cuda13-plugin==") and jaxlib.startswith(line.split("==")[1]) for line in pins)
    assert any(line.startswith("nvidia-nccl-cu13==") for line in pins)


def test_no_secrets_in_the_files():
    for path in LAUNCH.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            assert not re.search(r"(token|secret|password|api_key)\s*[:=]\s*\S", path.read_text(), re.IGNORECASE), path
