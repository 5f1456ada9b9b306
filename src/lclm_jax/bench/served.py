"""A vLLM server as a process of another environment, asked over HTTP, its memory watched."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import psutil

from lclm_jax.errors import LclmError
from lclm_jax.types import JsonObject

START_SECONDS = 900
"""How long a server may take until it answers."""
_ANSWER_SECONDS = 3600
_NAME = "lclm"
_CPU_CACHE_GIB = "4"
"""Of the CPU build for its KV cache; by default it asks for 92 % of the machine's memory."""


class Answer(NamedTuple):
    """One streamed answer."""

    first_token_s: float
    """From sending the prompt to the first token."""
    tokens_per_s: float
    """Tokens after the first, in a second."""
    positions: int
    """Of the prompt: text and latents."""
    peak_bytes: int
    """Most memory of the server's processes while it answered."""


class Served:
    """``vllm serve FOLDER`` on a free port; leaves with the block.

    Args:
        python: interpreter of an environment that has vLLM and lclm-serving.
        folder: an export.
        log: file for what the server prints.
        options: more arguments of the server.

    Raises:
        LclmError: there is no such interpreter, or the server does not start.
    """

    def __init__(self, python: Path, folder: Path, log: Path, options: list[str]):
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            self._port = int(listening.getsockname()[1])
        command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), *options]
        command += ["--host", "127.0.0.1", "--port", str(self._port), "--served-model-name", _NAME]
        environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "LCLM_COUNTERS")}
        environment |= {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}  # caches can be emptied
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_CACHE_GIB)
        self._log, self._out = log, log.open("wb")
        try:
            self._process = subprocess.Popen(
                command, stdout=self._out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        except OSError as error:
            raise LclmError(
                f"cannot run {python}: {error.strerror}; name the Python of an environment with vLLM"
            ) from None

    def __enter__(self) -> "Served":
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            try:
                self.version()
                return self
            except OSError:
                time.sleep(0.5)
        self.__exit__(None, None, None)
        lines = self._log.read_text(errors="replace").splitlines()
        raise LclmError(f"the server does not start ({_cause(lines)}); {self._log} has what it printed")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._out.close()

    def ask(self, prompt: str, new_tokens: int) -> Answer:
        """The greedy answer to a prompt, token by token; raises ``LclmError`` if the server refuses it."""
        body = {"model": _NAME, "prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "ignore_eos": True}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        times: list[float] = []
        positions = 0
        with _PeakMemory(self._process.pid) as peak:
            start = time.perf_counter()
            with self._call("POST", "/v1/completions", body) as lines:
                for line in lines:
                    event = json.loads(line[6:]) if line.startswith(b"data: {") else {}
                    if event.get("choices"):
                        times.append(time.perf_counter() - start)
                    if event.get("usage"):
                        positions = event["usage"]["prompt_tokens"]
        if not times:
            raise LclmError(f"the server ended an answer without a token; {self._log} has what it printed")
        rate = (new_tokens - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
        return Answer(times[0], rate, positions, peak.bytes)

    def forget(self) -> None:
        """Empty the caches of the server, but not a store of latents."""
        for cache in ("prefix", "mm", "encoder"):
            with self._call("POST", f"/reset_{cache}_cache") as answer:
                answer.read()

    def memory(self) -> int:
        """Bytes that the server's processes have in memory."""
        return resident_bytes(self._process.pid)

    def version(self) -> str:
        """Version of vLLM."""
        with self._call("GET", "/version") as answer:
            return str(json.load(answer)["version"])

    @contextmanager
    def _call(self, method: str, path: str, body: JsonObject | None = None) -> Iterator[http.client.HTTPResponse]:
        """The response to a request; raises ``LclmError`` unless its status is 200, ``OSError`` if there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER_SECONDS)
        with closing(connection):
            connection.request(method, path, json.dumps(body or {}), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200:
                text = answer.read(300).decode(errors="replace")
                raise LclmError(f"the server answers {path} with status {answer.status}: {text}")
            yield answer


class _PeakMemory:
    """Watches the memory of a process and of those below it while the block runs."""

    def __init__(self, pid: int):
        self._pid, self._done, self.bytes = pid, threading.Event(), 0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self.bytes = max(self.bytes, resident_bytes(self._pid))

    def __enter__(self) -> "_PeakMemory":
        self.bytes = resident_bytes(self._pid)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()


def _cause(lines: list[str]) -> str:
    """The first error that a server printed; what its other processes make of that says less."""
    said = (re.search(r"\b\w*(Error|Exception): .+", line) for line in lines)
    found = next((match.group() for match in said if match is not None), None)
    return found or (lines[-1].strip() if lines else "it printed nothing")


def resident_bytes(pid: int) -> int:
    """Memory of a process and of those below it."""
    total = 0
    try:
        main = psutil.Process(pid)
        for process in (main, *main.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.NoSuchProcess:  # it ended meanwhile
        pass
    return total
