"""Answers of kvpress' own pipeline and of our worker to the same requests; runs in kvpress' environment."""

import json
import sys

import kvpress  # noqa: F401 - registers the pipeline
import transformers

from lclm_jax.suite.systems.kvpress_worker import KvpressSystem

settings, requests = json.load(sys.stdin)
out = []
for press, bits in settings.pop("runs"):
    system = KvpressSystem({**settings, "press": press, "cache_bits": bits})
    pipeline = transformers.pipeline(
        "kv-press-text-generation", model=system._model, tokenizer=system._tokenizer, device="cpu"
    )
    for request in requests:
        before, _ = system._ids(request)
        theirs = pipeline(
            request["instruction"] + request["context"],
            question=request["question"],
            answer_prefix=request["prefix"],
            press=system._press(before, request),
            cache=system._empty_cache(),
            max_new_tokens=request["max_new_tokens"],
        )["answer"]
        out.append({"press": press, "bits": bits, "before": len(before), "theirs": theirs, **system.answer(request)})
sys.stdout.write("\nRESULT" + json.dumps(out) + "\n")
