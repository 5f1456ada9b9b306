import json
import signal
import time

import pytest

from lclm_jax.errors import LclmError
from lclm_jax.text.chats import chat_template
from lclm_jax.text.chats.chat_template import ChatError, ChatTemplates, compile_template

USER = [{"role": "user", "content": "hi"}]
PARTS = "{% for m in messages %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"


def templates(folder, configured=None, name=None, **files):
    for stem, source in files.items():
        path = folder / "chat_template.jinja" if stem == "default" else folder / "additional_chat_templates"
        if stem != "default":
            path.mkdir(exist_ok=True)
            path /= f"{stem}.jinja"
        path.write_text(source)
    return ChatTemplates(folder, configured, name)


def test_the_template_is_chosen_as_transformers_does_or_by_name(tmp_path):
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    listed = templates(tmp_path, [*named, {"name": "rag", "template": "R"}])
    assert listed.render(USER, {"tools": None}) == "D"
    assert listed.render(USER, {"tools": [{"name": "f"}]}) == "T"
    assert ChatTemplates(tmp_path, {"default": "D", "rag": "R"}, "rag").render(USER, {}) == "R"
    with pytest.raises(LclmError, match=r"named 'rga' but default, rag; set tokenizer.chat_template"):
        ChatTemplates(tmp_path, {"default": "D", "rag": "R"}, "rga").render(USER, {})
    with pytest.raises(LclmError, match=r"named 'default' but rag"):
        ChatTemplates(tmp_path, {"rag": "R"}).render(USER, {})
    files = templates(tmp_path, listed, default="FD", tool_use="FT")
    assert (files.render(USER, {}), files.render(USER, {"tools": [{}]})) == ("FD", "FT")
    with pytest.raises(LclmError, match="neither a text nor a list"):
        ChatTemplates(tmp_path / "empty", [{"name": "default", "template": 3}])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + none }}", "TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[3].content }}", "no element 3"),
        ("{{ nothing | tojson }}", "TypeError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{ messages[0].items }}", r"prints a function \(items\)"),
    ],
)
def test_whatever_a_template_raises_is_about_its_chat(tmp_path, source, words):
    with pytest.raises(ChatError, match=words):
        templates(tmp_path, source).render(USER, {})


def test_a_template_that_does_not_end_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.2)
    endless = "{% set many = range(99999) %}{% for a in many %}{% for b in many %}{% endfor %}{% endfor %}"
    with pytest.raises(ChatError, match=r"more than 0\.2 s over one chat"):
        templates(tmp_path, endless).render(USER, {})
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert templates(tmp_path, "{{ messages[0].content }}").render(USER, {}) == USER[0]["content"]


def test_the_date_is_fixed_and_nothing_random_is_there(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    render = compile_template("{{ strftime_now('%d %b %Y') }}").render
    assert render() == "26 Jul 2024"  # what Llama 3's template prints without a clock
    form = "%A %B %-d %c %x %X %p%Z %H:%M %%d %j"
    assert compile_template("{{ strftime_now(form) }}").render(form=form) == (
        "Friday July 26 Fri Jul 26 00:00:00 2024 07/26/24 00:00:00 AM 00:00 %d 208"
    )
    for source in ("{{ [1, 2] | random }}", "{{ lipsum() }}"):
        with pytest.raises((LclmError, Exception), match=r"random|lipsum"):
            compile_template(source).render()


def test_templates_that_print_parts_alone_get_parts(tmp_path):
    both = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}parts{% endif %}{% endfor %}"
    assert templates(tmp_path, PARTS + "{% endfor %}").render(USER, {}) == "hi"
    assert ChatTemplates(tmp_path, both).render(USER, {}) == "hi"
    assert ChatTemplates(tmp_path, "{{ messages | tojson }}").render(USER, {}) == json.dumps(USER)
