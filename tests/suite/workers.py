"""A worker without a model: answers by rules, so that the driver's tests take milliseconds."""

import sys
import time

from lclm_jax.errors import LclmError
from lclm_jax.suite.systems.serve import serve


class Rules:
    """The right answer with raw context, half of it with memory, none without."""

    def __init__(self, settings):
        if settings["model"] == "refused":
            raise LclmError("there is no such model")
        if settings["model"] == "crash":
            sys.exit("out of memory")
        self._context = settings["context"]
        self.facts = {"max_positions": 100, "ratio": settings["ratio"]}

    def count(self, request):
        return {"positions": self._positions(request), "raw_tokens": len(request["context"])}

    def _positions(self, request):
        size = len(request["context"])
        return {"raw": size, "memory": -(-size // 4), "none": 1}[self._context]

    def answer(self, request):
        if "dies" in request["question"]:
            sys.stderr.write("about to die\n")
            sys.exit(3)
        if "fails" in request["question"]:
            raise ValueError("bad\nsample")
        if "sleeps" in request["question"]:
            time.sleep(60)
        sys.stdout.write("what a library prints\n")
        nats = {"raw": 1.0, "memory": 2.0, "none": 5.0}[self._context]
        words = request["context"].split()
        reply = self.count(request) | {"nll": nats, "gold_tokens": 2, "cache_bytes": 10, "peak_bytes": 5_000_000}
        if request["generate"]:
            answer = {"raw": " ".join(words), "memory": words[0] if words else "", "none": ""}[self._context]
            reply |= {"answer": answer, "finish": "stop" if answer else "length", "new_tokens": 3}
            reply |= {"ttft_seconds": 0.5, "seconds": 1.5}
        return reply


if __name__ == "__main__":
    serve(Rules)
