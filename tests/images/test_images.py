"""What is in the images: the libraries of Debian's packages, beside those that NCCL opens when it runs.

Run by `make test-images`: it fetches the packages, and NCCL's wheel.
"""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

DOCKER = Path(__file__).parents[2] / "launch" / "docker"
FROM_DRIVER = {"libcuda", "libnvidia-ml", "libcudart"}
"""Of NVIDIA's driver and of CUDA's own wheel."""


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """Names of the shared libraries in the packages that the GPU image installs, such as ``libibverbs.so.1``."""
    assert shutil.which("apt-get") and shutil.which("dpkg-deb"), "apt-get and dpkg-deb are needed to look at packages"
    folder = tmp_path_factory.mktemp("packages")
    text = (DOCKER / "gpu.Dockerfile").read_text()
    packages = re.search(r"--no-install-recommends ([^\\\n]+)", text)[1].split()
    wanted = [name for name in packages if name.startswith("lib") or name == "ibverbs-providers"]
    subprocess.run(["apt-get", "download", "-q", *wanted], cwd=folder, check=True, capture_output=True)
    names = set()
    for package in folder.glob("*.deb"):
        listed = subprocess.run(["dpkg-deb", "-c", package], check=True, capture_output=True, text=True).stdout
        names |= {Path(name).name for name in re.findall(r" \./(\S+\.so[.\d]*)(?: |$)", listed, re.MULTILINE)}
    return names


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Names of the libraries that NCCL of the pinned wheel opens by name (dlopen)."""
    folder = tmp_path_factory.mktemp("wheel")
    pin = re.search(r"^nvidia-nccl-cu13==\S+", (DOCKER / "constraints-cuda.txt").read_text(), re.MULTILINE)[0]
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, pin]
    subprocess.run(download, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("libnccl.so.2")]
        content = archive.read(name)
    return {found.decode() for found in re.findall(rb"lib[a-zA-Z0-9_-]+\.so(?:\.\d+)*(?=\x00)", content)}


def test_the_image_has_the_libraries_of_infiniband_that_nccl_opens(libraries, opened):
    fabric = {name for name in opened if re.match(r"lib(ibverbs|mlx5|efa)", name)}
    assert "libibverbs.so.1" in fabric, opened
    have = {name for name in libraries if re.search(r"\.so(\.\d+)?$", name)}
    missing = {name for name in fabric if name not in have and f"{name}.1" not in have}
    assert not missing, f"NCCL opens {sorted(fabric)}, the image has {sorted(have)}"


def test_the_image_has_drivers_of_adapters(libraries):
    assert {"libmlx5.so.1", "libefa.so.1", "librdmacm.so.1", "libnuma.so.1"} <= libraries
    assert {"libmlx5-rdmav34.so", "libefa-rdmav34.so"} <= libraries, "which libibverbs opens"
