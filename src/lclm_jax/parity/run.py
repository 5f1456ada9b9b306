"""``lclm golden DIR``: our outputs beside those of the public PyTorch implementation, case by case.

The format, and the tolerances, are those of the README of the reference outputs. A directory may hold any part of it.
"""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from lclm_jax.config import MeshConfig
from lclm_jax.errors import LclmError
from lclm_jax.parallel import make_mesh, use_mesh
from lclm_jax.parity.case import load_case
from lclm_jax.parity.check import Check
from lclm_jax.parity.model import check_model
from lclm_jax.parity.text import check_packing, check_processor, check_tokenizers
from lclm_jax.parity.training import check_schedules, check_training


def run_golden(directory: str | Path) -> Iterator[Check]:
    """Yield one ``Check`` per case and quantity of ``directory``, as they are made.

    Args:
        directory: holds ``checkpoints/``, ``cases/``, ``training/``, ``lr_schedule.json``, ``tokenizer_cases.json`` and
            ``pack_sequences.json``, or some of them.

    A case (or its checkpoint) that cannot be read or run is a failed check; the others are still compared.

    Raises:
        LclmError: if the directory holds nothing of that format.
    """
    directory = Path(directory)
    cases = sorted(path.parent for path in directory.glob("cases/*/case.json"))
    runs = sorted(directory.glob("training/*.json"))
    single = {
        "tokenizer_cases.json": lambda path: check_tokenizers(path, directory / "checkpoints"),
        "pack_sequences.json": check_packing,
        "lr_schedule.json": check_schedules,
    }
    present = [name for name in single if (directory / name).is_file()]
    if not cases and not runs and not present:
        raise LclmError(f"{directory} holds no golden cases; name a folder with cases/NAME/case.json")
    # Products in full float32: accelerators round their inputs by default.
    with jax.default_matmul_precision("highest"), use_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        for name in present:
            yield from _attempt(Path(name).stem, single[name](directory / name))
        for folder in cases:
            yield from _attempt(folder.name, _check_case(folder, directory))
        for path in runs:
            yield from _attempt(f"training/{path.stem}", check_training(path, directory))


def _check_case(folder: Path, directory: Path) -> Iterator[Check]:
    case = load_case(folder, directory / "checkpoints")
    yield from check_processor(case)
    yield from check_model(case, folder)


def _attempt(name: str, checks: Iterator[Check]) -> Iterator[Check]:
    """``checks``, and one that failed if they end in an error: bad data, a missing key, a missing file."""
    try:
        yield from checks
    except (LclmError, ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        yield Check(name, f"stopped by {type(error).__name__} ({reason})", np.inf, np.inf, "no error", False)
