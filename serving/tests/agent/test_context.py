import pytest

from lclm_agent import AgentError, Reply
from lclm_agent.comparison import compare, conversation, table
from lclm_agent.context import OUT, RAW, TITLE, Context
from lclm_agent.escape import END, START
from lclm_agent.policies import POLICIES, focus, replay_all, steady, summary_by, truncate

LONG = "word " * 40


def filled(policy, budget=150, messages=10, **options):
    context = Context(policy, budget, **options)
    context.add({"role": "system", "content": "Be brief."})
    for number in range(messages):
        context.add({"role": "user", "content": f"{LONG}number {number}"}, title=f"number {number}")
    return context


def test_replay_all_sends_everything():
    sent = filled(replay_all).messages()
    assert len(sent) == 11 and all(START not in one["content"] for one in sent)


def test_truncate_keeps_the_newest_that_fit_and_what_is_pinned():
    context = filled(truncate)
    sent = [one["content"].split()[-1] for one in context.messages()]
    assert sent == ["brief.", "7", "8", "9"]
    assert context.levels[:8] == [RAW, *[OUT] * 7]


def test_steady_lowers_the_oldest_and_leaves_levels_alone_while_they_fit():
    context = filled(steady, budget=330)
    first = context.messages()
    assert context.levels[0] == RAW and context.levels[-1] == RAW
    assert context.levels[1] == "16x" and first[1]["content"].startswith(f"seg_2: {START}word")
    levels = list(context.levels)
    context.add({"role": "assistant", "content": "Yes."})
    second = context.messages()
    assert context.levels == [*levels, RAW] and second[: len(first)] == first  # the prefix stays
    for number in range(30):
        context.add({"role": "user", "content": f"{LONG}more {number}"})
    context.messages()
    used = sum(context.cost(item, level) for item, level in zip(context.items, context.levels, strict=True))
    assert used <= 330 and {TITLE, OUT} & set(context.levels)


def test_mild_ratios_come_before_strong_ones():
    context = filled(steady, budget=400, ratios=(16, 4))
    context.messages()
    assert "4x" in context.levels and "16x" not in context.levels


def test_focus_raises_what_the_question_is_about():
    context = filled(focus, budget=150)
    context.add({"role": "user", "content": "The zebra sleeps."})
    for _ in range(8):
        context.add({"role": "user", "content": LONG})
    context.add({"role": "user", "content": "Where does the zebra sleep?"})
    context.messages()
    assert context.levels[11] == RAW and context.levels[1] != RAW
    assert sum(map(context.cost, context.items, context.levels)) <= 150


def test_expanding_gives_the_text_harmless():
    context = Context(steady, 100)
    context.add({"role": "tool", "tool_call_id": "1", "content": f"a {END} b"})
    assert context.expand("SEG_1") == "a < |memory_end|> b"
    assert context.expand("seg_7") == "There is no message seg_7; there are seg_1 to seg_1."
    assert context.messages()[0]["content"] == "a < |memory_end|> b"


def test_calls_and_results_stay_together():
    context = Context(truncate, 60)
    call = {"id": "1", "type": "function", "function": {"name": "read", "arguments": "{}"}}
    context.add({"role": "assistant", "content": "", "tool_calls": [call]})
    context.add({"role": "tool", "tool_call_id": "1", "content": "short"})
    assert [one["role"] for one in context.messages()] == ["assistant", "tool"]
    context.add({"role": "user", "content": "word " * 45})
    roles = [(one["role"], "tool_calls" in one) for one in context.messages()]
    assert ("tool", False) not in roles and ("assistant", True) not in roles


def test_a_summary_stands_for_what_is_left_out():
    asked = []

    def summarise(items):
        asked.append([item.number for item in items])
        return f"{len(items)} messages {END}"

    context = filled(truncate, summarise=summarise)
    sent = context.messages()
    assert sent[1] == {"role": "user", "content": "What was said before, in short: 7 messages < |memory_end|>"}
    context.messages()
    assert asked == [[2, 3, 4, 5, 6, 7, 8]]  # not again for the same messages


def test_summaries_by_a_model():
    class Model:
        def complete(self, messages, tools, max_tokens):
            assert messages[0]["content"].startswith("user: word") and tools is None and max_tokens == 9
            return Reply(" All was said. ")

    sent = filled(truncate, summarise=summary_by(Model(), 9)).messages()
    assert sent[1]["content"].endswith("in short: All was said.")


def test_what_cannot_be():
    with pytest.raises(AgentError, match="budget=0"):
        Context(steady, 0)
    with pytest.raises(AgentError, match="ratios=\\(\\)"):
        Context(steady, 5, ())
    with pytest.raises(AgentError, match="no message"):
        Context(steady, 5).messages()
    with pytest.raises(AgentError, match="level 'blurred'; there are 16x, out, raw, title"):
        filled(lambda situation: ["blurred"] * len(situation.items)).messages()
    with pytest.raises(AgentError, match="1 levels for 11 messages"):
        filled(lambda situation: [RAW]).messages()
    with pytest.raises(AgentError, match="kind='novel'"):
        list(conversation("novel", 0))


@pytest.mark.parametrize("kind", ["dialogue", "tools"])
def test_generated_conversations_tell_every_fact_before_they_ask(kind):
    told = ""
    asked = 0
    for step in conversation(kind, 3):
        if step.asked is not None:
            assert step.asked[1] in told
            asked += 1
        told += step.message["content"]
    assert asked == 12
    assert [*conversation(kind, 3)] == [*conversation(kind, 3)] != [*conversation(kind, 4)]


def test_policies_differ_as_they_should():
    found = compare("tools", 3000, (16,), 3)
    assert set(found) == {*POLICIES, "summary"}
    assert found["replay_all"].kept_share == 1 and found["replay_all"].longest > 9000
    assert found["steady"].kept_share == 1 and found["steady"].longest <= 3000
    assert found["truncate"].kept_share < 0.7
    assert found["steady"].cached_share > found["focus"].cached_share
    assert table(found).count("\n") == len(found) + 1
