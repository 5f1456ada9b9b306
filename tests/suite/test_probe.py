"""What the hook of training reports, from a system that answers by rule."""

from lclm_jax.suite.probe import measure_samples
from lclm_jax.suite.sample import Sample
from lclm_jax.suite.spec import SuiteConfig


class Echo:
    def answer(self, request):
        reply = {"nll": 3.0, "gold_tokens": 2} if request["gold"] else {}
        return reply | ({"answer": request["context"]} if request["generate"] else {})


def test_means_by_task():
    tasks = {"t": {"kind": "gsm8k", "data": "x"}}
    suite = SuiteConfig(name="s", tasks=tasks, systems={"a": {"kind": "lclm", "model": "m"}})
    samples = [
        Sample("a/0", "a", "yes", "q", ("yes",), gold="g", extra={"scorer": "f1"}),
        Sample("a/1", "a", "no", "q", ("yes",), extra={"scorer": "f1"}),
        Sample("b/0", "b", "text", "q", (), gold="g", extra={"scorer": "likelihood"}),
    ]
    assert measure_samples(Echo(), suite, samples) == {
        "score/a": 0.5,
        "nats_per_token/a": 1.5,
        "nats_per_token/b": 1.5,
    }
