import pytest

from lclm_jax.config import CollectionConfig, parse_config
from lclm_jax.data.demo import running_sums
from lclm_jax.data.prepare.corpus import list_collection, read_chats
from lclm_jax.data.prepare.reject_counter import RejectCounter


@pytest.mark.parametrize("kind", ["running_sums", "running_sums_compressed"])
def test_each_step_needs_the_one_before(kind):
    collection = CollectionConfig(format=kind, records="chat")
    corpus = parse_config(
        {
            "name": "sums",
            "tokenizer": {"vocab_size": 300},
            "model": {"encoder": {"preset": "qwen3_0p6b"}, "decoder": {"preset": "qwen3_0p6b"}},
            "corpus": {"collections": {"chat": collection.model_dump()}},
            "data": {"sources": {"chat": {"collection": "chat", "objective": "chat"}}},
            "stages": {"only": {"lr": {"adapter": 1e-3}, "steps": 1, "mixture": {"chat": 1}}},
        }
    ).corpus
    entry = list_collection(collection, 2**62, [])[0]
    counter = RejectCounter()
    chats = list(read_chats([entry], collection, corpus, counter))
    assert len(chats) == running_sums.CHATS
    compressed = 0
    for chat in chats:
        question, reply = (message["content"] for message in chat.raw.messages)
        terms = [running_sums.Term(word[:3], int(word[3:])) for word in question.split()]
        plain = reply.replace("<|memory_start|>", "").replace("<|memory_end|>", "")
        *steps, result = plain.split()
        assert steps == [step.strip() for step in running_sums.steps(terms)]
        assert result == f"={sum(term.digit for term in terms) % 10}" == f"={steps[-1][5:]}"
        spans = reply.count("<|memory_start|>")
        assert reply == running_sums.solution(terms, spans)
        compressed += spans
    assert (compressed > 0) == (kind == "running_sums_compressed")
