"""The generator of RULER: shapes, answers, lengths, draws; equality with NVIDIA's scripts is tests/suite_systems."""

import pytest
from tests.suite.conftest import count_tokens

from lclm_jax.errors import LclmError
from lclm_jax.suite.sample import Sample
from lclm_jax.suite.tasks.ruler.design import TASKS
from lclm_jax.suite.tasks.ruler.fit import Drawn, Fit, draw_fitting, largest_size
from lclm_jax.suite.tasks.ruler.generate import generate
from lclm_jax.suite.tasks.ruler.sources import Pairs, Sources


@pytest.mark.parametrize("length", [1024, 4096])
@pytest.mark.parametrize("name", TASKS)
def test_samples_fit_hold_their_answers_and_depend_on_the_seed_alone(sources, name, length):
    samples = generate(name, length, 3, count_tokens, sources)
    family = "ruler" if length >= 4096 else "ruler_short"
    assert [one.id for one in samples] == [f"{family}/{name}/{length}/{number}" for number in range(3)]
    for one in samples:
        text = one.prompt("raw") + one.prefix
        # A published coded text fills the length without room for the reply.
        room = 0 if name == "fwe" and length >= 4096 else one.max_new_tokens
        assert count_tokens(text) + room <= length
        # An article of these sources has four paragraphs, which do not fill the length.
        assert count_tokens(text) + room > length // 2 or (name, length) == ("qa_1", 1024)
        assert one.answers
        assert all(answer in one.context for answer in one.answers) or name.startswith("qa")
        assert one.context in one.prompt("memory")
        assert one.prompt("none") == one.instruction + one.question
        assert (one.depth is None) or 0 <= one.depth < 1
    assert generate(name, length, 3, count_tokens, sources) == samples
    assert generate(name, length, 3, count_tokens, sources, seed=7) != samples


def test_needle_is_told_at_its_depth_and_asked_for(sources):
    (one,) = generate("niah_single_2", 1024, 1, count_tokens, sources)
    told = f"One of the special magic numbers for {one.question.split(' for ')[1].split(' ')[0]} is: {one.answers[0]}."
    assert one.context.index(told) == round(one.depth * len(one.context))
    assert one.instruction.startswith("A special magic number is hidden within the following text.")
    assert one.prefix.endswith("mentioned in the provided text is")
    assert one.gold == f" {one.answers[0]}"


def test_tracking_follows_the_chain(sources):
    (one,) = generate("vt", 1024, 1, count_tokens, sources)
    value = one.question.split("value ")[1].split(" ")[0]
    assert f"VAR {one.answers[0]} = {value}" in one.context
    for old, new in zip(one.answers, one.answers[1:], strict=False):
        assert f"VAR {new} = VAR {old} " in one.context
    assert "5 variables" in one.prefix


def test_most_common_words_are_the_answers(sources):
    (one,) = generate("cwe", 2048, 1, count_tokens, sources)
    words = [part for part in one.context.split() if not part.rstrip(".").isdigit()]
    counts = {word: words.count(word) for word in set(words)}
    assert sorted(sorted(counts, key=counts.get)[-10:]) == sorted(one.answers)
    assert min(counts[answer] for answer in one.answers) == 6


def test_short_questions_keep_the_documents_that_answer_them(sources):
    for one in generate("qa_2", 512, 5, count_tokens, sources):
        number = one.question.split("book ")[1].split("?")[0]
        assert f"T{number}.3" in one.context
        assert f"T{number}.7" in one.context


def test_search_for_the_size_by_hand():
    """Size n has 10 n tokens and reserves 5: of a limit of 50, 4 fit; at most 3 if there are no more."""
    fit = Fit(len, limit=50, reserve=5, step=1)

    def draw(size: int) -> Drawn:
        if size < 2:
            raise ValueError("too small")
        return Drawn("", "x" * (10 * size), "", "", [])

    assert largest_size(fit, draw, lambda one: one.text) == 4
    assert largest_size(fit, draw, lambda one: one.text, most=3) == 3
    assert len(draw_fitting(fit, draw, 9).text) == 40
    assert draw_fitting(Fit(len, 15, 5, 1), draw, 9) is None


def test_errors_name_task_length_and_fix(sources, tmp_path):
    with pytest.raises(LclmError, match="no task 'niah'; its tasks are niah_single_1"):
        generate("niah", 4096, 1, count_tokens, sources)
    with pytest.raises(LclmError, match="needs 128 tokens for its reply; a length of 128 leaves no prompt"):
        generate("niah_single_1", 128, 1, count_tokens, sources)
    with pytest.raises(LclmError, match=r"RULER qa_2 at 64 tokens: .* does not fit in 64 tokens"):
        generate("qa_2", 64, 1, count_tokens, sources)
    with pytest.raises(LclmError, match="has 240 questions, not 241; ask for fewer"):
        generate("qa_1", 4096, 241, count_tokens, sources)
    (tmp_path / "squad.json").write_text('{"data": [{"paragraphs": [{"context": "c"}]}]}')
    with pytest.raises(LclmError, match=r"squad.json has another layout \(KeyError: 'qas'\)"):
        generate("qa_1", 4096, 1, count_tokens, Sources(tmp_path))
    with pytest.raises(LclmError, match=r"cannot read .*hotpotqa.json: No such file"):
        generate("qa_2", 4096, 1, count_tokens, Sources(tmp_path))


def test_samples_survive_json_and_refuse_memory_tokens():
    one = Sample("a/0", "a", "context", "question?", ("yes",), extra={"scorer": "f1"})
    assert Sample.from_json(one.as_json()) == one
    assert one.prompt("memory") == "<|memory_start|>context<|memory_end|>question?"
    assert one.parts() == ("context", "question?", "")
    assert one.digest("raw") != one.digest("memory")
    with pytest.raises(LclmError, match=r"sample a/1 holds the text <\|memory\|>"):
        Sample("a/1", "a", "a <|memory|> b", "question?", ("yes",)).prompt("memory")
    with pytest.raises(LclmError, match="sample a/2 has no question"):
        Sample("a/2", "a", "context", "", ("yes",))
    with pytest.raises(LclmError, match="sample a/3 has no answer"):
        Sample("a/3", "a", "context", "question?", ())


def test_pairs_are_those_of_the_sorted_list():
    adjectives, nouns = ["old", "blue-eyed", "blue", "x", "old"], ["eyed-cat", "zoo", "cat", "a"]
    assert list(Pairs(adjectives, nouns)) == sorted({f"{one}-{two}" for one in adjectives for two in nouns})
