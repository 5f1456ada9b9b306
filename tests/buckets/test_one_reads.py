"""Four processes, two replicas: what they restore from a bucket is read once."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "processes"
spec = importlib.util.spec_from_file_location("launch", FOLDER / "launch.py")
launching = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launching)
VALUES = 4 * (1024 * 512 + 512 * 512)


def together(what, folder):
    """``state_of_replicas.py`` in four processes of one device."""
    port = launching.free_port()
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    plain |= {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "4"}
    command = [sys.executable, str(FOLDER / "state_of_replicas.py"), what, folder]
    started = [
        subprocess.Popen(command, env=plain | {"JAX_PROCESS_ID": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(4)
    ]
    texts = [process.communicate(timeout=900)[1] for process in started]
    assert [process.returncode for process in started] == [0] * 4, texts


def test_one_replica_reads_for_all(gcs):
    bucket, url = gcs
    together("save", f"{url}/once")
    bucket.bytes_read = 0
    together("restore", f"{url}/once")
    assert VALUES * 0.9 < bucket.bytes_read < VALUES * 1.3, bucket.bytes_read / VALUES
