import pytest

from lclm_jax.config import CollectionConfig, parse_config
from lclm_jax.data.demo import variable_tracking
from lclm_jax.data.prepare.corpus import list_collection, read_chats
from lclm_jax.data.prepare.reject_counter import RejectCounter
from lclm_jax.text.memory_tags import split_memory


def chats_of(kind):
    """The chats of the first entry, as a corpus reads them."""
    collection = CollectionConfig(format=kind, records="chat")
    corpus = parse_config(
        {
            "name": "chains",
            "tokenizer": {"vocab_size": 300},
            "model": {"encoder": {"preset": "qwen3_0p6b"}, "decoder": {"preset": "qwen3_0p6b"}},
            "corpus": {"collections": {"chat": collection.model_dump()}},
            "data": {"sources": {"chat": {"collection": "chat", "objective": "chat"}}},
            "stages": {"only": {"lr": {"adapter": 1e-3}, "steps": 1, "mixture": {"chat": 1}}},
        }
    ).corpus
    entry = list_collection(collection, 2**62, [])[0]
    counter = RejectCounter()
    return [chat.raw.messages for chat in read_chats([entry], collection, corpus, counter)]


@pytest.mark.parametrize("kind", ["variable_tracking", "variable_tracking_compressed"])
def test_each_step_needs_the_one_before(kind):
    chats = chats_of(kind)
    assert len(chats) == variable_tracking.CHATS
    compressed = 0
    for chat in chats:
        question, reply = (message["content"] for message in chat)
        *links, name = question.split(", ")
        follows = dict(link.split() for link in links)
        name = name.strip()
        plain = reply.replace("<|memory_start|>", "").replace("<|memory_end|>", "")
        steps = plain.removesuffix(",").split(",")
        for step in steps:
            assert step == f" {name} {follows[name]}"
            name = follows[name]
        assert name == "end" and len(steps) in variable_tracking.LINKS and len(links) in variable_tracking.TOTALS
        spans = [piece.text for piece in split_memory(reply) if piece.kind == "span"]
        assert all(span.count(",") == variable_tracking.STEPS for span in spans) and not reply.endswith("_end|>")
        compressed += len(spans)
    assert (compressed > 0) == (kind == "variable_tracking_compressed")


def test_in_look_ups_what_follows_a_name_has_the_only_loss():
    for question, reply in chats_of("variable_tracking_lookups"):
        links = question["content"].split(",")[:-1]
        steps = reply["content"].removesuffix(",").split(",")
        assert set(steps) <= set(links) and len(steps) == variable_tracking.REPEATS
        trained = list(reply["content"])
        for part in reply["train_detail"]:
            assert part["train"] is False
            trained[part["begin_offset"] : part["end_offset"] + 1] = [""] * (
                part["end_offset"] + 1 - part["begin_offset"]
            )
        assert "".join(trained) == "".join(step[step.index(" ", 1) :] + "," for step in steps)
