"""Standard streams that are closed, full, or know few characters: a message or an answer, never a traceback."""

import os
import subprocess
import sys

import pytest

LCLM = f"{sys.executable} -c 'from lclm_jax.cli import main; main()'"


def shell(command: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", "-c", command.replace("lclm ", f"{LCLM} ")], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        ("lclm generate absent <&-", 1, "standard input is closed, so there is no prompt; give it with --prompt"),
        ("lclm generate absent 0> /dev/null", 1, "the prompt cannot be read"),
        ("lclm generate absent --prompt x >&-", 1, "standard output is closed, so the answer cannot be shown"),
        ("printf '\\377' | lclm generate absent", 1, "the prompt is not UTF-8 text"),
        ("lclm generate absent --prompt $'\\377'", 1, "the prompt holds half a character"),
        ("lclm config show absent.yaml <&- >&-", 1, "absent.yaml"),
        ("lclm config keys train > /dev/full", 1, "No space left on device"),
        ("lclm config keys train <&- >&- 2>&-", 0, ""),
        ("lclm config show absent.yaml <&- >&- 2>&-", 1, ""),
        # What the command opens first must not become the missing stream.
        ("lclm config keys train 2>&- | grep -q optimizer", 0, ""),
    ],
)
def test_streams(command, status, message):
    done = shell(command)
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr
    assert done.returncode == status and message in done.stderr


def test_a_terminal_of_few_characters():
    code = (
        "import sys; from lclm_jax.cli.streams import open_missing_streams; open_missing_streams(); print('h\\u00e9')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}
    )
    assert done.stdout == b"h\\xe9\n", done.stderr


def test_missing_descriptors_are_taken():
    code = (
        "import os; from lclm_jax.cli.streams import open_missing_streams; open_missing_streams();"
        "assert os.open(os.devnull, os.O_RDONLY) > 2 and os.get_inheritable(2); os.write(2, b'x')"
    )
    assert subprocess.run(["bash", "-c", f'{sys.executable} -c "{code}" <&- 2>&-']).returncode == 0
