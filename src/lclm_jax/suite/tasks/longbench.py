"""LongBench (arXiv 2308.14508): 21 sets, with the published prompts, lengths of answers and scorers.

LongBench-v2 (arXiv 2412.15204): multiple choice, without chain of thought. Files: ``NAME.jsonl`` and ``data.json``.
"""

from collections.abc import Iterator
from typing import NamedTuple

from lclm_jax.errors import LclmError
from lclm_jax.suite.sample import Sample
from lclm_jax.suite.spec import TaskConfig
from lclm_jax.suite.tasks.files import check, find_file, json_array, json_lines, select
from lclm_jax.types import JsonObject


class Set(NamedTuple):
    """One set: text before the context, text after it, tokens of an answer, scorer."""

    before: str
    after: str
    new_tokens: int
    scorer: str
    chat: bool = True
    """Published for chat models as a message; False: as plain text."""


_PHRASE = "as concisely as you can, using a single phrase"
_QASPER = (
    "uestion as concisely as you can, using a single phrase or sentence if possible. If the question cannot be answered"
    ' based on the information in the article, write "unanswerable". If the question is a yes/no question, answer'
    ' "yes", "no", or "unanswerable". Do not provide any explanation.\n\n'
)
_ONLY = "Only give me the answer and do not output any other words."
_PASSAGES = f"Answer the question based on the given passages. {_ONLY}\n\n"
_MULTI_HOP = Set(
    f"{_PASSAGES}The following are given passages.\n", f"\n\n{_PASSAGES}Question: {{input}}\nAnswer:", 32, "f1"
)
SETS = {
    "narrativeqa": Set(
        "You are given a story, which can be either a novel or a movie script, and a question. Answer the question"
        f" {_PHRASE} if possible. Do not provide any explanation.\n\nStory: ",
        f"\n\nNow, answer the question based on the story {_PHRASE} if possible. Do not provide any explanation.\n\n"
        "Question: {input}\n\nAnswer:",
        128,
        "f1",
    ),
    "qasper": Set(
        f"You are given a scientific article and a question. Answer the q{_QASPER}Article: ",
        "\n\n Answer the question based on the above article"
        + _QASPER.removeprefix("uestion")
        + "Question: {input}\n\nAnswer:",
        128,
        "f1",
    ),
    "multifieldqa_en": Set(
        "Read the following text and answer briefly.\n\n",
        "\n\nNow, answer the following question based on the above text, only give me the answer and do not output any"
        " other words.\n\nQuestion: {input}\nAnswer:",
        64,
        "f1",
    ),
    "multifieldqa_zh": Set(
        "阅读以下文字并用中文简短回答：\n\n",
        "\n\n现在请基于上面的文章回答下面的问题，只告诉我答案，不要输出任何其他字词。\n\n问题：{input}\n回答：",
        64,
        "f1_chinese",
    ),
    "hotpotqa": _MULTI_HOP,
    "2wikimqa": _MULTI_HOP,
    "musique": _MULTI_HOP,
    "dureader": Set(
        "请基于给定的文章回答下述问题。\n\n文章：",
        "\n\n请基于上述文章回答下面的问题。\n\n问题：{input}\n回答：",
        128,
        "rouge_chinese",
    ),
    "gov_report": Set(
        "You are given a report by a government agency. Write a one-page summary of the report.\n\nReport:\n",
        "\n\nNow, write a one-page summary of the report.\n\nSummary:",
        512,
        "rouge",
    ),
    "qmsum": Set(
        "You are given a meeting transcript and a query containing a question or instruction. Answer the query in one"
        " or more sentences.\n\nTranscript:\n",
        "\n\nNow, answer the query based on the above meeting transcript in one or more sentences.\n\nQuery: {input}\n"
        "Answer:",
        512,
        "rouge",
    ),
    "multi_news": Set(
        "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n",
        "\n\nNow, write a one-page summary of all the news.\n\nSummary:",
        512,
        "rouge",
    ),
    "vcsum": Set(
        "下面有一段会议记录，请你阅读后，写一段总结，总结会议的内容。\n会议记录：\n",
        "\n\n会议总结：",
        512,
        "rouge_chinese",
    ),
    "trec": Set(
        "Please determine the type of the question below. Here are some examples of questions.\n\n",
        "\n{input}",
        64,
        "classification",
        chat=False,
    ),
    "triviaqa": Set(
        f"Answer the question based on the given passage. {_ONLY} The following are some examples.\n\n",
        "\n\n{input}",
        32,
        "f1_first_line",
        chat=False,
    ),
    "samsum": Set(
        "Summarize the dialogue into a few short sentences. The following are some examples.\n\n",
        "\n\n{input}",
        128,
        "rouge_first_line",
        chat=False,
    ),
    "lsht": Set("请判断给定新闻的类别，下面是一些例子。\n\n", "\n{input}", 64, "classification", chat=False),
    "passage_count": Set(
        "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please carefully read"
        " these paragraphs and determine how many unique paragraphs there are after removing duplicates. In other"
        " words, how many non-repeating paragraphs are there in total?\n\n",
        "\n\nPlease enter the final count of unique paragraphs after removing duplicates. The output format should only"
        " contain the number, such as 1, 2, 3, and so on.\n\nThe final answer is: ",
        32,
        "count",
    ),
    "passage_retrieval_en": Set(
        "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which paragraph the abstract"
        " is from.\n\n",
        "\n\nThe following is an abstract.\n\n{input}\n\nPlease enter the number of the paragraph that the abstract is"
        ' from. The answer format must be like "Paragraph 1", "Paragraph 2", etc.\n\nThe answer is: ',
        32,
        "retrieval",
    ),
    "passage_retrieval_zh": Set(
        "以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n",
        '\n\n下面是一个摘要\n\n{input}\n\n请输入摘要所属段落的编号。答案格式必须是"段落1"，"段落2"等格式\n\n答案是：',
        32,
        "retrieval",
    ),
    "lcc": Set("Please complete the code given below. \n", "Next line of code:\n", 64, "code_similarity", chat=False),
    "repobench-p": Set(
        "Please complete the code given below. \n", "{input}Next line of code:\n", 64, "code_similarity", chat=False
    ),
}
_KEYS = {"input": str, "context": str, "answers": list}

_CHOICE_BEFORE = "Please read the following text and answer the question below.\n\n<text>\n"
_CHOICE_AFTER = (
    "\n</text>\n\nWhat is the correct answer to this question: {question}\nChoices:\n(A) {A}\n(B) {B}\n(C) {C}\n(D) {D}"
    '\n\nFormat your response as follows: "The correct answer is (insert answer here)".'
)
_CHOICE_KEYS = dict.fromkeys(("question", "choice_A", "choice_B", "choice_C", "choice_D", "answer", "context"), str)


def load(task: TaskConfig) -> Iterator[Sample]:
    """Samples of LongBench, set by set."""
    unknown = [name for name in task.names if name not in SETS]
    if unknown:
        raise LclmError(f"LongBench has no set {unknown[0]}; its sets are {', '.join(SETS)}")
    for name in task.names or SETS:
        path = find_file(task.data or "", f"{name}.jsonl")
        samples = [_sample(name, place, row, number) for number, (place, row) in enumerate(json_lines(path, _KEYS))]
        yield from select(samples, task.samples, task.seed)


def _sample(name: str, place: str, row: JsonObject, number: int) -> Sample:
    design = SETS[name]
    if not row["answers"] or not all(isinstance(one, str) for one in row["answers"]):
        raise LclmError(f"{place}: answers is not a list of texts; download the published file again")
    extra: JsonObject = {"scorer": design.scorer}
    if design.scorer == "classification":
        check(row, {"all_classes": list}, place)
        extra["classes"] = row["all_classes"]
    after = design.after.replace("{input}", row["input"])
    return Sample(
        id=f"longbench/{name}/{number}",
        task=f"longbench/{name}",
        instruction=design.before,
        context=row["context"],
        question=after,
        answers=tuple(row["answers"]),
        gold=row["answers"][0] if design.chat or after.endswith((" ", "\n")) else f" {row['answers'][0]}",
        max_new_tokens=design.new_tokens,
        chat=design.chat,
        extra=extra,
    )


def load_v2(task: TaskConfig) -> Iterator[Sample]:
    """Samples of LongBench-v2; ``names`` are its lengths (short, medium, long) or domains."""
    path = find_file(task.data or "", "data.json")
    chosen = [
        (place, row, number)
        for number, (place, row) in enumerate(json_array(path, _CHOICE_KEYS))
        if not task.names or row.get("length") in task.names or row.get("domain") in task.names
    ]
    if not chosen:
        raise LclmError(f"{path} has no question of {', '.join(task.names)}; name lengths (short) or domains of it")
    yield from select([_choice(*one) for one in chosen], task.samples, task.seed)


def _choice(place: str, row: JsonObject, number: int) -> Sample:
    if row["answer"] not in ("A", "B", "C", "D"):
        raise LclmError(f"{place}: answer is {row['answer']!r} instead of A, B, C or D")
    choices = {letter: row[f"choice_{letter}"].strip() for letter in "ABCD"}
    return Sample(
        id=f"longbench_v2/{number}",
        task="longbench_v2",
        instruction=_CHOICE_BEFORE,
        context=row["context"].strip(),
        question=_CHOICE_AFTER.format(question=row["question"].strip(), **choices),
        answers=(row["answer"],),
        gold=f"The correct answer is ({row['answer']})",
        max_new_tokens=128,
        extra={"scorer": "stated_choice"},
    )
