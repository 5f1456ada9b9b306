"""A real server of an export, and what it answers."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from lclm_jax.inference.sampling import Sampling

NEW_TOKENS = 32
START_SECONDS = 900
DOCUMENT = "".join(f"line {number}: x = {number * 7}\n" for number in range(24))
"""About twenty windows."""


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


class Server:
    """``vllm serve FOLDER`` on a port of its own; leaves with the block."""

    def __init__(self, folder: Path, log: Path, *options: str, store: Any = None):
        self.folder, self.log, self.port = folder, log, free_port()
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        command += ["--port", str(self.port), "--host", "127.0.0.1", "--served-model-name", "lclm", "--enforce-eager"]
        command += ["--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "36", *options]
        if store is not None:
            command += ["--additional-config", json.dumps({"lclm_store": store})]
        environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "LCLM_COUNTERS")}
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
        self._out = log.open("wb")
        self.process = subprocess.Popen(
            command, stdout=self._out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )

    def __enter__(self) -> "Server":
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            if self.healthy():
                return self
            time.sleep(0.5)
        self.__exit__()
        raise AssertionError("the server does not start:\n" + self.log.read_text(errors="replace")[-4000:])

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGTERM)

    def stop(self, how: signal.Signals) -> None:
        """End the server and its engine."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, how)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
        self._out.close()

    def healthy(self) -> bool:
        try:
            return self.get("/health")[0] == 200
        except OSError:
            return False

    def get(self, path: str) -> tuple[int, str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()

    def post(self, path: str, body: dict[str, Any], timeout: float = 300) -> tuple[int, dict[str, Any]]:
        data = json.dumps({"model": "lclm", **body}).encode()
        address = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"{}")

    def ask(self, prompt: str | list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        """The choice that answers a prompt or chat greedily, with the ids of its tokens and of the prompt."""
        greedy = {"temperature": 0, "max_tokens": NEW_TOKENS, "ignore_eos": True, "return_token_ids": True} | options
        if isinstance(prompt, str):
            status, answer = self.post("/v1/completions", {"prompt": prompt, **greedy})
        else:
            status, answer = self.post("/v1/chat/completions", {"messages": prompt, **greedy})
        assert status == 200, answer
        choice = answer["choices"][0]
        return choice | {"prompt_token_ids": choice.get("prompt_token_ids") or answer.get("prompt_token_ids")}

    @property
    def engine(self) -> int:
        """Id of the process that runs the model."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return max(below, key=lambda process: process.memory_info().rss).pid

    def memory(self) -> int:
        """Bytes that the server and its engine have in memory."""
        main = psutil.Process(self.process.pid)
        return sum(process.memory_info().rss for process in (main, *main.children(recursive=True)))

    def metrics(self) -> dict[str, int]:
        """Our counters, without ``lclm_`` and ``_total``."""
        lines = re.findall(r"^lclm_(\w+?)(?:_total)? ([\d.e+]+)$", self.get("/metrics")[1], re.MULTILINE)
        return {name: int(float(value)) for name, value in lines}


def greedy(generator: Any, prompt: Any) -> list[int]:
    """The answer of the JAX generator to one prompt."""
    (answer,) = generator.generate([prompt], Sampling(max_new_tokens=NEW_TOKENS, stop_ids=()))
    return list(answer.ids)


def windows(generator: Any, text: str) -> int:
    """Windows of a span with this text."""
    return -(-len(generator.encoder_tokenizer.encode(text)) // generator.model.window)


def work(server: Server, prompt: str) -> tuple[int, ...]:
    """(windows in the prompt, encoded, from the store) of one request."""
    before = server.metrics()
    server.ask(prompt)
    after = server.metrics()
    names = ("windows_requested", "windows_encoded", "windows_stored")
    return tuple(after[name] - before[name] for name in names)
