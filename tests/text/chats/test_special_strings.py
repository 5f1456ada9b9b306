import pytest

from lclm_jax.text.chats.chat_template import ChatError, compile_template
from lclm_jax.text.chats.special_strings import SpecialStrings, SpecialTokenError

TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|end|>", "<|user|>", "[INST]")
TEMPLATE = compile_template(
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.reasoning_content or '' }}{{ m.name or '' }}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments if c.function.arguments is string"
    " else c.function.arguments | tojson }}{% endfor %}<|im_end|>\n{% endfor %}{{ (tools or []) | tojson }}"
)
PHI = compile_template("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}")
USER, REPLY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}


def call(**function):
    return REPLY | {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}} | function}]}


def check(messages, tools=None, template=TEMPLATE):
    def render(messages, tools):
        return template.render(messages=messages, tools=tools)

    SpecialStrings(TOKENS).check(messages, tools, render(messages, tools), render)


@pytest.mark.parametrize(
    ("messages", "tools", "place"),
    [
        ([USER | {"content": "a<|im_end|>"}, REPLY], None, r"messages\[0\].content: 'a<\|im_end\|>'"),
        ([USER | {"name": "<|im_end|>"}, REPLY], None, r"messages\[0\].name"),
        ([USER | {"role": "x<|im_start|>"}, REPLY], None, r"messages\[0\].role"),
        ([USER, REPLY | {"reasoning_content": "[INST]"}], None, r"messages\[1\].reasoning_content"),
        ([USER, call(name="<|im_end|>")], None, r"tool_calls\[0\].function.name"),
        ([USER, call(arguments={"a": [{"b": "<|endoftext|>"}]})], None, r"function.arguments.a\[0\].b"),
        ([USER, call(arguments={"<|endoftext|>": 1})], None, r"function.arguments.<\|endoftext\|>"),
        ([USER, call(arguments='{"q": "<|im_end|>"}')], None, r"function.arguments: "),
        (
            [USER, REPLY],
            [{"name": "f", "parameters": {"q": {"description": "<|im_end|>"}}}],
            r"tools\[0\].*description",
        ),
        # Memory tags are wanted in content alone.
        ([USER | {"name": "<|memory_start|>"}, REPLY], None, r"messages\[0\].name"),
        # Strings that become a token beside each other.
        ([USER | {"name": "<|im_", "content": "end|> x"}, REPLY], None, r"messages\[0\]"),
        ([USER | {"name": "<|im", "content": "_end", "reasoning_content": ""}, call(name="|>")], None, None),
        ([USER | {"name": "<|memory_", "content": "start|> x"}, REPLY], None, r"messages\[0\]"),
    ],
)
def test_special_tokens_in_what_is_printed_are_refused_by_place(messages, tools, place):
    if place is None:
        check(messages, tools)  # the template prints other text between them
        return
    with pytest.raises(SpecialTokenError, match=place):
        check(messages, tools)


def test_what_is_not_printed_or_is_no_token_is_harmless():
    check([USER | {"meta": "<|im_end|>"}, REPLY])
    check([USER | {"content": "<|memory_start|>a<|memory_end|> b > c <| |> im_end"}, REPLY | {"content": "<b>"}])
    check([USER | {"content": "user"}, REPLY | {"content": "> quoted <"}], [{"type": "function", "name": "end"}])


def test_roles_between_brackets_of_the_template():
    check([USER, REPLY], template=PHI)
    check([{"role": "critic", "content": "x"}, REPLY], template=PHI)
    with pytest.raises(SpecialTokenError, match=r"messages\[0\].role: 'end'"):
        check([{"role": "end", "content": "x"}, REPLY], template=PHI)


def test_a_template_that_refuses_the_broken_chat_does_not_pass():
    def render(messages, tools):
        if "\ue000" in messages[0]["content"]:
            raise ChatError("no")
        return messages[0]["content"]

    with pytest.raises(SpecialTokenError):
        SpecialStrings(TOKENS).check([USER | {"content": "<|im_end|>"}], None, "<|im_end|>", render)
