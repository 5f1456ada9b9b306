"""Exports uploaded to a hub: what goes over the wire, to a server that stands in for it."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lclm_jax.errors import LclmError
from lclm_jax.interop.hub import push_folder


class Hub(BaseHTTPRequestHandler):
    """Takes one repository's files; the server's ``requests`` and ``status`` say what happened and what it answers."""

    def do_POST(self):
        """Answer as the hub does, and keep what was sent."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, self.headers["Authorization"], body))
        address = f"http://127.0.0.1:{self.server.server_port}/me/model"
        answer = {"url": address, "commitUrl": f"{address}/commit/1", "commitOid": "1" * 40, "success": True}
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer["files"] = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
        content = json.dumps(answer).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *values):
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.requests, server.status = [], 200
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "decoder").mkdir()
    (tmp_path / "decoder" / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("a card\n")
    return tmp_path


@pytest.mark.parametrize("public", [False, True])
def test_an_export_is_one_commit_of_all_its_files(hub, folder, public):
    address = f"http://127.0.0.1:{hub.server_port}"
    assert push_folder(folder, "me/model", public, endpoint=address) == f"{address}/me/model/commit/1"
    made, *_, (path, token, commit) = hub.requests
    assert made[0] == "/api/repos/create" and json.loads(made[2])["visibility"] == ("public" if public else "private")
    assert path.startswith("/api/models/me/model/commit/") and token == "Bearer hf_secret"
    lines = [json.loads(line) for line in commit.splitlines()]
    sent = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
    }
    assert sent == {"README.md": b"a card\n", "decoder/config.json": b"{}"}


def test_a_hub_that_refuses_is_one_error(hub, folder):
    hub.status = 403
    with pytest.raises(LclmError, match="me/model did not take it"):
        push_folder(folder, "me/model", endpoint=f"http://127.0.0.1:{hub.server_port}")
    with pytest.raises(LclmError, match="'model' is no repository id"):
        push_folder(folder, "model")
