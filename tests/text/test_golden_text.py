import json

import numpy as np
import pytest
from tests.golden.paths import CASES, CHECKPOINTS, REFERENCE

from lclm_jax.errors import LclmError
from lclm_jax.parity.case import empty_span_prompt_example
from lclm_jax.text.example import chat_example, cpt_example, placeholder_ranges, prompt_example
from lclm_jax.text.tokenizer import Tokenizer


def test_tokenizer_cases(golden_pair):
    decoder, encoder = golden_pair
    cases = json.loads((REFERENCE / "tokenizer_cases.json").read_text())
    for case in cases["texts"]:
        assert decoder.encode(case["text"]).tolist() == case["decoder_ids"]
        assert encoder.encode(case["text"]).tolist() == case["encoder_ids"]
        assert decoder.decode(case["decoder_ids"]) == case["decoded"]
        assert decoder.decode(case["decoder_ids"], skip_special=True) == case["decoded_skip_special"]
    for case in cases["chats"]:
        assert decoder.render_chat(case["messages"], add_generation_prompt=True) == case["generation_prompt"]
        answered = [*case["messages"], {"role": "assistant", "content": "Done."}]
        assert decoder.render_chat(answered) == case["full_with_answer"]
    assert decoder.special_tokens == cases["decoder_special_ids"]
    assert (decoder.pad_id, decoder.eos_id) == (cases["decoder_pad_id"], cases["decoder_eos_id"])
    assert encoder.pad_id == cases["encoder_pad_id"]
    with pytest.raises(LclmError, match=r"lacks <\|memory_start\|>.*add them"):
        _ = encoder.memory_ids


def test_every_golden_sample():
    seen = 0
    for folder in CASES.values():
        case = json.loads((folder / "case.json").read_text())
        checkpoint = CHECKPOINTS[case["checkpoint"]]
        decoder, encoder = (Tokenizer.from_folder(checkpoint / part) for part in ("decoder", "encoder"))
        for sample in case["samples"]:
            _check_sample(sample, decoder, encoder, case["model_config"]["compression_ratio"])
            seen += 1
    assert seen > 20


def _check_sample(sample, decoder, encoder, ratio):
    kind, empty = sample["kind"], "path" in sample
    if kind == "cpt":
        example = cpt_example(sample["text"], decoder, encoder, ratio)
    elif kind == "sft":
        example = chat_example(sample["messages"], decoder, encoder, ratio, target=sample["target"])
    else:
        make = empty_span_prompt_example if empty else prompt_example
        example = make(sample["messages"], decoder, encoder, ratio)
    assert example.tokens.tolist() == sample["input_ids"]
    assert [span.tolist() for span in example.spans] == sample["memory_token_ids"]
    ranges = placeholder_ranges(example.tokens, decoder.memory_ids.placeholder)
    assert [list(pair) for pair in ranges] == sample["memory_positions"]
    assert [stop - start for start, stop in ranges] == sample["latent_counts"]
    if sample["labels"] is not None:
        labels = np.array(sample["labels"])
        assert example.loss[0] == 0
        np.testing.assert_array_equal(example.loss[1:] > 0, labels[1:] != -100)
        assert set(example.loss.tolist()) <= {0.0, 1.0}
        assert example.loss.sum() == sample["num_loss_tokens"]
    if not empty:
        prompt = prompt_example(sample["text"] if kind == "cpt" else sample["messages"], decoder, encoder, ratio)
        assert prompt.tokens.tolist() == sample["prompt_input_ids"]
        assert not prompt.loss.any()
