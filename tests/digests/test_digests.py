"""Bytes that must not change by accident: shards, row index, losses and export of a small run, made by the commands.

A change that alters them on purpose records them again, and says why: ``python -m tests.digests.test_digests``.
"""

import hashlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

RECORD = Path(__file__).with_name("recorded.json")
CONFIG = """
corpus:
  validation_share: 0.05
  held_out_share: 0.05
  collections:
    documents: {format: jsonl, paths: [documents.jsonl]}
    chat: {format: jsonl, paths: [chats.jsonl], records: chat}
tokenizer: {vocab_size: 384}
model:
  encoder: &tower
    {vocab_size: 384, hidden_size: 32, num_layers: 2, num_heads: 2, num_kv_heads: 1, head_dim: 16, mlp_size: 64,
     rope_theta: 1e4, max_positions: 1024}
  decoder: *tower
  ratio: 4
  window: 16
  compute_dtype: float32
  remat: none
data:
  pack: {row_length: 128, encoder_rows: 2, encoder_row_length: 64}
  sources:
    repeat: {collection: documents, objective: reconstruction, spans: {law: uniform, min_tokens: 4, max_tokens: 24}}
    continue:
      collection: documents
      objective: cpt
      spans:
        {law: log_uniform, min_tokens: 4, max_tokens: 24, raw_min_tokens: 4, raw_max_tokens: 24, boundary: sentence}
    chat: {collection: chat, objective: chat}
stages:
  only:
    lr: {adapter: 1e-3, encoder: 1e-3, decoder: 1e-3}
    steps: 20
    batch_rows: 2
    mixture: {repeat: 0.4, continue: 0.4, chat: 0.2}
train: {checkpoint: {every_steps: 10}}
mesh: {fsdp: 1}
"""


def write_corpus(folder: Path) -> None:
    """Made-up documents and chats that are the same everywhere."""
    draw = random.Random(7)
    words = ["".join(draw.choice("aeioubdklmnrst") for _ in range(draw.randint(2, 8))) for _ in range(300)]

    def text(count: int) -> str:
        sentences = [" ".join(draw.choices(words, k=draw.randint(3, 12))).capitalize() for _ in range(count)]
        return ". ".join(sentences) + ".\n"

    documents = [{"id": f"document-{i}", "text": text(draw.randint(4, 30))} for i in range(240)]
    chats = []
    for _ in range(60):
        memory = f"<|memory_start|>{text(4)}<|memory_end|>\nWhat does it say?"
        chats.append({"messages": [{"role": "user", "content": memory}, {"role": "assistant", "content": text(2)}]})
    for name, rows in (("documents", documents), ("chats", chats)):
        folder.joinpath(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def lclm(folder: Path, *arguments: str, xla_flags: Sequence[str] = ()) -> None:
    """Run a command in a process of its own, without the flags of the test suite."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_", "LCLM_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path), "XLA_FLAGS": " ".join(xla_flags)}
    command = [sys.executable, "-c", "from lclm_jax.cli import main; main()", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def digests(folder: Path, pattern: str) -> dict[str, str]:
    """SHA-256 of each file below ``folder``."""
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def measure(folder: Path) -> dict:
    """Make the run in ``folder`` and digest what it wrote."""
    write_corpus(folder)
    folder.joinpath("run.yaml").write_text(CONFIG)
    run = folder / "runs" / "run"
    lclm(folder, "data", "prepare", "run.yaml", "--workers", "1")
    lclm(folder, "train", "run.yaml")
    lclm(folder, "export", "run.yaml", "export")
    steps = [json.loads(line) for line in (run / "stages/only/metrics.jsonl").read_text().splitlines()]
    index = run / "stages/only/index"
    return {
        "shards": digests(run / "data", "**/*.array_record") | digests(run / "data", "**/*.lengths.safetensors"),
        "index": digests(index, "**/*.rows") | digests(index, "**/index.json"),
        "losses": [step["loss_nats"].hex() for step in steps],
        # Not the config.json at the top: it repeats both and has a hash of the encoder's bytes.
        "export": digests(folder / "export", "**/*.safetensors") | digests(folder / "export", "*/config.json"),
    }


def arithmetic() -> str:
    """What the last bits of a float depend on: the release of JAX and the instructions of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next(line for line in lines if line.startswith(("flags", "Features")))
    return f"jax {version('jax')}, {platform.machine()} {hashlib.sha256(flags.encode()).hexdigest()[:8]}"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The run, made once."""
    return measure(tmp_path_factory.mktemp("digests"))


RECORDED = json.loads(RECORD.read_text()) if RECORD.exists() else {}


@pytest.mark.parametrize("kind", ["shards", "index"])
def test_data_are_the_same_bytes(measured, kind):
    assert measured[kind] == RECORDED[kind]


def test_losses_are_the_same_values(measured):
    """Bit for bit where the arithmetic is the recorded one; elsewhere as close as float32 lets twenty steps be."""
    recorded = RECORDED["arithmetic"].get(arithmetic())
    if recorded is not None:
        assert measured["losses"] == recorded["losses"]
    other = next(iter(RECORDED["arithmetic"].values()))
    losses = [[float.fromhex(loss) for loss in found["losses"]] for found in (measured, other)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_export_is_the_same_bytes(measured):
    recorded = RECORDED["arithmetic"].get(arithmetic(), {"export": {}})["export"]
    whatever = next(iter(RECORDED["arithmetic"].values()))["export"]
    assert measured["export"].keys() == whatever.keys()
    for name, digest in measured["export"].items():
        if name.endswith(".json"):
            assert digest == whatever[name], name
        else:
            assert recorded.get(name, digest) == digest, name


def record() -> None:
    """Replace what is recorded of this machine's arithmetic; shards and index are the same on every machine."""
    with tempfile.TemporaryDirectory() as made:
        found = measure(Path(made))
    kept = json.loads(RECORD.read_text())["arithmetic"] if RECORD.exists() else {}
    kept[arithmetic()] = {name: found[name] for name in ("losses", "export")}
    data = {name: found[name] for name in ("shards", "index")}
    RECORD.write_text(json.dumps(data | {"arithmetic": kept}, indent=1) + "\n")


if __name__ == "__main__":
    record()
