"""The commands of a tutorial, taken from its Markdown and run in order.

A fenced block whose first line says ``run`` (```` ```bash run ````, ```` ```python run ````) is executed, one that says
``file=NAME`` is written to that file. The bash blocks of a page share one shell; Python blocks that follow each other
share one interpreter. Nothing else of the page is run.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.compiler_flags import FAST

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w+)[ \t]+([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_MARK = "=== block "


class Block(NamedTuple):
    """One block that is run or written."""

    language: str
    file: str | None
    text: str


def blocks(page: Path) -> list[Block]:
    """The marked blocks of a Markdown page; neighbouring Python blocks are one."""
    found: list[Block] = []
    for language, words, text in _FENCE.findall(page.read_text(encoding="utf-8")):
        file = next((word.removeprefix("file=") for word in words.split() if word.startswith("file=")), None)
        if file is None and "run" not in words.split():
            continue
        if file is None and found and language == found[-1].language == "python":
            found[-1] = found[-1]._replace(text=f"{found[-1].text}\n{text}")
        else:
            found.append(Block(language, file, text))
    return found


def script(found: list[Block]) -> str:
    """One bash script that does what the blocks say, with a line of its own before each."""
    lines = ["set -euo pipefail"]
    for number, block in enumerate(found):
        lines.append(f"echo '{_MARK}{number}'")
        if block.file is not None:
            lines.append(f"cat > '{block.file}' <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK")
        elif block.language == "python":
            lines.append(f"python - <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK")
        else:
            lines.append(block.text)
    return "\n".join(lines)


def workplace(folder: Path) -> Path:
    """``folder`` with what the commands expect at the root of the repository."""
    for name in ("configs", "launch"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(page: Path, folder: Path, timeout: int = 240) -> list[str]:
    """What each marked block of ``page`` printed, run in ``folder``; fails with all output if a command fails."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XLA_FLAGS": " ".join(FAST),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        ["bash", "-c", script(blocks(page))],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{page.name}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return [part.partition("\n")[2] for part in done.stdout.split(_MARK)[1:]]
