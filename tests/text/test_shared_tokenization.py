import json

import pytest

from lclm_jax.text.shared_tokenization import shared_tokenization
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    train_tokenizer(["one two three, one two"], 280, folder)
    return Tokenizer(folder)


@pytest.fixture
def changed(decoder, tmp_path):
    """A tokenizer with some parts of the decoder's file replaced."""

    def make(change):
        settings = json.loads(decoder.json)
        change(settings)
        (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
        return Tokenizer(tmp_path)

    return make


def added(content, index, special=False, **flags):
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": content, "special": special} | usual | flags


def test_special_tokens_templates_and_post_processing_do_not_matter(decoder, changed):
    def change(settings):
        settings["added_tokens"] = [*settings["added_tokens"][:-1], added("<|more|>", 400, special=True)]
        settings["post_processor"] = None
        settings["model"]["merges"] = [" ".join(pair) for pair in settings["model"]["merges"]]  # an older spelling

    shared = shared_tokenization(decoder, changed(change))
    assert shared is not None
    assert shared.differing == ()


def test_texts_with_an_added_token_of_one_alone_are_told_apart(decoder, changed):
    other = changed(lambda settings: settings["added_tokens"].append(added("<think>", 400)))
    shared = shared_tokenization(decoder, other)
    assert shared.differing == ("<think>",)
    for text in ("one <think two", "one <think> two"):
        equal = decoder.encode(text, plain=True).tolist() == other.encode(text, plain=True).tolist()
        assert shared.covers(text) == equal


@pytest.mark.parametrize(
    "change",
    [
        lambda settings: settings["model"]["merges"].pop(),
        lambda settings: settings.update(normalizer={"type": "Lowercase"}),
        lambda settings: settings.update(pre_tokenizer=None),
        lambda settings: settings["model"].update(byte_fallback=True),
        lambda settings: settings["added_tokens"].append(added("<think>", 400, lstrip=True)),
    ],
)
def test_others_may_differ_on_any_text(decoder, changed, change):
    assert shared_tokenization(decoder, changed(change)) is None
