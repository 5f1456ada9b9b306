"""The examples run as their readers run them, one after the other; run by ``make test-docs``."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# In this order: the first one writes the export that others read.
EXPECTED = {
    "train_with_a_hook.py": "exported to",
    "own_pooling.py": "the pooling has learned",
    "latents_of_a_document.py": "latents of width 64",
    "compare_plans.py": "v6e:8x8",
    "transformers_with_latents.py": "transformers says",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the examples write."""
    return tmp_path_factory.mktemp("examples")


def test_every_example_is_tried():
    assert {path.name for path in EXAMPLES.glob("*.py")} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_example_runs(name, folder):
    assert EXAMPLES.joinpath(name).read_text().count("\n") <= 60
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("XLA_", "JAX_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    begun = time.monotonic()
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert EXPECTED[name] in done.stdout
    assert time.monotonic() - begun < 120, "meant to take less than a minute on a quiet machine"
    if name == "transformers_with_latents.py":
        theirs, ours = (line.split("says")[1].strip() for line in done.stdout.splitlines()[-2:])
        assert theirs == ours
