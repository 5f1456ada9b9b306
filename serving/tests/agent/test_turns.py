from lclm_agent import Reply
from lclm_agent.chat import Call, expand_call
from lclm_agent.context import Context
from lclm_agent.loop import USED_UP, Budget
from lclm_agent.policies import steady
from lclm_agent.turns import take_turn

LONG = "word " * 60


class Model:
    """Gives replies in turn, and notes what it is sent."""

    def __init__(self, *replies):
        self.replies, self.sent = list(replies), []

    def complete(self, messages, tools, max_tokens):
        self.sent.append((messages, tools))
        return self.replies.pop(0)


def filled():
    context = Context(steady, 200)
    for number in range(5):
        context.add({"role": "user", "content": f"{LONG}number {number}"})
    context.add({"role": "user", "content": "Which number came first?"})
    return context


def test_a_turn_expands_and_answers():
    context, model = filled(), Model(Reply("", (expand_call(1, "seg_1"),)), Reply("number 0"))
    assert take_turn(context, model).content == "number 0"
    (first, tools), (second, _) = model.sent
    assert tools[0]["function"]["name"] == "expand" and second[: len(first)] == first
    assert first[0]["content"].startswith("seg_1: <|memory_start|>") and second[-1]["content"].endswith("number 0")
    assert context.items[-1].text == "number 0"


def test_rounds_run_out():
    calls = [Reply("", (expand_call(number, f"seg_{number}"),)) for number in (1, 2, 3)]
    context, model = filled(), Model(*calls)
    assert take_turn(context, model, Budget(2)).calls
    assert [tools is None for _, tools in model.sent] == [False, False, True]
    assert model.sent[2][0][-1]["content"].endswith(USED_UP) and context.items[-1].text == USED_UP


def test_other_tools_are_left_to_the_caller():
    tool = {"type": "function", "function": {"name": "look"}}
    both = Reply("", (expand_call(1, "seg_2"), Call("a", "look", "{}")))
    context, model = filled(), Model(both, Reply("seen"))
    assert take_turn(context, model, tools=[tool]) is both
    context.add({"role": "tool", "tool_call_id": "a", "content": "a view"})
    assert take_turn(context, model, tools=[tool]).content == "seen"
    assert [one["role"] for one in model.sent[1][0][-3:]] == ["assistant", "tool", "tool"]
