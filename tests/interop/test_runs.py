"""What an export of a run takes from its configuration beside the weights."""

import shutil

import pytest

from lclm_jax.errors import LclmError
from lclm_jax.interop.runs import make_default_template
from lclm_jax.text.tokenizer import Tokenizer


def test_the_template_that_was_trained_on_becomes_the_default(tokenizer, tmp_path):
    shutil.copytree(tokenizer, tmp_path / "decoder")
    other = tmp_path / "decoder" / "additional_chat_templates"
    other.mkdir()
    (other / "plain.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    shutil.copyfile(tmp_path / "decoder" / "tokenizer.json", tmp_path / "tokenizer.json")
    make_default_template(tmp_path, "plain")
    messages = [{"role": "user", "content": "one"}]
    assert Tokenizer(tmp_path / "decoder").render_chat(messages) == Tokenizer(tmp_path).render_chat(messages) == "one"
    with pytest.raises(LclmError, match="'rag' is not one of default, plain"):
        make_default_template(tmp_path, "rag")
