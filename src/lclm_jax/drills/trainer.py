"""A training run in processes of its own, observed through its files alone."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from lclm_jax.config import Config, RunPaths, dump_config
from lclm_jax.errors import LclmError
from lclm_jax.train.checkpoints.provenance import checkpoints_folder

_POLL_SECONDS = 0.05
DEVICES = 2
"""Devices of the run, however many processes share them: the same topology, so the same bits."""
LOCAL_STEPS = 3
"""Steps between two copies on the machine's own disk."""


class DrillFailure(LclmError):
    """Training did not do what it has to after a fault; the message says what was awaited and what came."""


class Trainer:
    """Training of the one stage of ``config``, as one process with two devices or as two with one each.

    Args:
        config: the run; its folder is the trainer's.
        patience_seconds: longest wait for anything.
        nan_steps: steps whose gradients are made NaN (``faulty_train``).
    """

    def __init__(self, config: Config, patience_seconds: float, nan_steps: Sequence[int] = ()):
        self.config, self.patience, self._nan_steps = config, patience_seconds, nan_steps
        self.stage = next(iter(config.stages))
        self.folder = RunPaths(config).stage(self.stage)
        self.checkpoints = checkpoints_folder(config, self.stage).absolute()  # as the trainer names it
        self.processes: list[subprocess.Popen[bytes]] = []
        self._starts = 0
        root = RunPaths(config).root
        root.mkdir(parents=True, exist_ok=True)
        self._yaml = root.with_name(f"{root.name}.yaml")
        self._yaml.write_text(dump_config(config), encoding="utf-8")
        self._local = root.with_name(f"{root.name}.local").absolute()
        changes = {"local_dir": str(self._local), "local_every_steps": LOCAL_STEPS}
        checkpoint = config.train.checkpoint.model_copy(update=changes)
        with_copies = config.model_copy(update={"train": config.train.model_copy(update={"checkpoint": checkpoint})})
        self._yaml_with_copies = root.with_name(f"{root.name}.local.yaml")
        self._yaml_with_copies.write_text(dump_config(with_copies), encoding="utf-8")
        self.logs = root.with_name(f"{root.name}.logs")
        self.logs.mkdir(exist_ok=True)

    def start(self, processes: int = 1, local_copies: bool = False) -> None:
        """Start or resume training; ``local_copies``: it also saves to the machine's own disk."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._starts += 1
        self.processes = [self._spawn(rank, processes, port, local_copies) for rank in range(processes)]

    def _spawn(self, rank: int, processes: int, port: int, local_copies: bool) -> "subprocess.Popen[bytes]":
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // processes}",
            "JAX_COMPILATION_CACHE_DIR": str(self.logs.parent / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
        if processes > 1:
            environment |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(processes)}
            environment["JAX_PROCESS_ID"] = str(rank)
        path = self._yaml_with_copies if local_copies else self._yaml
        with self.log(rank).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "lclm_jax.drills.faulty_train", str(path), *map(str, self._nan_steps)],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def log(self, rank: int = 0) -> Path:
        """What the process of ``rank`` printed since it was started last."""
        return self.logs / f"start-{self._starts}-process-{rank}.log"

    def printed(self, rank: int = 0) -> str:
        """Text of ``log``."""
        return self.log(rank).read_text(encoding="utf-8", errors="replace")

    def step(self) -> int:
        """Steps that ``metrics.jsonl`` holds now, by its last line; 0 without one."""
        try:
            with (self.folder / "metrics.jsonl").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
                lines = file.read().split(b"\n")
        except OSError:
            return 0
        for line in reversed(lines):
            try:
                return int(json.loads(line)["step"]) + 1
            except (ValueError, KeyError, TypeError):
                continue
        return 0

    def saved(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        if not self.checkpoints.is_dir():
            return []
        return sorted(int(path.name) for path in self.checkpoints.iterdir() if path.name.isdigit())

    def copies(self, rank: int) -> list[Path]:
        """Files that the process ``rank`` of two has saved to its machine's disk."""
        return sorted(self._local.rglob(f"*.process-{rank}-of-2.safetensors"))

    def wait_for_step(self, step: int) -> None:
        """Wait until ``step`` updates are logged; raises ``DrillFailure`` if training ends or stalls before."""
        end = time.monotonic() + self.patience
        while self.step() < step:
            if any(process.poll() not in (None, 0) for process in self.processes):
                raise DrillFailure(f"training died at step {self.step()}, before step {step}: {self._last_words()}")
            if time.monotonic() > end:
                raise DrillFailure(f"training stalled at step {self.step()}, before step {step}; see {self.log()}")
            time.sleep(_POLL_SECONDS)

    def wait(self, rank: int = 0) -> int:
        """Wait for a process to end; its exit status."""
        try:
            return self.processes[rank].wait(self.patience)
        except subprocess.TimeoutExpired:
            raise DrillFailure(f"process {rank} did not end in {self.patience:g} s; see {self.log(rank)}") from None

    def kill(self) -> None:
        """End all processes and their workers at once, as a lost machine would."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):  # the whole group is gone
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def workers(self) -> list[psutil.Process]:
        """The data workers of the first process."""
        try:
            children = psutil.Process(self.processes[0].pid).children(recursive=True)
            return [child for child in children if any("spawn_main" in word for word in child.cmdline())]
        except psutil.NoSuchProcess:
            return []

    def _last_words(self) -> str:
        lines = [line for line in self.printed().splitlines() if line.strip()]
        return " / ".join(lines[-3:])[-600:]
