"""Peak memory of a start from imports and of an export: measured in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("memory.py")


def measured(action, folder):
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    for step in (f"make-{action}", action):
        command = [sys.executable, str(SCRIPT), step, str(folder), "small"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_starting_from_imports_holds_few_layers_beside_the_parameters(tmp_path):
    found = measured("import", tmp_path)
    assert found["parameters"] > 500e6
    assert found["peak"] - found["before"] - found["parameters"] < 5 * found["layer"], found


@pytest.mark.slow
def test_export_holds_a_small_part_of_the_parameters(tmp_path):
    found = measured("export", tmp_path)
    assert found["peak"] - found["before"] < found["parameters"] / 2, found
