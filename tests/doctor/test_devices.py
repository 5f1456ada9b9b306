"""Planted faults of devices and links."""

from types import SimpleNamespace

import jax
import pytest
from tests.doctor.test_machine import DEMO, EIGHT_ROWS

from lclm_jax.config import MeshConfig, load_config
from lclm_jax.doctor import collectives, devices
from lclm_jax.doctor.collectives import CollectiveTime, check_collective, expected_rate, measure_collectives
from lclm_jax.doctor.devices import DeviceWork, Present, check_device_work, check_devices
from lclm_jax.parallel import make_mesh

H100 = Present("gpu", "NVIDIA H100 80GB HBM3", 8, 8, 0)


@pytest.mark.parametrize(
    ("present", "expected", "words"),
    [
        ([H100, H100._replace(local=7)], 16, "15 devices, and 16 are expected"),
        ([H100, H100, H100._replace(local=7)], 24, "process 2 has 7, the others 8"),
        ([H100, H100._replace(platform="cpu", kind="cpu")], None, "process 1 has cpu (cpu), process 0 NVIDIA H100"),
        (
            [Present("cpu", "cpu", 1, 8, 0)],
            None,
            "computes on the CPU, and its machine has 8 NVIDIA GPUs; pip install 'l",
        ),
        ([Present("cpu", "cpu", 1, 0, 4)], None, "its machine has 4 TPU chips; pip install 'lclm-jax[tpu]'"),
    ],
)
def test_devices_that_are_lost_or_not_used(present, expected, words):
    found = check_devices(present, expected)
    assert found.status == "failure" and words in found.message


def test_devices_that_are_as_expected():
    assert check_devices([H100, H100], 16).message == "16 NVIDIA H100 80GB HBM3 (gpu) in 2 processes"
    config = load_config(DEMO, ("mesh={replica: 2, fsdp: 8}",))
    assert devices.expected_devices(config, None) == 16 and devices.expected_devices(config, 4) == 4
    assert devices.expected_devices(load_config(DEMO), None) is None


def test_this_machine():
    present = devices.devices_present()
    assert (present.platform, present.local) == ("cpu", 8)


def test_a_mesh_that_does_not_fit():
    found, mesh = devices.check_mesh(load_config(DEMO, (*EIGHT_ROWS, "mesh={fsdp: 3}")))
    assert found.status == "failure" and "takes 3 devices and there are 8" in found.message and mesh.size == 8
    found, _ = devices.check_mesh(load_config(DEMO, (*EIGHT_ROWS, "mesh={tensor: 8, fsdp: 1}")))
    assert found.status == "failure" and "lower mesh.tensor" in found.message
    found, mesh = devices.check_mesh(load_config(DEMO, (*EIGHT_ROWS, "mesh={replica: 2, fsdp: 4}")))
    assert found.status == "ok" and dict(mesh.shape)["replica"] == 2


def test_a_device_that_computes_other_bits_or_slowly():
    work = devices.measure_devices(size=32, repeats=1)
    assert len(work.checksums) == 8 and len(set(work.checksums)) == 1
    assert check_device_work([work], "cpu").status == "ok"
    broken = work._replace(checksums=[*work.checksums[:-1], work.checksums[0] ^ 1])
    found = check_device_work([work, broken], "cpu")
    assert found.status == "failure" and "device 7 of process 1 computes other bits" in found.message
    fast, slow = DeviceWork([700e12] * 2, [1, 1]), DeviceWork([700e12, 400e12], [1, 1])
    found = check_device_work([fast, slow], H100.kind)
    assert found.status == "warning" and "device 1 of process 1 makes 400 TFLOP/s, the others 700" in found.message
    assert check_device_work([DeviceWork([300e12] * 2, [1, 1])], H100.kind).status == "warning"
    assert check_device_work([fast], H100.kind).status == "ok"


def test_collectives_along_each_axis():
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    times = measure_collectives(mesh, payload_bytes=4096)
    assert [(one.kind, one.axis) for one in times] == [
        (kind, axis) for axis in ("replica", "fsdp", "tensor") for kind in ("all-reduce", "all-gather")
    ]
    assert all(one.right and one.devices == 2 and one.expected_bytes_per_s is None for one in times)
    assert all(check_collective([one]).status == "ok" for one in times)


def test_a_wrong_sum_is_noticed(monkeypatch):
    monkeypatch.setattr(jax.lax, "psum", lambda x, axis: x)
    (wrong, gathered) = measure_collectives(make_mesh(MeshConfig(fsdp=8)), payload_bytes=64)
    assert not wrong.right and gathered.right
    found = check_collective([wrong._replace(right=True), wrong])
    assert found.status == "failure" and "wrong result in process 1" in found.message


def test_a_link_that_is_not_used():
    fast = CollectiveTime("all-reduce", "replica", 2, 50_000_000, 1e-3, True, 50e9)
    assert fast.bytes_per_s == pytest.approx(50e9) and check_collective([fast]).status == "ok"
    warned = check_collective([fast, fast._replace(seconds=3e-3)])
    assert warned.status == "warning" and "33% of 50 GB/s" in warned.message
    failed = check_collective([fast._replace(seconds=0.1)])
    assert failed.status == "failure" and "NCCL_DEBUG=INFO" in failed.message


def test_rates_of_data_sheets():
    gpus = [SimpleNamespace(device_kind=H100.kind, process_index=number // 8) for number in range(16)]
    assert expected_rate(gpus[:8]) == 450e9, "NVLink"
    assert expected_rate([gpus[0], gpus[8]]) == 50e9, "one adapter each"
    assert expected_rate(gpus) == 400e9, "eight adapters, shared"
    chips = [
        SimpleNamespace(device_kind="TPU v5p", slice_index=0, coords=(x, y, 0)) for x in range(4) for y in range(4)
    ]
    assert expected_rate(chips) == 2 * 90e9 and expected_rate(chips[:4]) == 90e9
    assert expected_rate([SimpleNamespace(device_kind="cpu")]) is None
    assert collectives.CHIPS["v5p"].dcn_bytes_per_s == 6.25e9
