"""NVIDIA's kvpress on a decoder: prefill with a press, then greedy decoding. Runs in kvpress' own environment.

The budget is counted in positions: of a context of T tokens at ratio r, ceil(T / r) positions are kept, and two for the
tags that an LCLM has; the chat's own tokens and the instruction, which an LCLM reads in full, are added.

With ``cache_bits`` the keys and values of the prefill are kept in so many bits (transformers' cache with
optimum-quanto), with or without a press.
"""

import contextlib
import importlib
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, TypeAlias

from lclm_jax.errors import LclmError
from lclm_jax.suite.systems.serve import peak_rss, prompt_of, serve
from lclm_jax.types import JsonObject

Foreign: TypeAlias = Any
"""An object of torch, transformers or kvpress: none of them is installed where types are checked."""

PRESSES = {
    "nothing": ("KnormPress", {}),
    "snapkv": ("SnapKVPress", {}),
    "expected_attention": ("ExpectedAttentionPress", {}),
    "kvzip": ("KVzipPress", {}),
    "streaming_llm": ("StreamingLLMPress", {}),
    "tova": ("TOVAPress", {}),
    "knorm": ("KnormPress", {}),
    "compactor": ("CompactorPress", {}),
    "finch": ("FinchPress", {}),
    "keydiff": ("KeyDiffPress", {}),
    "random": ("RandomPress", {"seed": 0}),
    "kvcompose": ("KVComposePress", {}),
    "pyramidkv": ("PyramidKVPress", {}),
    "lagkv": ("LagKVPress", {}),
    "adakv": ("AdaKVPress", {}),
}
"""Name -> class and further arguments; ``nothing`` removes nothing, ``adakv`` wraps SnapKV."""
HUB_WEIGHTS = {"fastkvzip", "kvzap", "duo_attention", "expected_attention_stats"}
MASKING = {"kvzip", "adakv"}
"""Presses that mask positions instead of evicting them: all stay in memory."""
NEEDS_QUESTION = {"finch"}
GROUP = 64
"""Values that share a scale and a zero point in a quantized cache, at most."""


class KvpressSystem:
    """A decoder with one press.

    Args:
        settings: ``model`` (folder), ``press`` (None: the whole cache), ``ratio``, ``context``, ``query_aware``,
            ``cache_bits`` (None: the model's type).

    Raises:
        LclmError: kvpress (or, for ``cache_bits``, optimum-quanto) is missing, the press is unknown or needs weights
            from the hub, or there is no model.
    """

    def __init__(self, settings: JsonObject):
        self._name, self._ratio = settings.get("press"), float(settings.get("ratio", 1))
        self._query_aware = bool(settings.get("query_aware"))
        self._context, self._bits = settings["context"], settings.get("cache_bits")
        if self._name in HUB_WEIGHTS:
            raise LclmError(f"press {self._name} needs weights from the hub, which this worker does not fetch")
        if self._name is not None and self._name not in PRESSES:
            raise LclmError(f"press {self._name!r} is unknown; known: {', '.join(PRESSES)}")
        if self._name in NEEDS_QUESTION and not self._query_aware:
            raise LclmError(f"press {self._name} is guided by the question; set query_aware: true")
        try:
            self._torch: Foreign = importlib.import_module("torch")
            self._transformers: Foreign = importlib.import_module("transformers")
            self._kvpress: Foreign = importlib.import_module("kvpress")
            if self._bits is not None:
                _find_programs_beside_the_interpreter()
                importlib.import_module("optimum.quanto")
        except ImportError as error:
            raise LclmError(f"{error}; name the interpreter of an environment with kvpress 0.5.5 (python)") from None
        self._load(settings)
        config = self._model.config
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        values, width = 2 * config.num_hidden_layers * heads * size, self._model.dtype.itemsize
        self._position_bytes = values * width
        self._kept_bytes = self._position_bytes
        if self._bits is not None:
            self._group = math.gcd(GROUP, heads * size)
            self._kept_bytes = values * self._bits // 8 + 2 * values // self._group * width
        self.facts = {
            "max_positions": config.max_position_embeddings,
            "ratio": self._ratio,
            "position_bytes": self._kept_bytes,
            "masks": self._name in MASKING,
            "kvpress": importlib.import_module("importlib.metadata").version("kvpress"),
            "transformers": self._transformers.__version__,
            "torch": self._torch.__version__,
            "device": str(self._model.device),
        }

    def _load(self, settings: JsonObject) -> None:
        folder = Path(settings["model"])
        if not (folder / "config.json").is_file():
            raise LclmError(f"{folder} holds no config.json; name a decoder's folder (decoder/ of an LCLM)")
        device = "cuda" if self._torch.cuda.is_available() else "cpu"
        dtype = getattr(self._torch, settings["dtype"]) if settings.get("dtype") else "auto"
        load = {"local_files_only": True, "trust_remote_code": False}
        self._tokenizer = self._transformers.AutoTokenizer.from_pretrained(folder, **load)
        self._model = self._transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", **load
        )
        self._model.to(device).eval()
        ends = self._model.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])

    def count(self, request: JsonObject) -> JsonObject:
        """Positions of the prompt before anything is removed."""
        before, after = self._ids(request)
        return {"positions": len(before) + len(after), "raw_tokens": len(before) + len(after)}

    def answer(self, request: JsonObject) -> JsonObject:
        """Answer and likelihood of one sample."""
        with self._torch.inference_mode():
            reply = self._answer(request)
        cuda = self._torch.cuda
        return reply | {"peak_bytes": cuda.max_memory_allocated() if cuda.is_available() else peak_rss()}

    def _answer(self, request: JsonObject) -> JsonObject:
        start = time.perf_counter()
        before, after = self._ids(request)
        press = self._press(before, request)
        cache = self._prefilled(before, press)
        prefilled = time.perf_counter() - start
        kept = cache.get_seq_length()
        # A press that moves its keys to new positions goes on from there, any other from the true ones.
        place = kept if getattr(press, "rerotate_keys", False) else len(before) - int(self._name == "finch")
        reply: JsonObject = {"positions": self._kept(before, kept, press) + len(after)}
        reply |= {"raw_tokens": len(before) + len(after), "cache_bytes": kept * self._kept_bytes}
        reply["cache_bytes"] += len(after) * self._position_bytes
        if request.get("gold"):
            reply |= self._likelihood(request, cache, after, place)
            if request.get("generate"):
                cache = self._cut(cache, kept) if self._bits is None else self._prefilled(before, press)
        if request.get("generate"):
            reply |= self._generate(request, cache, after, place, prefilled)
        return reply

    def _kept(self, before: list[int], kept: int, press: Foreign) -> int:
        """Positions that take part in attention; a press that masks keeps more in memory."""
        if press is None or self._name not in MASKING:
            return kept
        return round(len(before) * (1 - press.compression_ratio))

    def _generate(
        self, request: JsonObject, cache: Foreign, after: list[int], place: int, prefilled: float
    ) -> JsonObject:
        start = time.perf_counter()
        ids: list[int] = []
        inputs, first = after, 0.0
        for _ in range(request["max_new_tokens"]):
            positions = self._torch.arange(place, place + len(inputs), device=self._model.device)[None]
            logits = self._model(
                input_ids=self._row(inputs), past_key_values=cache, position_ids=positions, logits_to_keep=1
            ).logits
            ids.append(int(logits[0, -1].argmax()))
            first = first or time.perf_counter() - start
            place, inputs = place + len(inputs), ids[-1:]
            if ids[-1] in self._ends:
                break
        stopped = ids[-1] in self._ends
        return {
            "answer": self._tokenizer.decode(ids, skip_special_tokens=True),
            "finish": "stop" if stopped else "length",
            "new_tokens": len(ids),
            "ttft_seconds": prefilled + first,
            "seconds": prefilled + time.perf_counter() - start,
        }

    def _likelihood(self, request: JsonObject, cache: Foreign, after: list[int], place: int) -> JsonObject:
        gold = self._tokenizer.encode(request["gold"], add_special_tokens=False)
        if not gold or not after:
            raise LclmError("the question or the gold answer has no token")
        inputs = [*after, *gold]
        positions = self._torch.arange(place, place + len(inputs), device=self._model.device)[None]
        logits = self._model(
            input_ids=self._row(inputs), past_key_values=cache, position_ids=positions, logits_to_keep=len(gold) + 1
        ).logits[0, :-1]
        targets = self._row(gold)[0]
        nll = self._torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
        right = bool((logits.argmax(-1) == targets).all())
        return {"nll": float(nll), "gold_tokens": len(gold), "gold_is_greedy": right}

    def _prefilled(self, before: list[int], press: Foreign) -> Foreign:
        """The cache of what is read before the question."""
        cache = self._empty_cache()
        with press(self._model) if press is not None else contextlib.nullcontext():
            self._model.model(input_ids=self._row(before), past_key_values=cache)
        return cache

    def _empty_cache(self) -> Foreign:
        if self._bits is None:
            return self._transformers.DynamicCache()
        options = {"nbits": self._bits, "q_group_size": self._group}
        return self._transformers.QuantizedCache(backend="quanto", config=self._model.config, **options)

    def _cut(self, cache: Foreign, length: int) -> Foreign:
        """The cache without what was read after ``length``; a quantized one cannot be cut."""
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
        return cache

    def _press(self, before: list[int], request: JsonObject) -> Foreign:
        if self._name is None:
            return None
        kind, options = PRESSES[self._name]
        share = 0.0 if self._name == "nothing" else self._share(before, request)
        if self._name == "adakv":
            return self._kvpress.AdaKVPress(self._kvpress.SnapKVPress(compression_ratio=share))
        press = getattr(self._kvpress, kind)(compression_ratio=share, **options)
        if self._name == "finch":
            press.update_model_and_tokenizer(self._model, self._tokenizer)
        return press

    def _share(self, before: list[int], request: JsonObject) -> float:
        """Share of positions to remove, so that exactly the budget is kept."""
        context = len(self._tokenizer.encode(request["context"], add_special_tokens=False))
        if self._ratio == 1 or not context:
            return 0.0
        removed = context - min(context, -(-context // self._ratio) + 2)
        # Half a position more than is kept, so that rounding down keeps what is meant.
        return max(0.0, (removed - 0.5) / len(before))

    def _ids(self, request: JsonObject) -> tuple[list[int], list[int]]:
        """What is prefilled (and compressed), and what is read after it: kvpress' own split of a chat.

        Plain text begins with the tokens that the tokenizer puts before a text, as for the LCLM.
        """
        context = prompt_of({**request, "question": ""}, self._context)
        question, rest = request["question"], ""
        if self._query_aware:
            separator = "<|finch_sep|>" if self._name == "finch" else ""
            context, question = context + separator + question, ""
            if separator and separator not in self._tokenizer.get_vocab():
                self._tokenizer.add_special_tokens({"additional_special_tokens": [separator]})
        if request["chat"] and self._tokenizer.chat_template is not None:
            mark = "#" * (len(context) + 10)
            chat = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": context + mark}], add_generation_prompt=True, tokenize=False
            )
            context, rest = chat.split(mark)
        encode = self._tokenizer.encode
        before = encode(context, add_special_tokens=False)
        if not rest:
            before = [*encode("")[:1], *before]
        after = encode(question + rest + request["prefix"], add_special_tokens=False)
        if not after:  # a plain text whose question was read with the context
            before, after = before[:-1], before[-1:]
        if not before:
            before, after = after[:1], after[1:]
        return before, after

    def _row(self, ids: list[int]) -> Foreign:
        return self._torch.tensor([ids], device=self._model.device)


def _find_programs_beside_the_interpreter() -> None:
    """On its first use quanto compiles how it unpacks bits, with a ninja that may be in this environment alone."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


if __name__ == "__main__":
    serve(KvpressSystem)
