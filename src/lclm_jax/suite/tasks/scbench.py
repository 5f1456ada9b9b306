"""SCBench (arXiv 2412.10319): several questions about one shared context, each asked on its own.

The mode of one context with different requests. ``scbench_repoqa`` and ``scbench_repoqa_and_kv`` need parsers of six
languages, and are left out. File: ``NAME.jsonl``.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from lclm_jax.errors import LclmError
from lclm_jax.suite.sample import Sample
from lclm_jax.suite.spec import TaskConfig
from lclm_jax.suite.tasks.files import LayoutError, check, find_file, json_lines, select
from lclm_jax.types import JsonObject


class Set(NamedTuple):
    """One set: text before the context, tokens of an answer, scorer."""

    before: str
    new_tokens: int
    scorer: str


_SUMMARY_OR_NEEDLE = {"scbench_summary": Set("", 800, "rouge_lsum"), "scbench_passkey": Set("", 15, "first_integer")}
"""Questions of ``scbench_summary_with_needles`` by their key ``task``."""
_JSON = "Extract the value corresponding to the specified key in the JSON object below.\n\n"
SETS = {
    "scbench_kv": Set(_JSON, 150, "contains"),
    "scbench_kv_hard": Set(_JSON, 150, "contains"),
    "scbench_prefix_suffix": Set("", 150, "contains"),
    "scbench_hashhop": Set("", 150, "contains"),
    "scbench_vt": Set("", 30, "all_parts"),
    "scbench_passkey": Set(
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you"
        " about the important information.\n\n",
        15,
        "first_integer",
    ),
    "scbench_many_shot": Set("", 10, "any_part"),
    "scbench_mf": Set("", 5, "first_number"),
    "scbench_summary": Set("", 200, "rouge_lsum"),
    "scbench_summary_with_needles": Set("", 800, "rouge_lsum"),
    "scbench_choice_eng": Set("Read the book and answer the question.\n\n", 40, "book_choice"),
    "scbench_qa_eng": Set("Read the book and answer the question. Be very concise in your answer.\n\n", 40, "any_part"),
    "scbench_qa_chn": Set("阅读以下书籍然后回答问题。\n\n", 40, "f1_characters"),
}


def load(task: TaskConfig) -> Iterator[Sample]:
    """Samples of SCBench, set by set; ``samples`` counts contexts, each with all its questions."""
    unknown = [name for name in task.names if name not in SETS]
    if unknown:
        raise LclmError(f"no scorer for the set {unknown[0]} of SCBench; those that run are {', '.join(SETS)}")
    for name in task.names or SETS:
        path = find_file(task.data or "", f"{name}.jsonl")
        contexts = [
            list(_questions(name, place, row, number))
            for number, (place, row) in enumerate(json_lines(path, {"multi_turns": list}))
        ]
        first = select([one[0] for one in contexts if one], task.samples, task.seed)
        chosen = {sample.document for sample in first}
        yield from (sample for one in contexts for sample in one if sample.document in chosen)


def _questions(name: str, place: str, row: JsonObject, number: int) -> Iterator[Sample]:
    context = row.get("context", row.get("input"))
    if not isinstance(context, str):
        raise LayoutError(f"{place}: lacks a text under the key context; it has {', '.join(row)}")
    design = SETS[name]
    before = design.before
    for turn, asked in enumerate(row["multi_turns"]):
        here = f"{place}, turn {turn}"
        check(asked, {"input": str, "answer": (str, int, float, list)}, here)
        if name == "scbench_summary_with_needles":
            design = _kind_of(asked, here)
        if name == "scbench_mf":
            before = f"{row['multi_turns'][0]['input']}\n\n"
        answers = _answers(name, asked, here)
        yield Sample(
            id=f"{name}/{number}/{turn}",
            task=name,
            instruction=before,
            context=context,
            question="\n\n" + _asked(name, asked, here),
            answers=answers,
            gold=answers[0] if design.scorer != "all_parts" else " ".join(answers),
            max_new_tokens=design.new_tokens,
            document=f"{name}/{number}",
            extra={"scorer": design.scorer},
        )


def _kind_of(turn: JsonObject, place: str) -> Set:
    kind = check(turn, {"task": str}, place)["task"]
    if kind not in _SUMMARY_OR_NEEDLE:
        raise LayoutError(f"{place}: task is {kind!r}, not {' or '.join(_SUMMARY_OR_NEEDLE)}")
    return _SUMMARY_OR_NEEDLE[kind]


def _asked(name: str, turn: JsonObject, place: str) -> str:
    text = turn["input"]
    if name == "scbench_choice_eng":
        options = check(turn, {"options": list}, place)["options"]
        if len(options) != 4:
            raise LayoutError(f"{place}: {len(options)} options instead of 4")
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True))
        return f"Question: {text}\n{listed}\n\nThe the correct answer is"
    if name == "scbench_qa_eng":
        return f"Question: {text}\nAnswer:"
    if name == "scbench_qa_chn":
        return f"问题：{text}\n答案："
    if name == "scbench_mf":
        found = re.search(r"The .+ is", text)
        if found is None:
            raise LayoutError(f"{place}: the input asks for no value (The ... is); download the published file again")
        return f"What is {found.group().lower()[:-3]}?\n\n{text}"
    return text


def _answers(name: str, turn: JsonObject, place: str) -> tuple[str, ...]:
    given = turn["answer"]
    answers = tuple(str(one) for one in (given if isinstance(given, list) else [given]))
    if not answers:
        raise LayoutError(f"{place}: answer is an empty list")
    if name == "scbench_choice_eng" and len(answers) == 1 and answers[0] not in "ABCD":
        options = [str(one) for one in turn.get("options", ())]
        if answers[0] in options:
            return ("ABCD"[options.index(answers[0])], answers[0])
    return answers
