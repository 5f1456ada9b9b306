import jax
import numpy as np
import pytest
from tests.exporting import export_model

from lclm_jax.config import MeshConfig
from lclm_jax.data.packing.rows import assemble_batch, pack_for
from lclm_jax.errors import LclmError
from lclm_jax.inference import generate, step
from lclm_jax.inference.generate import Generator
from lclm_jax.inference.prompts import read_example
from lclm_jax.inference.sampling import Sampling, pick
from lclm_jax.model.lclm import forward, logits
from lclm_jax.parallel import make_mesh, use_mesh
from lclm_jax.text.example import Example
from lclm_jax.text.memory_tags import MemoryTagError
from lclm_jax.text.tokenizer import Tokenizers
from lclm_jax.train.core.initial_state import params_shardings

PROMPTS = [
    "plain words and nothing more",
    "see <|memory_start|>a few words that are read by the encoder<|memory_end|> then go on",
    [{"role": "user", "content": "<|memory_start|>abc<|memory_end|> and <|memory_start|>def ghi<|memory_end|>?"}],
]


def test_cached_greedy_equals_full_forward(generator):
    sampling = Sampling(max_new_tokens=5, stop_ids=())
    answers = generator.generate(PROMPTS, sampling)
    examples = [generator.example(prompt) for prompt in PROMPTS]
    grown = [
        [Example(np.append(e.tokens, np.array(answer.ids, np.int32)), np.zeros(len(e.tokens) + 5, np.float32), e.spans)]
        for e, answer in zip(examples, answers, strict=True)
    ]
    batch = assemble_batch(grown, generator.model, pack_for(grown, generator.model))
    with use_mesh(generator.mesh):
        out = logits(generator.params, generator.model, forward(generator.params, generator.model, batch))
    for row, (example, answer) in enumerate(zip(examples, answers, strict=True)):
        start = len(example.tokens) - 1
        assert np.argmax(out[row, start : start + 5], axis=-1).tolist() == list(answer.ids)


def test_batch_and_stream_agree_with_single(generator):
    sampling = Sampling(max_new_tokens=6)
    together = generator.generate(PROMPTS, sampling)
    for prompt, answer in zip(PROMPTS, together, strict=True):
        assert generator.generate([prompt], sampling)[0] == answer
        assert "".join(generator.stream(prompt, sampling)) == answer.text


def test_an_encoder_without_rows_for_the_ids_of_text_is_refused(generator):
    small = generator.model.model_copy(update={"encoder": generator.model.encoder.model_copy(update={"vocab_size": 9})})
    with pytest.raises(LclmError, match=r"model.encoder.vocab_size=9 is below the \d+ ids of its tokenizer"):
        Generator(generator.params, small, generator.decoder_tokenizer, generator.encoder_tokenizer)


def test_stop_tokens_end_a_row_and_are_not_shown(generator):
    free = generator.generate(PROMPTS[:1], Sampling(max_new_tokens=6, stop_ids=()))[0]
    stop = free.ids[2]
    first = free.ids.index(stop)
    ended = generator.generate(PROMPTS[:1], Sampling(max_new_tokens=6, stop_ids=(stop,)))[0]
    assert ended.ids == free.ids[: first + 1]
    assert ended.stopped
    assert not free.stopped
    assert ended.text == generator.decoder_tokenizer.decode(free.ids[:first])


def test_draws_depend_on_the_seed_alone(generator):
    def draw(seed):
        return generator.generate(PROMPTS[:1], Sampling(max_new_tokens=6, temperature=1.0, seed=seed, stop_ids=()))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_pick():
    logits_BV = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], np.float32))
    seen = np.zeros((1, 4), bool)
    keys = jax.random.split(jax.random.key(0), 200)
    assert {int(pick(logits_BV, seen, key, 1.0, 0.7, 1.0)[0]) for key in keys} == {0, 1}
    assert {int(pick(logits_BV, seen, key, 1.0, 0.01, 1.0)[0]) for key in keys[:20]} == {0}
    assert int(pick(logits_BV, seen, keys[0], 0.0, 1.0, 1.0)[0]) == 0
    seen[0, 0] = True
    assert int(pick(logits_BV, seen, keys[0], 0.0, 1.0, 2.0)[0]) == 1  # log 0.5 doubled is below log 0.3


def test_few_shapes_are_compiled(generator):
    before = generate.prefill._cache_size(), step._advance_layers._cache_size()
    words = "a few words " * 4
    for length in range(20, len(words), 3):
        generator.generate([words[:length]], Sampling(max_new_tokens=2))
    assert generate.prefill._cache_size() - before[0] <= 2
    assert step._advance_layers._cache_size() - before[1] <= 2


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a <|memory_start|>b", "never closed"),
        ("a <|memory_end|>", "closes no span"),
        ("<|memory_start|><|memory_end|>", "empty"),
        ("<|memory_start|>a<|memory_start|>b<|memory_end|>", "do not nest"),
    ],
)
def test_bad_tags_are_refused(generator, prompt, message):
    with pytest.raises(MemoryTagError, match=message):
        generator.generate([prompt])


def test_bad_requests_are_refused(generator):
    with pytest.raises(LclmError, match="prompt is empty"):
        generator.generate([""])
    with pytest.raises(LclmError, match="max_positions=40960"):
        generator.generate(PROMPTS[:1], Sampling(max_new_tokens=50_000))
    for wrong in ({"temperature": float("nan")}, {"seed": 2**70}):
        with pytest.raises(LclmError, match=next(iter(wrong))):
            Sampling(**wrong)
    for wrong in ({"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"repetition_penalty": 0.0}):
        with pytest.raises(LclmError, match=next(iter(wrong))):
            Sampling(**wrong)


def test_ids_beyond_a_table_are_refused(generator):
    model = generator.model
    tokenizers = Tokenizers(generator.decoder_tokenizer, generator.encoder_tokenizer)
    for tower, message in (
        ("encoder", "memory span 1 has 'f', token"),
        ("decoder", "the prompt has '<|im_start|>', token"),
    ):
        small = model.model_copy(update={tower: getattr(model, tower).model_copy(update={"vocab_size": 66})})
        with pytest.raises(LclmError, match=rf"{message.replace('|', '[|]')} .*table has 66 rows"):
            read_example("<|im_start|>A <|memory_start|>Bf<|memory_end|>", tokenizers, small)


def test_a_model_of_several_devices_that_share_positions(generator):
    """One position at a time cannot be shared: these devices take rows of their own."""
    mesh = make_mesh(MeshConfig(fsdp=1, context=2), jax.devices()[:2])
    spread = Generator(
        jax.device_put(generator.params, params_shardings(generator.model, mesh)),
        generator.model,
        generator.decoder_tokenizer,
        generator.encoder_tokenizer,
        mesh,
    )
    assert dict(spread.mesh.shape) == {"replica": 1, "fsdp": 2, "context": 1, "tensor": 1}
    sampling = Sampling(max_new_tokens=3)
    assert spread.generate(PROMPTS[:1], sampling) == generator.generate(PROMPTS[:1], sampling)


STORED = [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float32")]


@pytest.mark.parametrize(("stored", "computed"), STORED)
def test_a_folder_is_run_as_it_is_stored(generator, tmp_path, stored, computed):
    folder = generator.decoder_tokenizer.folder
    export_model(
        generator.params,
        generator.model,
        tmp_path / "out",
        decoder_tokenizer=folder,
        encoder_tokenizer=folder,
        dtype=stored,
    )
    loaded = Generator.from_folder(tmp_path / "out")
    assert loaded.model.compute_dtype == computed
    if stored == "float32":
        assert loaded.generate(PROMPTS[1:2]) == generator.generate(PROMPTS[1:2])
    assert Generator.from_folder(tmp_path / "out", compute_dtype="float32").model.compute_dtype == "float32"
