"""Starts `lclm` in one or several real processes, as a launcher would."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
TOWER = (
    "{vocab_size: 512, hidden_size: 16, num_layers: 1, num_heads: 2, num_kv_heads: 2, head_dim: 8, mlp_size: 32,"
    " rope_theta: 1e4, max_positions: 2048}"
)
SMALL = (
    "corpus.max_bytes=200000",
    f"model.encoder={TOWER}",
    f"model.decoder={TOWER}",
    "model.remat=none",
    "data.pack={row_length: 64, encoder_rows: 1, encoder_row_length: 128}",
    "data.sources.continue={max_tokens: 48}",
    "stages.base={steps: 8, batch_rows: 4}",
    *(f"stages.{name}=null" for name in ("base_varied", "stage0", "stage1", "stage2", "stage3")),
    "train.checkpoint={every_steps: 3, keep_last: 4}",
    "train.processes={start_timeout_seconds: 60, lost_timeout_seconds: 20}",
)


class Launched:
    """Processes of one run; ``wait`` returns their exit statuses and what each wrote to stderr."""

    def __init__(self, processes):
        self.processes = processes

    def wait(self, timeout=300):
        """End of all, in order of their numbers."""
        texts = [process.communicate(timeout=timeout)[1] for process in self.processes]
        return [process.returncode for process in self.processes], texts


def free_port():
    """A port that nothing listens on."""
    with contextlib.closing(socket.create_server(("", 0))) as server:
        return server.getsockname()[1]


def launch(*arguments, processes=1, devices=1, skip=(), before=None, **variables):
    """``lclm`` with ``arguments`` in ``processes`` processes of ``devices`` simulated devices each, less ``skip``.

    ``before``: number of a process -> code that it runs first.
    """
    port, started = free_port(), []
    for rank in range(processes):
        if rank in skip:
            continue
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parents[2] / ".cache" / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
            "PYTHONFAULTHANDLER": "1",
        }
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(rank),
            }
        code = f"{(before or {}).get(rank, '')}\nfrom lclm_jax.cli import main; main()"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        started.append(
            subprocess.Popen(
                command, env=environment | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    return Launched(started)


def settings(folder, *more):
    """Arguments that make the demo small and put its run into ``folder``."""
    return [part for text in (*SMALL, f"run_dir={folder}", *more) for part in ("--set", text)]
