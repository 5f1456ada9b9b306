"""transformers loads an export by its Auto classes and answers as the JAX generator does."""

import copy
import json
import shutil
import threading

import numpy as np
import pytest
import torch
from tests.golden.paths import CASES, CHECKPOINTS
from tests.tiny_exports import PROMPTS, SETTINGS, SPAN, tiny_export
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, TextIteratorStreamer

import lclm_serving
from lclm_jax.inference.generate import Generator
from lclm_jax.inference.prompts import read_example
from lclm_jax.inference.sampling import Sampling
from lclm_jax.interop.load import read_model
from lclm_jax.text.tokenizer import Tokenizer, Tokenizers
from lclm_serving.command import main
from lclm_serving.config import LclmConfig
from lclm_serving.errors import LclmError

NEW_TOKENS = 32


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options), AutoProcessor.from_pretrained(folder)


def inputs_of(processor, prompt):
    return processor(prompt) if isinstance(prompt, str) else processor.apply_chat_template(prompt)


def greedy(model, inputs, **options):
    done = model.generate(
        **inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0,
        eos_token_id=None, **options,
    )  # fmt: skip
    return done[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The first tiny LCLM, once."""
    return tiny_export("mean", tmp_path_factory.mktemp("export") / "model")


def test_prompt_ids_are_those_of_training(exported):
    processor = AutoProcessor.from_pretrained(exported)
    tokenizers = Tokenizers(*(Tokenizer.from_folder(exported / part) for part in ("decoder", "encoder")))
    model = read_model(exported)
    for prompt in PROMPTS.values():
        example, inputs = read_example(prompt, tokenizers, model), inputs_of(processor, prompt)
        assert inputs["input_ids"].tolist() == [example.tokens.tolist()]
        sizes = inputs.get("memory_sizes", torch.tensor([])).tolist()
        assert sizes == [len(span) for span in example.spans]
        for row, span, size in zip(inputs.get("memory_ids", []), example.spans, sizes, strict=True):
            assert row[:size].tolist() == span.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_prompt_ids_and_greedy_tokens_are_those_of_the_jax_generator(name, tmp_path):
    folder = tiny_export(name, tmp_path / "model")
    generator = Generator.from_folder(folder)
    examples = [generator.example(prompt) for prompt in PROMPTS.values()]
    answers = generator.generate_examples(examples, Sampling(max_new_tokens=NEW_TOKENS, stop_ids=()))
    model, processor = load(folder)
    assert model.dtype == torch.float32 and not model.training
    different = set()
    for prompt, example, answer in zip(PROMPTS.values(), examples, answers, strict=True):
        inputs = inputs_of(processor, prompt)
        assert inputs["input_ids"].tolist() == [example.tokens.tolist()]
        assert inputs.get("memory_sizes", torch.tensor([])).tolist() == [len(span) for span in example.spans]
        assert greedy(model, inputs) == [list(answer.ids)]
        different.add(answer.ids)
    assert len(different) == len(PROMPTS)


def test_a_batch_gives_what_its_prompts_give(exported):
    model, processor = load(exported)
    prompts = [PROMPTS[name] for name in ("text", "span", "long", "short")]
    alone = [greedy(model, processor(prompt))[0] for prompt in prompts]
    assert greedy(model, processor(prompts)) == alone
    beams = greedy(model, processor(prompts), num_beams=2, num_return_sequences=2)
    assert len(beams) == 8


def test_latents_may_be_trained_and_the_loss_is_of_the_decoder(exported):
    model, processor = load(exported)
    inputs = processor(PROMPTS["span"])
    done = model(**inputs, labels=inputs["input_ids"])
    assert torch.isfinite(done.loss)
    done.loss.backward()
    assert model.adapter.fc1.weight.grad.abs().sum() > 0


def test_streaming_gives_the_same_text(exported):
    model, processor = load(exported)
    inputs = processor(PROMPTS["span"])
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True)
    options = dict(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None, streamer=streamer)
    thread = threading.Thread(target=model.generate, kwargs={**inputs, **options})
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == processor.decode(greedy(model, inputs)[0][:8])


def test_bfloat16_a_device_map_and_a_saved_copy(exported, tmp_path):
    model, processor = load(exported, dtype=torch.bfloat16, device_map="cpu")
    assert model.dtype == torch.bfloat16
    inputs = processor(PROMPTS["span"])
    exact = load(exported)[0]
    with torch.no_grad():
        rough, fine = (m(**inputs).logits[0, -1].float() for m in (model, exact))
    assert torch.corrcoef(torch.stack([rough, fine]))[0, 1] > 0.99
    exact.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    again, reader = load(tmp_path / "saved")
    assert greedy(again, reader(PROMPTS["span"])) == greedy(exact, inputs)


def test_peft_adapts_the_decoder_alone(exported):
    import peft

    model, processor = load(exported)
    before = greedy(model, processor(PROMPTS["span"]))
    config = peft.LoraConfig(target_modules=r"language_model\..*\.q_proj", init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    assert all(".language_model." in name for name, p in adapted.named_parameters() if p.requires_grad)
    assert greedy(adapted, processor(PROMPTS["span"])) != before
    with adapted.disable_adapter():
        assert greedy(adapted, processor(PROMPTS["span"])) == before


def test_the_auto_classes_know_an_export(exported):
    lclm_serving.register_with_transformers()  # a second time
    config = AutoConfig.from_pretrained(exported)
    assert isinstance(config, LclmConfig) and config.text_config.model_type == "qwen3"
    assert AutoTokenizer.from_pretrained(exported).encode("<|memory|>") == [config.memory_id]


def test_a_published_folder_loads_after_one_command(tmp_path, capsys):
    case = json.loads((CASES["01-mean-causal-mlp-n4-w1024"] / "case.json").read_text())
    folder = shutil.copytree(CHECKPOINTS[case["checkpoint"]], tmp_path / "published")
    (folder / "model_config.json").write_text(json.dumps(case["model_config"]))
    assert main(["add-config", str(folder)]) == 0
    model, processor = load(folder, dtype=torch.float32)
    sample = next(sample for sample in case["samples"] if sample.get("prompt_text") and sample["latent_counts"])
    inputs = processor(sample["prompt_text"])
    assert inputs["input_ids"].tolist() == [sample["prompt_input_ids"]]
    count = len(sample["greedy"]["ids"])
    assert greedy(model, inputs)[0][:count] == sample["greedy"]["ids"]
    (folder / "model_config.json").unlink()
    assert main(["add-config", str(folder)]) == 1
    assert "model_config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a <|memory_start|> b", "never closed"),
        ("a <|memory_end|> b", "closes no span"),
        (SPAN.format(""), "is empty"),
        (SPAN.format(SPAN.format("a")), "do not nest"),
        ("<|memory|>", "placeholders are filled in"),
    ],
)
def test_tags_that_do_not_pair_up_are_refused(exported, text, message):
    with pytest.raises(LclmError, match=message):
        AutoProcessor.from_pretrained(exported)(text)


def test_what_does_not_fit_together_is_refused(exported):
    model, processor = load(exported)
    inputs = processor(PROMPTS["span"])
    cut = copy.copy(inputs.data) | {"memory_sizes": inputs["memory_sizes"] - 8}
    with pytest.raises(LclmError, match="placeholders"):
        model(**cut)
    with pytest.raises(LclmError, match="pooling='max'"):
        LclmConfig(pooling="max")
    with pytest.raises(LclmError, match="multiple of the ratio"):
        LclmConfig(compression_ratio=16, encoder_window_size=40)
    assert np.isfinite(model.pooled([torch.arange(5)])[0].numpy()).all()


def test_a_ratio_of_its_own_for_a_call(exported):
    model, processor = load(exported)
    inputs = [processor(PROMPTS["long"], compression_ratio=ratio) for ratio in (4, 8)]
    sizes = inputs[0]["memory_sizes"]
    places = [int((one["input_ids"] == model.config.memory_id).sum()) for one in inputs]
    assert places == [-(-int(sizes[0]) // ratio) for ratio in (4, 8)]
    assert inputs[1]["memory_ratios"].tolist() == [8]
    span = [inputs[0]["memory_ids"][0, :64]]  # two full windows
    (finer,), (coarser,) = model.pooled(span), model.pooled(span, [8])
    torch.testing.assert_close(coarser, (finer[::2] + finer[1::2]) / 2)
    assert torch.isfinite(model(**inputs[1]).logits).all()
    with pytest.raises(LclmError, match="divides the window"):
        processor(PROMPTS["long"], compression_ratio=7)
