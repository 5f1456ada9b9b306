import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lclm_jax.cli.main import cli
from lclm_jax.config import load_config
from lclm_jax.errors import LclmError
from lclm_jax.ops.run_folder import check_resume, locked, own_run

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
HOLD = "import sys, pathlib; from lclm_jax.ops.run_folder import locked\nwith locked(pathlib.Path(sys.argv[1])):\n"


def test_a_folder_in_use_is_refused_until_its_process_ends(tmp_path):
    code = HOLD + "    print('held', flush=True)\n    sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(LclmError, match=r"another process is working in .*run; wait"), locked(tmp_path / "run"):
            pass
        other.kill()
    with locked(tmp_path / "run"):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LclmError, match=r"cannot write .*lock: Not a directory"), locked(tmp_path / "file" / "run"):
        pass


def test_a_run_that_makes_nothing_does_not_claim_its_folder(tmp_path):
    settings = ["corpus.kind=folder", "corpus.path=/none", f"run_dir={tmp_path / 'run'}"]
    for command in (["data", "prepare"], ["pipeline"]):
        options = [word for setting in settings for word in ("--set", setting)]
        failed = CliRunner().invoke(cli, [*command, str(DEMO), *options])
        assert "/none names no file to read" in str(failed.exception)
    assert not (tmp_path / "run/config.yaml").exists()
    config = load_config(DEMO, [*settings, "seed=2"])
    with own_run(config, claim=False):
        assert not (tmp_path / "run/config.yaml").exists()
    with own_run(config):
        assert (tmp_path / "run/config.yaml").exists()
    other = load_config(DEMO, [*settings, "seed=3"])
    with pytest.raises(LclmError, match="seed: 2 -> 3"), own_run(other, claim=False):
        pass


@pytest.fixture
def begun(tmp_path):
    """``begun(*events, checkpoints=())``: the configuration of a run whose first stage has these events."""

    def make(*happened, checkpoints=()):
        config = load_config(DEMO, [f"run_dir={tmp_path / 'run'}"])
        folder = tmp_path / "run" / "stages" / next(iter(config.stages))
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        for name in checkpoints:
            (folder / "checkpoints" / name).mkdir()
        (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in happened))
        return config

    return make


def begin(step):
    return {"kind": "begin", "step": step}


def save(step, final=False):
    return {"kind": "save", "step": step, "final": final}


def test_a_restart_needs_the_folder_of_its_run(tmp_path, begun):
    config = begun()
    with pytest.raises(
        LclmError, match=r"--resume required: run_dir=.*run holds no run, so this would start from step 0"
    ):
        check_resume(config, "required")
    with own_run(config):
        pass
    with own_run(config, resume="required"):  # preempted before its first checkpoint
        pass


def test_a_new_run_does_not_go_on_with_an_old_one(begun):
    check_resume(begun(), "never")
    for config in (begun(begin(0)), begun(begin(0), save(3), checkpoints=["3"])):
        with pytest.raises(LclmError, match=r"--resume never: run_dir=.* holds a run"):
            check_resume(config, "never")
        check_resume(config, "auto")


@pytest.mark.parametrize(
    ("happened", "lost"),
    [
        ([begin(0), save(3)], 0),  # it may not have been completed
        ([begin(0), save(3), save(6)], 3),
        ([begin(0), save(3, final=True), {"kind": "stop", "step": 3}], 3),
        ([begin(0), save(3), begin(3)], 3),
        ([begin(0), save(3), {"kind": "save_failed"}, save(4)], 0),
        ([begin(0), save(3), begin(0), save(3)], 0),  # killed twice while it was written
        ([begin(0), save(3), save(6), {"kind": "rewind", "first": 1, "last": 2}, begin(0)], 0),
    ],
)
def test_a_stage_whose_checkpoints_are_gone_does_not_begin_again(begun, happened, lost):
    config = begun(*happened)
    if not lost:
        check_resume(config, "auto")
        return
    with pytest.raises(LclmError, match=rf"had a checkpoint of step {lost}, and .*checkpoints is empty; restore it"):
        check_resume(config, "auto")
    copies = config.train.checkpoint.model_copy(update={"local_dir": "/disk"})
    config = config.model_copy(update={"train": config.train.model_copy(update={"checkpoint": copies})})
    if happened[-1] == begin(3):  # from a copy on a local disk
        check_resume(config, "auto")


def test_the_option_and_the_variable(tmp_path):
    arguments = ["train", str(DEMO), "--set", f"run_dir={tmp_path / 'run'}"]
    for options, environment in (
        ([], {"LCLM_RESUME": "required"}),
        (["--resume", "required"], {"LCLM_RESUME": "auto"}),
        ([], {"LCLM_RESTARTS": "1"}),
        ([], {"SLURM_RESTART_COUNT": "2", "LCLM_RESUME": ""}),
    ):
        failed = CliRunner().invoke(cli, [*arguments, *options], env=environment)
        assert "--resume required: run_dir=" in str(failed.exception)
        assert not (tmp_path / "run").exists()
    assert CliRunner().invoke(cli, arguments, env={"LCLM_RESUME": "maybe"}).exit_code == 2
    for environment in ({"LCLM_RESTARTS": "0"}, {"LCLM_RESTARTS": "3", "LCLM_RESUME": "auto"}):
        failed = CliRunner().invoke(cli, arguments, env=environment)
        assert "has no tokenizer yet" in str(failed.exception)


def test_where_the_weights_come_from_may_change_until_a_stage_begins(begun, tmp_path):
    first = begun()
    later = load_config(DEMO, [f"run_dir={tmp_path / 'run'}", "init.run=/models/other"])
    for config in (first, later):
        with own_run(config):
            pass
    begun(begin(0))
    with pytest.raises(LclmError, match=r"init\.run: '/models/other' -> None"), own_run(first):
        pass
