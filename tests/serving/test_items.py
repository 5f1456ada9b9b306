"""What vLLM caches and schedules: windows as items, their keys, and the counters of work."""

import numpy as np
import pytest
from tests.golden.paths import CHECKPOINTS

from lclm_jax.config import ModelConfig
from lclm_jax.data.packing.windows import plan_windows
from lclm_jax.errors import LclmError as JaxError
from lclm_jax.text.memory_tags import split_memory as jax_split
from lclm_serving.config import LclmConfig
from lclm_serving.errors import LclmError
from lclm_serving.memory_tags import split_memory
from lclm_serving.prompt import PromptReader
from lclm_serving.vllm_plugin.counters import Counters
from lclm_serving.vllm_plugin.items import check_item, item_key, items_of, latents_of_item, windows_of_item
from lclm_serving.windows import checked_ratio, windows_of

TOWER = dict(vocab_size=400, hidden_size=16, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=16, mlp_size=8)


def config_of(**values):
    return LclmConfig(**dict(compression_ratio=4, encoder_window_size=16, fingerprint="f") | values)


@pytest.mark.parametrize("mask", ["causal", "bidirectional"])
@pytest.mark.parametrize("overlap", [0, 5, 16, 40])
def test_windows_are_those_of_training(mask, overlap):
    config = config_of(encoder_mask_type=mask, boundary_overlap=overlap)
    model = ModelConfig(encoder=TOWER, decoder=TOWER, ratio=4, window=16, overlap=overlap, mask=mask)
    for size in (1, 15, 16, 17, 50, 64):
        found = [(w.ids.tolist(), w.skip, w.pooled) for w in windows_of(np.arange(size), config)]
        planned = plan_windows(size, model)
        assert found == [(list(range(w.left, w.right)), w.pool_start, w.pool_len) for w in planned]


def test_items_make_the_latents_of_the_span_and_a_grown_one_shares_its_keys():
    config, span = config_of(), np.arange(50)
    items = items_of(span, config)
    assert len(items) == 4 and sum(map(latents_of_item, items)) == 13
    joined = np.concatenate([w.ids for item in items for w in windows_of_item(item, config)])
    np.testing.assert_array_equal(joined, span)
    keys = [item_key(item, config, "m") for item in items]
    grown = [item_key(item, config, "m") for item in items_of(np.arange(53), config)]
    assert keys[:3] == grown[:3] and keys[3] != grown[3]
    assert not set(keys) & {item_key(item, config_of(fingerprint="other"), "m") for item in items}
    (whole,) = items_of(span, config_of(adapter_type="attn_mlp"))
    assert latents_of_item(whole) == 13
    assert len(windows_of_item(whole, config_of(adapter_type="attn_mlp"))) == 4


@pytest.mark.parametrize(
    "item",
    [
        [4, 0, 3, 1, 2],
        [4, -1, 1, 1, 2],
        [4, 0, 0, 1],
        [4, 0, 1, -1],
        [4, 0, 1, 10**6],
        [4, 0, 1],
        [4, 0.5, 1, 1],
        [0, 0, 1, 1],
        [5, 0, 1, 1],
    ],
)
def test_items_that_no_prompt_has_are_refused(item):
    with pytest.raises(LclmError):
        check_item(item, config_of(encoder_config={"model_type": "qwen3", "vocab_size": 400}))


def test_a_request_may_have_a_ratio_of_its_own():
    config, span = config_of(), np.arange(50)
    items = items_of(span, config, 8)
    assert [latents_of_item(item) for item in items] == [2, 2, 2, 1]
    assert [w.latents for item in items for w in windows_of_item(item, config)] == [2, 2, 2, 1]
    keys = {item_key(item, config, "m") for item in (*items, *items_of(span, config))}
    assert len(keys) == 8
    assert checked_ratio(config, 16) == 16
    for ratio in (0, -4, 5, 32, True, 4.0, "4"):
        with pytest.raises(LclmError, match="divides the window, 16"):
            checked_ratio(config, ratio)
    concat = config_of(pooling="concat")
    assert checked_ratio(concat, 4) == 4
    with pytest.raises(LclmError, match="for 4 alone"):
        checked_ratio(concat, 8)


@pytest.mark.parametrize(
    "text",
    ["", "a", "<|memory_start|>a<|memory_end|>", "a<|memory_start|>b<|memory_end|>c<|memory_start|>d<|memory_end|>",
     "<|memory_start|>", "a<|memory_end|>", "<|memory_start|><|memory_end|>", "<|memory|>",
     "<|memory_start|>a<|memory_start|>b<|memory_end|>"],
)  # fmt: skip
def test_tags_are_read_as_in_training(text):
    try:
        expected = [(piece.kind == "span", piece.text) for piece in jax_split(text)]
    except JaxError:
        with pytest.raises(LclmError):
            split_memory(text)
    else:
        assert split_memory(text) == expected


def test_a_reader_gives_placeholders_as_it_is_told():
    values = dict(memory_start_id=1, memory_end_id=2, memory_id=3)
    reader = PromptReader.from_folder(CHECKPOINTS["mlp-tied"], config_of(**values))
    ids, (span,) = reader.read("<|memory_start|>some text to compress<|memory_end|>", True)
    assert ids == [1, *[3] * -(-len(span) // 4), 2]
    doubled, _ = reader.read("<|memory_start|>some text to compress<|memory_end|>", True, 2)
    assert doubled == [1, *[3] * -(-len(span) // 2), 2]


def test_counters_are_shared_through_their_file(tmp_path):
    (tmp_path / "counts").write_bytes(bytes(8 * 8))
    ours, theirs = (Counters(tmp_path / "counts") for _ in range(2))
    ours.add(encoded=3, stored=2)
    ours.add(encoded=1)
    assert {name: count for name, count in theirs.read().items() if count} == {"encoded": 4, "stored": 2}


def test_plain_prompts_begin_with_the_token_that_the_tokenizer_puts_before_a_text():
    from tokenizers.processors import TemplateProcessing

    from tokenizers import Tokenizer

    source = CHECKPOINTS["mlp-tied"]
    built = Tokenizer.from_file(str(source / "decoder" / "tokenizer.json"))
    special = "<|im_start|>"
    bos = built.token_to_id(special)
    built.post_processor = TemplateProcessing(single=f"{special} $A", special_tokens=[(special, bos)])
    encoder = (source / "encoder" / "tokenizer.json").read_text()
    reader = PromptReader(built.to_str(), encoder, config_of(memory_start_id=1, memory_end_id=2, memory_id=3))
    words, *_ = reader.read("some words", False)
    assert reader.read("some words", True)[0] == [bos, *words]
    assert reader.read(f"{special}some words", True)[0] == [bos, *words]
    assert reader.read("<|memory_start|>a<|memory_end|>", True)[0] == [bos, 1, 3, 2]


def test_a_text_that_is_much_too_long_is_refused_without_its_tokens():
    values = dict(memory_start_id=1, memory_end_id=2, memory_id=3)
    reader = PromptReader.from_folder(CHECKPOINTS["mlp-tied"], config_of(**values))
    long = "some words " * 20_000
    for text in (long, f"<|memory_start|>{long}<|memory_end|>"):
        count = sum(map(len, reader.pieces(text, False)))
        assert sum(map(len, reader.pieces(text, False, (count, count)))) == count
        with pytest.raises(LclmError, match="more than the 1,000 tokens"):
            list(reader.pieces(text, False, (1000, 1000)))
