import json
import pickle

import numpy as np
import pytest

import tokenizers
from lclm_jax.errors import LclmError
from lclm_jax.text.chats.chat_template import compile_template
from lclm_jax.text.example import (
    DocumentTokens,
    Segment,
    cpt_example,
    cpt_example_from_ids,
    placeholder_ranges,
    prompt_example,
)
from lclm_jax.text.memory_tags import MEMORY_TOKENS
from lclm_jax.text.tokenizer import Tokenizer, Tokenizers, check_vocabularies
from lclm_jax.text.train_tokenizer import SPECIAL_TOKENS, train_tokenizer

TEXTS = ["def f(x):\n    return x + 1\n" * 20, "Read the manual; it's short. <|im_end|> héllo\n" * 20]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return train_tokenizer(TEXTS, 300, tmp_path_factory.mktemp("trained") / "t")


def test_training_gives_the_same_bytes_and_the_special_tokens_last(folder, tmp_path):
    again = train_tokenizer(iter(TEXTS), 300, tmp_path)
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    tokenizer = Tokenizer(folder)
    assert tokenizer.vocab_size == 300
    assert [tokenizer.token_id(token) for token in SPECIAL_TOKENS] == list(range(294, 300))
    assert tuple(tokenizer.memory_ids) == tuple(tokenizer.token_id(token) for token in MEMORY_TOKENS)
    assert tokenizer.eos_id == tokenizer.token_id("<|im_end|>")
    assert tokenizer.pad_id == tokenizer.token_id("<|endoftext|>")


def test_transformers_reads_the_folder_the_same_way(folder):
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer(folder)
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi <|memory_start|>x<|memory_end|>"}]
    text = ours.render_chat(messages, add_generation_prompt=True)
    assert theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == text
    for sample in (text, *TEXTS, "  \n\n x", "", "é東🙂", "12345 can't"):
        assert theirs(sample, add_special_tokens=False).input_ids == ours.encode(sample).tolist()
        assert theirs.decode(ours.encode(sample)) == ours.decode(ours.encode(sample))
    assert (theirs.eos_token_id, theirs.pad_token_id, len(theirs)) == (ours.eos_id, ours.pad_id, ours.vocab_size)


def test_offsets_cover_the_text(folder):
    text = "  def é東(x):\n"
    ids, starts, ends = Tokenizer(folder).encode_with_offsets(text)
    assert ids.dtype == starts.dtype == ends.dtype == np.int32
    assert len(ids) == len(starts) == len(ends)
    assert (starts[0], ends[-1]) == (0, len(text))
    assert (starts[1:] <= ends[:-1]).all()


def test_plain_text_gives_added_tokens_that_are_not_special(folder, tmp_path):
    built = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    built.add_tokens([tokenizers.AddedToken("<think>", normalized=False)])
    built.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.encode("<think>", plain=True).tolist() == [300]
    assert (Tokenizer(folder).plain_vocab_size, tokenizer.plain_vocab_size) == (294, 301)
    check_vocabularies(301, 301, Tokenizers(tokenizer, tokenizer))
    with pytest.raises(LclmError, match=r"model.encoder.vocab_size=300 is below the 301 ids"):
        check_vocabularies(301, 300, Tokenizers(tokenizer, tokenizer))


def test_settings_without_the_vocabulary_are_the_rest_of_them(folder):
    tokenizer = Tokenizer(folder)
    whole, small = tokenizer.settings, tokenizer.small_settings
    assert {"vocab", "merges"} <= whole["model"].keys() and not {"vocab", "merges"} & small["model"].keys()
    for name in ("vocab", "merges"):
        del whole["model"][name]
    assert small == whole


def test_it_travels_to_worker_processes(folder):
    tokenizer = Tokenizer(folder)
    tokenizer.render_chat([{"role": "user", "content": "x"}])
    assert pickle.loads(pickle.dumps(tokenizer)).digest == tokenizer.digest


@pytest.mark.parametrize(
    ("size", "texts", "words"), [(200, TEXTS, "below 262.*raise"), (300, [], "no text"), (300, [""], "no text")]
)
def test_bad_training_input(tmp_path, size, texts, words):
    with pytest.raises(LclmError, match=words):
        train_tokenizer(texts, size, tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()


def test_bad_folders(folder, tmp_path):
    with pytest.raises(LclmError, match=r"a tokenizer folder holds a tokenizer.json"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(LclmError, match="is not a tokenizer"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(LclmError, match=r"put a chat_template.jinja"):
        Tokenizer(tmp_path).render_chat([])
    with pytest.raises(LclmError, match="set eos_token"):
        _ = Tokenizer(tmp_path).eos_id
    templates = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "{{ messages[0].content }}!"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    assert Tokenizer(tmp_path).render_chat([{"role": "user", "content": "a"}]) == "a!"


def test_templates_are_sandboxed_and_have_the_usual_helpers(folder, tmp_path):
    render = compile_template("{% generation %}{{ value | tojson }}{% endgeneration %}").render
    assert render(value={"a": "é<"}) == '{"a": "é<"}'
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(LclmError, match="roles must alternate; check the messages"):
        Tokenizer(tmp_path).render_chat([])
    (tmp_path / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(LclmError, match="unsafe"):
        Tokenizer(tmp_path).render_chat([])
    with pytest.raises(LclmError, match="does not compile"):
        compile_template("{% if %}")


LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m.role }}\n{{ m.content }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant\n{% endif %}"
)


def with_bos(folder, out, **config):
    """The tokenizer as a Llama's: a post-processor that puts <|bos|> before a text, a template that prints it."""
    built = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    built.add_special_tokens(["<|bos|>", "<|eot|>", "<|head|>", "<|end|>"])
    before = [("<|bos|>", built.token_to_id("<|bos|>"))]
    built.post_processor = tokenizers.processors.TemplateProcessing(single="<|bos|> $A", special_tokens=before)
    out.mkdir(exist_ok=True)
    built.save(str(out / "tokenizer.json"))
    names = {"bos_token": "<|bos|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (out / "tokenizer_config.json").write_text(json.dumps(names | config))
    (out / "chat_template.jinja").write_text(LLAMA_TEMPLATE)
    return Tokenizer(out)


def test_bos_begins_every_text_once(folder, tmp_path):
    assert Tokenizer(folder).bos_id is None
    tokenizer = with_bos(folder, tmp_path)
    bos, text = tokenizer.token_id("<|bos|>"), "a <|memory_start|>few<|memory_end|> words"
    assert tokenizer.bos_id == bos == tokenizer.named_ids["bos_token_id"]
    assert bos not in tokenizer.encode(text)
    for prompt in (text, "<|bos|>" + text, text[2:], [{"role": "user", "content": text}]):
        example = prompt_example(prompt, tokenizer, tokenizer, 4)
        assert example.tokens[0] == bos and (example.tokens == bos).sum() == 1
        ((start, stop),) = placeholder_ranges(example.tokens, tokenizer.memory_ids.placeholder)
        assert example.tokens[[start - 1, stop]].tolist() == list(tokenizer.memory_ids[:2])
    trained = cpt_example("words", tokenizer, tokenizer, 4)
    assert trained.tokens[0] == bos and trained.loss[0] == 0 and trained.loss[1:].all()
    document = DocumentTokens(tokenizer.encode("words"), np.array([0, len(trained.tokens) - 1]), *[np.zeros(0)] * 2)
    rows = cpt_example_from_ids(document, [Segment(False, 0, 1)], tokenizer.memory_ids, 4, bos)
    np.testing.assert_array_equal(rows.tokens, trained.tokens)
    np.testing.assert_array_equal(rows.loss, trained.loss)


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "LlamaTokenizerFast"])
@pytest.mark.parametrize("said", [None, True, False])
@pytest.mark.parametrize("processed", [True, False])
def test_bos_is_put_where_transformers_puts_it(folder, tmp_path, name, said, processed):
    transformers = pytest.importorskip("transformers")
    with_bos(folder, tmp_path, tokenizer_class=name, **({} if said is None else {"add_bos_token": said}))
    if not processed:
        values = json.loads((tmp_path / "tokenizer.json").read_text())
        (tmp_path / "tokenizer.json").write_text(json.dumps(values | {"post_processor": None}))
    tokenizer = Tokenizer(tmp_path)
    first = transformers.AutoTokenizer.from_pretrained(tmp_path)("words").input_ids[0]
    assert (first == tokenizer.token_id("<|bos|>")) == (tokenizer.bos_id is not None)


def test_several_tokens_before_a_text_are_refused(folder, tmp_path):
    with_bos(folder, tmp_path)
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    values["post_processor"]["single"].insert(0, values["post_processor"]["single"][0])
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(LclmError, match="puts 2 tokens before a text"):
        _ = Tokenizer(tmp_path).bos_id


def test_stops_are_names_lists_and_the_end_of_a_reply(folder, tmp_path):
    plain = Tokenizer(folder)
    assert plain.stop_ids == {plain.eos_id, plain.pad_id}
    tokenizer = with_bos(folder, tmp_path)
    names = {tokenizer.token_id(name) for name in ("<|im_end|>", "<|endoftext|>", "<|eot|>")}
    assert tokenizer.stop_ids == names
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokenizer.token_id("<|end|>"), 7]}))
    assert Tokenizer(tmp_path).stop_ids == names | {tokenizer.token_id("<|end|>"), 7}
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no chat') }}")
    assert Tokenizer(tmp_path).stop_ids == (names | {tokenizer.token_id("<|end|>"), 7}) - {
        tokenizer.token_id("<|eot|>")
    }
