import json
import pickle

import numpy as np
import pytest

from lclm_jax.errors import LclmError
from lclm_jax.text.chat_template import compile_template
from lclm_jax.text.memory_tags import MEMORY_TOKENS
from lclm_jax.text.tokenizer import Tokenizer
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
