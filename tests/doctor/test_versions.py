"""Versions that do not go together, and settings that were left behind."""

import pytest

from lclm_jax.doctor.versions import check_environment, check_versions, installed_versions, nvidia_driver
from lclm_jax.errors import LclmError

GOOD = {"jax": "0.12.0", "jaxlib": "0.12.0", "jax-cuda13-plugin": "0.12.0"}


def test_what_is_installed_here_is_in_order():
    found = check_versions(installed_versions(), None)
    assert found.status == "ok" and found.values["jax"] in found.message


@pytest.mark.parametrize(
    ("changes", "driver", "words"),
    [
        (
            {"jax-cuda13-plugin": "0.11.2"},
            "580.65",
            "would ignore it and compute on the CPU; pip install 'jax-cuda13-p",
        ),
        ({"jax-cuda12-plugin": "0.12.0"}, "580.65", "are both installed; pip uninstall one of them"),
        ({}, "570.86.15", "NVIDIA driver 570.86.15 is too old for jax-cuda13-plugin, which needs 580 or newer"),
        ({"jax": "0.13.0"}, "580.65", "jax 0.13.0 does not go with lclm-jax, which needs <0.13,>=0.10.2"),
    ],
)
def test_a_bad_pair_is_found(changes, driver, words):
    found = check_versions(GOOD | changes, driver)
    assert found.status == "failure" and words in found.message


def test_a_jaxlib_that_this_jax_does_not_take():
    found = check_versions(installed_versions() | {"jaxlib": "0.9.0"}, None)
    assert found.status == "failure" and "jaxlib 0.9.0 does not go with jax, which needs" in found.message


def test_another_libtpu_than_the_tested_one():
    found = check_versions(installed_versions() | {"libtpu": "0.0.1"}, None)
    assert found.status == "warning" and "libtpu 0.0.1 is not the one that this JAX was tested with" in found.message


def test_the_driver_is_read_from_the_kernel_module(tmp_path):
    path = tmp_path / "proc/driver/nvidia/version"
    path.parent.mkdir(parents=True)
    path.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC version: 12\n"
    )
    assert nvidia_driver(tmp_path) == "580.65.06"


def test_flags_and_variables():
    def refuse():
        raise LclmError("XLA does not take XLA_FLAGS (--xla_bad)")

    assert check_environment({"XLA_FLAGS": "--xla_bad"}, refuse).status == "failure"
    left = check_environment({"NCCL_IB_DISABLE": "1", "JAX_DISABLE_JIT": "false"}, lambda: None)
    assert left.status == "warning" and left.message.startswith("NCCL_IB_DISABLE=1 is meant for debugging")
    assert check_environment({"XLA_FLAGS": "--xla_good"}, lambda: None).message == "XLA_FLAGS accepted"
