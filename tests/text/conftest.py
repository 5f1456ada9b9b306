"""Tokenizers of the golden cases."""

import pytest
from tests.golden.paths import CHECKPOINTS

from lclm_jax.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def golden_pair() -> tuple[Tokenizer, Tokenizer]:
    checkpoint = CHECKPOINTS["mlp-tied"]
    return Tokenizer.from_folder(checkpoint / "decoder"), Tokenizer.from_folder(checkpoint / "encoder")
