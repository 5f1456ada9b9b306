import subprocess
import sys

import pytest

from lclm_jax.errors import LclmError
from lclm_jax.ops.run_folder import locked

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
