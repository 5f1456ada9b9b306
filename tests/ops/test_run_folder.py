import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lclm_jax.cli.main import cli
from lclm_jax.config import load_config
from lclm_jax.errors import LclmError
from lclm_jax.ops.run_folder import locked, own_run

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
