"""Tokenizers of the golden cases; their tests are skipped where the shared folder is absent."""

from pathlib import Path

import pytest

from lclm_jax.text.tokenizer import Tokenizer

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"


@pytest.fixture(scope="session")
def reference() -> Path:
    if not REFERENCE.is_dir():
        pytest.skip(f"{REFERENCE} is absent")
    return REFERENCE


@pytest.fixture(scope="session")
def golden_pair(reference) -> tuple[Tokenizer, Tokenizer]:
    checkpoint = reference / "checkpoints" / "mlp-tied"
    return Tokenizer.from_folder(checkpoint / "decoder"), Tokenizer.from_folder(checkpoint / "encoder")
