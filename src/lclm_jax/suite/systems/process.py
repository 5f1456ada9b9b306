"""A worker as its driver sees it: started with settings, asked one sample at a time, never waited for without end."""

import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

from lclm_jax.errors import LclmError
from lclm_jax.suite.sample import Sample
from lclm_jax.suite.spec import SystemConfig
from lclm_jax.types import JsonObject

_MODULES = {kind: f"lclm_jax.suite.systems.{kind}_worker" for kind in ("lclm", "openai", "kvpress")}
_SOURCE = Path(__file__).parents[3]
"""The folder that holds the package: also an environment without it finds the worker there."""
_START_SECONDS = 1800.0
_GRACE_SECONDS = 10.0


class WorkerError(LclmError):
    """A worker that cannot start, or died; the message names the system and what it said."""


class Worker:
    """The process of one system: a context manager.

    Args:
        name: of the system, for messages.
        system: its settings.
        log: file for what the worker and its libraries print; it is appended to.
        command: what to run instead of the system's own worker.

    Raises:
        WorkerError: it cannot be started, or refuses its settings.
    """

    def __init__(self, name: str, system: SystemConfig, log: Path, command: list[str] | None = None):
        self.name, self.log = name, log
        self._timeout = system.timeout_seconds
        self._settings = system.model_dump(mode="json")
        self._command = command or [system.python or sys.executable, "-m", _MODULES[system.kind]]
        self.facts: JsonObject = {}

    def __enter__(self) -> "Worker":
        self.log.parent.mkdir(parents=True, exist_ok=True)
        paths = [str(_SOURCE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            try:
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
                )
            except OSError as error:
                raise WorkerError(
                    f"system {self.name}: cannot run {self._command[0]} ({error.strerror}); name the interpreter of"
                    " its environment (python)"
                ) from None
        self._lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None, "a pipe"
        try:
            self._process.stdin.close()
            self._process.wait(_GRACE_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()

    def ask(self, request: JsonObject) -> JsonObject:
        """The reply to ``request``; ``error`` in it says why there is no answer.

        Raises:
            WorkerError: the worker died, or did not answer in time; it is ended then.
        """
        self._write(request)
        # The worker's own limit of one answer comes first, so that it can say why.
        reply = self._reply(self._timeout * 1.5 + 60)
        if reply.get("id") != request["id"]:
            raise WorkerError(f"system {self.name} answered {reply.get('id')!r} to {request['id']!r}; see {self.log}")
        return reply

    def _start(self) -> None:
        self._write(self._settings)
        reply = self._reply(_START_SECONDS)
        if "refused" in reply:
            raise WorkerError(f"system {self.name}: {reply['refused']}")
        self.facts = reply["ready"]

    def _write(self, value: JsonObject) -> None:
        assert self._process.stdin is not None, "a pipe"
        try:
            self._process.stdin.write(json.dumps(value).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            self._died()

    def _reply(self, seconds: float) -> JsonObject:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self._process.kill()
            raise WorkerError(
                f"system {self.name} did not answer in {seconds:.0f} s and was ended; raise its timeout_seconds, or see"
                f" {self.log}"
            ) from None
        if not line:
            self._died()
        return json.loads(line)

    def _died(self) -> None:
        status = self._process.wait()
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            said = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
        last = f": {said[-1][:300]}" if said else ""
        raise WorkerError(f"system {self.name} ended with status {status}{last} (all it said: {self.log})")

    def _read(self) -> None:
        assert self._process.stdout is not None, "a pipe"
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(b"")  # the end


def request_of(sample: Sample, generate: bool, likelihood: bool) -> JsonObject:
    """What a worker is asked about ``sample``."""
    return {
        "id": sample.id,
        "instruction": sample.instruction,
        "context": sample.context,
        "question": sample.question,
        "prefix": sample.prefix,
        "gold": sample.gold if likelihood else "",
        "max_new_tokens": sample.max_new_tokens,
        "chat": sample.chat,
        "generate": generate,
    }
