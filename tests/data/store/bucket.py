"""A bucket on this machine: a storage emulator behind a proxy that adds what it lacks, and faults on request.

The emulator answers a range of a file's last bytes with the whole file; the proxy asks for the range by its place. It
takes no notice of preconditions and tells no generation with a file's content; the proxy does both, one writer at a
time.
"""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

from gcp_storage_emulator.server import create_server

NAME = "corpus"


class Bucket:
    """Files by name, and what happens to the next downloads.

    ``faults``: one for each of the next requests for a file's content: a status such as 503, ``reset`` (no answer),
    ``truncated`` (half of an answer that claims to be whole), or seconds of delay.
    ``upload_faults``: the same for the next uploads: a status, ``reset``, or None.
    """

    def __init__(self, port: int):
        self._port, self._lock = port, threading.Lock()
        self.faults: list[int | str | float] = []
        self.upload_faults: list[int | str | None] = []
        self.downloads: list[str] = []
        self.bytes_read = 0
        """Of the content of files."""
        self.writing = threading.Lock()
        self.size = 0

    def put(self, name: str, content: bytes) -> None:
        """Upload a file."""
        path = f"/upload/storage/v1/b/{NAME}/o?uploadType=media&name={quote(name, safe='')}"
        assert self.ask("POST", path, {"Content-Type": "application/octet-stream"}, content)[0] == 200

    def next_fault(self, request: str) -> int | str | float | None:
        """Take note of a download, and what shall happen to it."""
        with self._lock:
            self.downloads.append(request)
            return self.faults.pop(0) if self.faults else None

    def next_upload_fault(self) -> int | str | None:
        """What shall happen to an upload."""
        with self._lock:
            return self.upload_faults.pop(0) if self.upload_faults else None

    def count(self, content: bytes) -> None:
        """Take note of content that goes to a client."""
        with self._lock:
            self.bytes_read += len(content)

    def generation(self, name: str) -> str:
        """Generation of a file; ``0`` if there is none."""
        status, _, content = self.ask("GET", f"/storage/v1/b/{NAME}/o/{quote(name, safe='')}", {}, b"")
        return str(json.loads(content)["generation"]) if status == 200 else "0"

    def names(self) -> list[str]:
        """Names of all files."""
        items = json.loads(self.ask("GET", f"/storage/v1/b/{NAME}/o", {}, b"")[2]).get("items", [])
        return sorted(item["name"] for item in items)

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        """The emulator's answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()


def _handler(bucket: Bucket) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self._pass_on("GET")

        def do_POST(self):
            self._pass_on("POST")

        def do_PUT(self):
            self._pass_on("PUT")

        def do_DELETE(self):
            self._pass_on("DELETE")

        def do_PATCH(self):
            self._pass_on("PATCH")

        def _pass_on(self, method: str) -> None:
            if method == "GET":
                self._answer_to(method)
                return
            with bucket.writing:
                self._answer_to(method)

        def _refused(self, method: str) -> int | None:
            """The status of a request whose precondition does not hold."""
            address = urlsplit(self.path)
            asked = {name: values[0] for name, values in parse_qs(address.query).items()}
            wanted, unwanted = asked.get("ifGenerationMatch"), asked.get("ifGenerationNotMatch")
            if wanted is None and unwanted is None:
                return None
            name = asked.get("name") or unquote(address.path.partition("/o/")[2])
            now = bucket.generation(name)
            if wanted is not None and wanted != now:
                return 412
            return (304 if method == "GET" else 412) if unwanted == now else None

        def _answer_to(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            wanted = self.headers.get("Range", "")
            headers = {name: value for name, value in self.headers.items() if name.lower() != "range"}
            fault = bucket.next_fault(f"{self.path} {wanted}") if "alt=media" in self.path else None
            if isinstance(fault, float):
                time.sleep(fault)
            if method in ("POST", "PUT") and "/upload/" in self.path:
                fault = bucket.next_upload_fault()
            if fault == "reset":
                self.close_connection = True
                return
            if isinstance(fault, int):
                self._answer(fault, {}, b"try later")
                return
            if (refused := self._refused(method)) is not None:
                self._answer(refused, {}, b"")
                return
            if wanted.startswith("bytes=-"):
                size = len(bucket.ask(method, self.path, {}, body)[2])
                wanted = f"bytes={max(0, size - int(wanted[7:]))}-{size - 1}"
            if wanted:
                headers["Range"] = wanted
            status, found, content = bucket.ask(method, self.path, headers, body)
            if method == "GET" and "alt=media" in self.path and status < 300:
                name = unquote(urlsplit(self.path).path.partition("/o/")[2])
                found["x-goog-generation"] = bucket.generation(name)
                bucket.count(content)
            self._answer(status, found, content, cut=fault == "truncated")

        def _answer(self, status: int, headers: dict[str, str], content: bytes, cut: bool = False) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = cut

        def handle(self):
            with suppress(ConnectionError):  # a client that has what it needs hangs up
                super().handle()

        def log_message(self, *_):
            """Nothing."""

    return Handler


@contextmanager
def a_bucket(emulator_port: int, proxy_port: int) -> Iterator[tuple[Bucket, str]]:
    """(bucket, address of its service)."""
    server = create_server("127.0.0.1", emulator_port, in_memory=True, default_bucket=NAME)
    server.start()
    bucket = Bucket(emulator_port)
    proxy = ThreadingHTTPServer(("127.0.0.1", proxy_port), _handler(bucket))
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield bucket, f"http://127.0.0.1:{proxy.server_port}"
    finally:
        proxy.shutdown()
        server.stop()
