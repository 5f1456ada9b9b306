import re

import numpy as np
import pytest

from lclm_jax.config import BackboneConfig, ModelConfig, PackConfig
from lclm_jax.data.rows import assemble_batch
from lclm_jax.data.show import render_rows
from lclm_jax.data.sources import Tokenizers
from lclm_jax.text.example import cpt_example, prompt_example
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(train_tokenizer(["a plain text [with] brackets\n" * 9], 300, tmp_path_factory.mktemp("tokenizer")))


def shown(tokenizer, markup):
    tiny = BackboneConfig(
        vocab_size=512, hidden_size=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=4, mlp_size=8
    )
    model = ModelConfig(encoder=tiny, decoder=tiny, ratio=4, window=8, memory_token_ids=tuple(tokenizer.memory_ids))
    examples = [
        cpt_example("one <|memory_start|>hidden text, long enough<|memory_end|>two [x]", tokenizer, tokenizer, 4),
        prompt_example("a prompt", tokenizer, tokenizer, 4),
    ]
    batch = assemble_batch([examples, []], model, PackConfig(row_length=96, encoder_rows=2, encoder_row_length=32))
    return render_rows(batch, Tokenizers(tokenizer, tokenizer), model, markup=markup), examples


def test_a_row_as_text(tokenizer):
    text, examples = shown(tokenizer, markup=False)
    latents = int((examples[0].tokens == tokenizer.memory_ids.placeholder).sum())
    tokens = len(examples[0].spans[0])
    assert re.search(rf"<memory {tokens} tokens -> {latents} latents at 0-\d+: hidden text, long enough>", text)
    assert "[[two [x]]]" in text
    assert "    a prompt" in text
    assert "2 segments" in text
    assert text.splitlines()[-1].startswith("row 1: 0 of 96 positions, 0 segments")
    first = tokenizer.decode(examples[0].tokens[:1])
    assert f"    {first}[[" in text


def test_markup_shows_the_same_text(tokenizer):
    from rich.text import Text

    plain, _ = shown(tokenizer, markup=False)
    marked, _ = shown(tokenizer, markup=True)
    wanted = plain.replace("[[two [x]]]", "two [x]").replace("[[", "").replace("]]", "")
    assert Text.from_markup(marked).plain == wanted
    assert np.char.count(marked, "[green]") == 2
