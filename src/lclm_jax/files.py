"""Files that are written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

from lclm_jax.errors import LclmError


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` so that a reader sees the old file or the new one, never a part."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as ``write_json`` does; raises ``LclmError`` if the disk refuses."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise LclmError(
            f"cannot write {path}: {error.strerror}; free some space or choose another folder, then call again"
        ) from error
