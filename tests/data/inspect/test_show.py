import re

import numpy as np
import pytest

from lclm_jax.config import BackboneConfig, ModelConfig, PackConfig
from lclm_jax.data.inspect.show import render_rows
from lclm_jax.data.packing.rows import assemble_batch
from lclm_jax.report.packed_rows import render_page
from lclm_jax.text.example import cpt_example, prompt_example
from lclm_jax.text.tokenizer import Tokenizer, Tokenizers
from lclm_jax.text.train_tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(train_tokenizer(["a plain text [with] brackets\n" * 9], 300, tmp_path_factory.mktemp("tokenizer")))


def shown(tokenizer, markup=False, html=False):
    tiny = BackboneConfig(
        vocab_size=512, hidden_size=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=4, mlp_size=8
    )
    model = ModelConfig(encoder=tiny, decoder=tiny, ratio=4, window=8, memory_token_ids=tuple(tokenizer.memory_ids))
    examples = [
        cpt_example("one <|memory_start|>hidden text, long enough<|memory_end|>two [x]", tokenizer, tokenizer, 4),
        prompt_example("a prompt", tokenizer, tokenizer, 4),
    ]
    batch = assemble_batch([examples, []], model, PackConfig(row_length=96, encoder_rows=2, encoder_row_length=32))
    both = Tokenizers(tokenizer, tokenizer)
    if html:
        return "".join(render_page([(7, 4, batch)], both, "a <title>")), examples
    return render_rows(batch, both, model, markup=markup), examples


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


def test_a_page_stands_alone_and_holds_the_text(tokenizer):
    page, examples = shown(tokenizer, html=True)
    assert "http" not in page and "<script" not in page
    assert "a &lt;title&gt;" in page
    assert "N = 4" in page and "row 7" in page and "row 8" in page
    latents = int((examples[0].tokens == tokenizer.memory_ids.placeholder).sum())
    assert f"<b>{len(examples[0].spans[0])} → {latents}</b>hidden text, long enough</span>" in page
    assert '<span class="loss">two [x]</span>' in page
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", page.split("<h2>")[1])]
    assert sum(widths) == pytest.approx(300, abs=0.1), "one bar of the decoder and two of the encoder, each full"


def test_windows_have_the_colour_of_the_segment_that_reads_them(tokenizer):
    page, _ = shown(tokenizer, html=True)
    row = page.split("<h2>")[1]
    bars = [re.findall(r'background:(#\w+)" title="(\w+)', bar) for bar in row.split('<div class="bar">')[1:]]
    segments = [colour for colour, _ in bars[0]]
    assert re.findall(r"border-color:(#\w+)", row) == segments
    assert len(set(segments)) == 2, "the second example has no span"
    assert {part for bar in bars[1:] for part in bar} == {(segments[0], "window")}
