"""What is said when JAX cannot start, and of flags that XLA would end the process on."""

import os
import subprocess
import sys

import pytest
from jax._src import xla_bridge

from lclm_jax.parallel import backend
from lclm_jax.parallel.backend import BackendError, backend_error, check_xla_flags


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


@pytest.fixture
def not_started(monkeypatch):
    """As if no device had been touched."""
    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: False)


def test_a_flag_that_xla_does_not_know_is_named(monkeypatch, not_started):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2 --xla_no_such_flag=1")
    with pytest.raises(BackendError, match=r"XLA does not take XLA_FLAGS \(Unknown flags? .*--xla_no_such_flag=1"):
        check_xla_flags()


def test_simulated_devices_are_not_asked_about(monkeypatch, not_started):
    monkeypatch.setattr(backend.subprocess, "run", lambda *_, **__: pytest.fail("XLA was asked"))
    for flags in ("", "--xla_force_host_platform_device_count=8"):
        monkeypatch.setenv("XLA_FLAGS", flags)
        check_xla_flags()
