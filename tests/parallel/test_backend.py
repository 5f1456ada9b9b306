"""What is said when JAX cannot start."""

import os
import subprocess
import sys

import pytest

from lclm_jax.parallel.backend import BackendError, backend_error


@pytest.mark.parametrize(
    ("platform", "words"),
    [
        ("cuda", "JAX_PLATFORMS=cuda asks for a platform that cannot be used here (no such device), found: cpu; cuda"),
        ("gpuu", "JAX_PLATFORMS=gpuu asks for a platform that cannot be used here ("),
    ],
)
def test_a_backend_that_is_not_there_is_one_line(platform, words):
    code = "from lclm_jax.cli import main; main()"
    environment = {**os.environ, "JAX_PLATFORMS": platform, "XLA_FLAGS": ""}
    command = [sys.executable, "-c", code, "bench", "kernels"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert words in done.stderr and "or unset JAX_PLATFORMS" in done.stderr
    assert "Traceback" not in done.stderr


def test_only_errors_of_the_start_are_explained():
    assert backend_error(RuntimeError("Unable to initialize")) is None

    code = compile("def backends():\n    raise AssertionError", "/jax/_src/xla_bridge.py", "exec")
    scope = {}
    exec(code, scope)
    with pytest.raises(AssertionError) as raised:
        scope["backends"]()
    assert isinstance(backend_error(raised.value), BackendError)
