"""A process whose disk is empty gets its local copy from the other replica: two processes, without a model."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("launch", Path(__file__).with_name("launch.py"))
launching = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launching)


def test_what_one_process_lost_comes_from_the_other_replica(tmp_path):
    port = launching.free_port()
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    plain |= {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    command = [sys.executable, str(Path(__file__).with_name("copies_of_a_replica.py")), str(tmp_path)]
    started = [
        subprocess.Popen(command, env=plain | {"JAX_PROCESS_ID": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    texts = [process.communicate(timeout=900)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], texts
