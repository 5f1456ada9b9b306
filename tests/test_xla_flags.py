"""Flags that XLA would end the process on."""

import pytest
from jax._src import xla_bridge

from lclm_jax import xla_flags
from lclm_jax.errors import LclmError
from lclm_jax.xla_flags import check_xla_flags


@pytest.fixture
def not_started(monkeypatch):
    """As if no device had been touched."""
    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: False)


def test_a_flag_that_xla_does_not_know_is_named(monkeypatch, not_started):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2 --xla_no_such_flag=1")
    with pytest.raises(LclmError, match=r"XLA does not take XLA_FLAGS \(Unknown flags? .*--xla_no_such_flag=1"):
        check_xla_flags()


def test_simulated_devices_are_not_asked_about(monkeypatch, not_started):
    monkeypatch.setattr(xla_flags.subprocess, "run", lambda *_, **__: pytest.fail("XLA was asked"))
    for flags in ("", "--xla_force_host_platform_device_count=8"):
        monkeypatch.setenv("XLA_FLAGS", flags)
        check_xla_flags()
