"""Where an analysis ends: tags, separators, the last tokens."""

import pytest

from lclm_jax.text.chats.reasoning import find_analysis, thinking_tags
from lclm_jax.text.chats.rendered import render_trained
from lclm_jax.text.example import rendered_outline
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer

TEXTS = [f"Sentence {i} thinks about the number {i} and é, 東京. Final Answer: {i}\n" for i in range(300)]
QUESTION = {"role": "user", "content": "Why?"}
HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.thinking %}<|channel|>analysis<|message|>{{ m.thinking }}"
    "<|end|><|start|>assistant<|channel|>final{% endif %}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
QWEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n"
    "</think>\n\n{% elif m.role == 'assistant' and '</think>' not in m.content %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<r>{{ m.reasoning_content }}</r>"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<r>"
    "{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return train_tokenizer(TEXTS, 400, tmp_path_factory.mktemp("reasoning") / "tokenizer")


@pytest.fixture(scope="module")
def decoder(folder):
    return Tokenizer(folder)


def with_template(folder, tmp_path, template):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(template)
    return Tokenizer(tmp_path)


def analysis(decoder, content, keep_last=128, separators=(), **keys):
    """(boundary, analysis, what stays raw before it, what stays raw after it)."""
    chat = render_trained([QUESTION, {"role": "assistant", "content": content, **keys}], decoder)
    found = find_analysis(chat, decoder, separators, keep_last)
    if found is None:
        return None
    reply = chat.reply
    return found.boundary, reply[found.start : found.stop], reply[: found.start], reply[found.stop :]


def test_tags_of_the_text_stay_raw(decoder):
    assert thinking_tags(decoder) == ()
    assert analysis(decoder, "<think>\nHm. Yes.\n</think>\n\nYes.") == (
        "tags",
        "\nHm. Yes.\n",
        "<think>",
        "</think>\n\nYes.<|im_end|>\n",
    )
    assert analysis(decoder, "Hm.</think> Yes.")[1:3] == ("Hm.", ""), "the prompt may have opened it"
    assert analysis(decoder, "<analysis>Hm.</analysis>Yes.")[:2] == ("tags", "Hm.")
    assert analysis(decoder, "<think>\n\n</think>\n\n" + TEXTS[0] * 9, keep_last=4) is None


@pytest.mark.parametrize(
    ("template", "tags", "keys"),
    [
        (QWEN, ("<think>", "</think>"), {"reasoning_content": "Hm."}),
        (
            HARMONY,
            ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
            {"thinking": "Hm."},
        ),
        (OPENED, ("", "</r>"), {"reasoning_content": "Hm."}),
    ],
    ids=["qwen", "harmony", "opened"],
)
def test_tags_are_those_that_the_template_prints(folder, tmp_path, template, tags, keys):
    decoder = with_template(folder, tmp_path, template)
    assert thinking_tags(decoder) == (tags,)
    boundary, text, before, after = analysis(decoder, "Yes.", **keys)
    assert (boundary, text.strip()) == ("tags", "Hm.")
    assert before.endswith(tags[0])
    assert after.startswith(tags[1])


def test_an_empty_block_of_the_template_is_no_boundary_of_the_reply(folder, tmp_path):
    decoder = with_template(folder, tmp_path, QWEN)
    assert analysis(decoder, TEXTS[0] + "Yes.", keep_last=2)[0] == "last_tokens"


def test_the_last_separator_with_text_around_it_ends_the_analysis(decoder):
    text = "Final Answer: unknown. Final Answer: 4"
    assert analysis(decoder, text, separators=("Final Answer:",))[:2] == ("separator", "Final Answer: unknown. ")
    assert analysis(decoder, "Final Answer: 4", separators=("Final Answer:",)) is None
    assert analysis(decoder, f"<think>{text}</think>4", separators=("Final Answer:",))[0] == "tags"


@pytest.mark.parametrize("keep_last", [1, 7, 20])
def test_the_last_tokens_stay_as_they_are(decoder, keep_last):
    content = "".join(TEXTS[:3]).strip()
    boundary, text, before, after = analysis(decoder, content, keep_last)
    kept = after.removesuffix("<|im_end|>\n")
    assert (boundary, before, text + kept) == ("last_tokens", "", content)
    ids = decoder.encode(content)
    tail = decoder.encode(kept)
    assert tail.tolist() == ids[len(ids) - len(tail) :].tolist()
    assert keep_last <= len(tail) <= keep_last + 4
    assert analysis(decoder, kept, keep_last=len(tail)) is None, "nothing before them"


def test_the_span_has_no_loss_and_what_is_raw_has(decoder):
    question = {"role": "user", "content": "<|memory_start|>A book.<|memory_end|> Why?"}
    messages = [question, {"role": "assistant", "content": "No."}, QUESTION]
    chat = render_trained([*messages, {"role": "assistant", "content": "<think>Hm.</think>Yes."}], decoder, "all")
    found = find_analysis(chat, decoder)
    outline = rendered_outline(chat.with_span(found.start, found.stop), decoder, decoder)
    assert [decoder.decode(span) for span in outline.spans] == ["A book.", "Hm."]
    assert decoder.decode(outline.tokens[outline.loss > 0]) == "No.<|im_end|>\n<think></think>Yes.<|im_end|>\n"
    start, end, _ = decoder.memory_ids
    assert [outline.tokens[gap - 1 : gap + 1].tolist() for gap in outline.gaps] == [[start, end]] * 2
