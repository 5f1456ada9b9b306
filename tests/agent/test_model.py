"""The agent's loop on the JAX generator, with an untrained model: what it is asked, and what plain LCLMs are asked."""

import json

import pytest
from tests.tiny_exports import tiny_export

from lclm_agent import number_segments
from lclm_agent.loop import Budget, Conversation
from lclm_agent.oracle import Oracle
from lclm_agent.protocols import plain_opening
from lclm_agent.tasks import Question
from lclm_jax.agent.model import GeneratorModel, measure_tasks
from lclm_jax.errors import LclmError
from lclm_jax.inference.generate import Generator
from lclm_jax.inference.sampling import Sampling
from lclm_jax.text.train_tokenizer import train_tokenizer

SEGMENTS = number_segments(["def read(path):\n    return 12", "the sum is 3"])


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    folder = tiny_export("mean", tmp_path_factory.mktemp("agent") / "model")
    tools = train_tokenizer(["a"], 270, tmp_path_factory.mktemp("tools"), True) / "chat_template.jinja"
    for part in ("", "decoder", "encoder"):
        (folder / part / "chat_template.jinja").write_bytes(tools.read_bytes())
    return Generator.from_folder(folder)


def test_never_expanding_is_the_plain_lclm(generator):
    found = Conversation(GeneratorModel(generator), SEGMENTS, budget=Budget(0, None, 8)).ask("The sum?")
    prompt = plain_opening(SEGMENTS, "The sum?")
    (plain,) = generator.generate([prompt], Sampling(max_new_tokens=8))
    assert found.rounds[0].reply.content == plain.text
    assert found.usage.prompt == len(generator.example(prompt).tokens)


def test_a_round_costs_the_expanded_text_and_a_constant(generator):
    """On two questions whose segments differ in length alone."""
    added = []
    for needed in (0, 1):
        oracle = Oracle(Question("Which?", ("3",), (needed,)), steered=GeneratorModel(generator))
        rounds = Conversation(oracle, SEGMENTS, budget=Budget(3, None, 4)).ask("Which?").rounds
        first, second = (one.reply.usage.prompt for one in rounds)
        added.append(second - first - len(generator.decoder_tokenizer.encode(SEGMENTS[needed].text)))
    assert added[0] == added[1] > 0


def test_tasks_are_measured(generator, tmp_path, monkeypatch):
    """By an untrained model: nothing is right, everything is counted."""
    monkeypatch.setattr(Generator, "from_folder", lambda folder: generator)
    questions = [{"text": "Which?", "answers": ["12"], "needed": [0]}]
    task = {"id": "1", "kind": "codes", "segments": [one.text for one in SEGMENTS], "questions": questions}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(task) + "\n")
    found = measure_tasks(tmp_path, tmp_path / "tasks.jsonl", ("tools", 1, 4))
    assert (found.questions, found.correct, found.correct_without) == (1, 0, 0)
    assert found.prompt_positions > found.prompt_positions_without > 0


def test_files_that_hold_no_tasks_are_refused_before_a_model_is_loaded(tmp_path):
    with pytest.raises(LclmError, match="there is no file"):
        measure_tasks(tmp_path, tmp_path / "none.jsonl", ("tools", 1, 8))
    (tmp_path / "bad.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(LclmError, match="line 1: no task"):
        measure_tasks(tmp_path, tmp_path / "bad.jsonl", ("tools", 1, 8))
