"""Peak memory of an import, of a start from one, and of an export: measured in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("memory.py")


def run(action, folder):
    command = [sys.executable, str(SCRIPT), action, str(folder), "small"]
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Folder of an LCLM of 12 + 12 layers, bfloat16."""
    folder = tmp_path_factory.mktemp("memory")
    run("make-source", folder)
    return folder


@pytest.mark.slow
def test_import_holds_few_layers(source):
    found = json.loads(run("import", source))
    assert found["peak"] - found["before"] < 5 * found["layer"], found
    table = source / "import" / "decoder" / "config.json"
    assert json.loads(table.read_text())["vocab_size"] % 128 == 0


@pytest.mark.slow
def test_starting_from_imports_holds_few_layers_beside_the_parameters(source):
    found = json.loads(run("start", source))
    assert found["parameters"] > 500e6
    assert found["peak"] - found["before"] - found["parameters"] < 5 * found["layer"], found


@pytest.mark.slow
def test_export_holds_a_small_part_of_the_parameters(tmp_path):
    run("make-checkpoint", tmp_path)
    found = json.loads(run("export", tmp_path))
    assert found["peak"] - found["before"] < found["parameters"] / 2, found
