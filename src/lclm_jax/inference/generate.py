"""Generation from prompts with memory spans: encode once, prefill, then one token at a time from a key/value cache."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lclm_jax.batch import Batch
from lclm_jax.config import MeshConfig, ModelConfig
from lclm_jax.errors import LclmError
from lclm_jax.inference.prompts import Prompt, check_ids, read_example
from lclm_jax.inference.sampling import Sampling, pick
from lclm_jax.inference.span_ratios import Chooser, merge_vectors, with_ratios
from lclm_jax.inference.step import DecodingStep
from lclm_jax.inference.stored_windows import StoredWindows, open_store
from lclm_jax.inference.windows import (
    BATCH_WINDOWS,
    SpanEncoder,
    bucket,
    prompt_batch,
    rows_for,
    spliced,
    split_spans,
)
from lclm_jax.interop.hf_config import stored_dtype
from lclm_jax.interop.load import load_hf
from lclm_jax.model.kv_cache import KVCache, init_cache
from lclm_jax.model.lclm import decode_cached, logical_axes, logits
from lclm_jax.parallel import make_mesh, params_sharding, use_mesh, without_context
from lclm_jax.text.example import Example, expand
from lclm_jax.text.outline import make_outline
from lclm_jax.text.tokenizer import Tokenizer, Tokenizers, check_vocabularies
from lclm_jax.types import Params


@dataclass(frozen=True, slots=True)
class Generation:
    """What one prompt gave."""

    text: str
    """New text, without the token that ended it."""
    ids: tuple[int, ...]
    """New tokens, the one that ended it included."""
    stopped: bool
    """Whether a stop token ended it; False: the limit of new tokens did."""


class Generator:
    """A model with its tokenizers, ready to answer prompts.

    Args:
        params: parameters of ``model``, on the mesh or on the host.
        model: its configuration, ``memory_token_ids`` set.
        decoder_tokenizer: tokenizer with the memory tokens.
        encoder_tokenizer: tokenizer of the spans.
        mesh: devices to run on; None: the first one. Devices that share positions of a row take rows of their own
            here: there is one position at a time to share.
        batch_windows: most windows that the encoder reads at once.
        store: windows that are kept between calls; None: none are.
    """

    def __init__(
        self,
        params: Params,
        model: ModelConfig,
        decoder_tokenizer: Tokenizer,
        encoder_tokenizer: Tokenizer,
        mesh: Mesh | None = None,
        batch_windows: int = BATCH_WINDOWS,
        store: StoredWindows | None = None,
    ):
        check_vocabularies(
            model.decoder.vocab_size, model.encoder.vocab_size, Tokenizers(decoder_tokenizer, encoder_tokenizer)
        )
        self.mesh = make_mesh(MeshConfig(), jax.devices()[:1]) if mesh is None else without_context(mesh)
        self.params = place(params, model, self.mesh)
        self.model = model
        self.decoder_tokenizer = decoder_tokenizer
        self.encoder_tokenizer = encoder_tokenizer
        # The marker of eos pooling; no other pooling reads it.
        pad_id = encoder_tokenizer.pad_id if model.has_pad_markers else 0
        self.encoder = SpanEncoder(self.params, model, self.mesh, pad_id, batch_windows, store)
        self.ratios: Chooser | None = None
        """Gives every span a ratio of its own; None: all have the model's."""

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        batch_windows: int = BATCH_WINDOWS,
        store: Path | None = None,
        store_code: str | None = None,
        **changes: Any,
    ) -> "Generator":
        """Load an exported or released folder; ``changes`` are keys of ``ModelConfig`` such as ``compute_dtype``.

        It computes in bfloat16 if the decoder is stored so, else in float32, unless ``changes`` says otherwise.

        Args:
            folder: the folder.
            batch_windows: most windows that the encoder reads at once.
            store: file of a store of latents: windows that it has are not read again, and it gets the others.
            store_code: how it keeps vectors (see ``StoredWindows``).
            **changes: see above.
        """
        folder = Path(folder)
        stored = "bfloat16" if stored_dtype(folder / "decoder") == "bfloat16" else "float32"
        model, params = load_hf(folder, **{"compute_dtype": stored, **changes})
        decoder, encoder = (Tokenizer.from_folder(folder / part) for part in ("decoder", "encoder"))
        stored_windows = None
        if store is not None:
            stored_windows = StoredWindows(open_store(store), folder, model, store_code)
        return cls(params, model, decoder, encoder, batch_windows=batch_windows, store=stored_windows)

    def example(self, prompt: Prompt) -> Example:
        """Tokens and spans of a prompt, as ``read_example`` says; raises ``LclmError`` as that does."""
        return read_example(prompt, self._tokenizers, self.model)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling | None = None) -> list[Generation]:
        """Answer several prompts at once; raises ``LclmError`` on prompts that cannot be read (see ``example``)."""
        sampling = sampling or Sampling()
        return self.generate_examples([self.example(prompt) for prompt in prompts], sampling)

    def generate_examples(self, examples: Sequence[Example], sampling: Sampling) -> list[Generation]:
        """``generate`` from prompts that are tokenized already."""
        stops = self.stops(sampling)
        ids: list[list[int]] = [[] for _ in examples]
        for tokens in self.tokens(examples, sampling):
            for new, token in zip(ids, tokens, strict=True):
                if token is not None:
                    new.append(token)
        generations = []
        for row in ids:
            stopped = bool(row) and row[-1] in stops
            text = self.decoder_tokenizer.decode(row[:-1] if stopped else row)
            generations.append(Generation(text, tuple(row), stopped))
        return generations

    def stream(self, prompt: Prompt, sampling: Sampling | None = None) -> Iterator[str]:
        """Yield the answer to one prompt in pieces, as tokens complete characters."""
        sampling = sampling or Sampling()
        stops, ids, shown = self.stops(sampling), [], ""
        for (token,) in self.tokens([self.example(prompt)], sampling):
            if token is None or token in stops:
                break
            ids.append(token)
            text = self.decoder_tokenizer.decode(ids)
            # An unfinished character decodes to U+FFFD; it is held back until its last byte is there.
            if not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
        rest = self.decoder_tokenizer.decode(ids)[len(shown) :]
        if rest:
            yield rest

    def tokens(
        self, examples: Sequence[Example], sampling: Sampling, pooled: Sequence[list[np.ndarray]] | None = None
    ) -> Iterator[list[int | None]]:
        """Yield the next token of every row, step by step; None for rows that have stopped.

        Args:
            examples: one prompt per row.
            sampling: how tokens are chosen.
            pooled: for each prompt the vectors of its spans, as ``read`` gives them; None: the encoder reads them now.

        Raises:
            LclmError: a prompt and its new tokens exceed the decoder's ``max_positions``.
        """
        if not examples:
            return
        stops = self.stops(sampling)
        if pooled is None and self.ratios is not None:  # how long a prompt is then depends on what the encoder says
            examples, pooled = self.read(examples)
        longest = max(len(example.tokens) for example in examples)
        limit = self.model.decoder.max_positions
        if longest + sampling.max_new_tokens > limit:
            raise LclmError(
                f"{longest} prompt positions and max_new_tokens={sampling.max_new_tokens} exceed the decoder's"
                f" max_positions={limit}; shorten the prompt, compress more of it, or ask for fewer tokens"
            )
        done = np.zeros(len(examples), bool)
        for tokens_B in self._decode(examples, sampling, self.pooled(examples) if pooled is None else pooled):
            yield [None if ended else int(t) for t, ended in zip(tokens_B, done, strict=True)]
            done |= np.isin(tokens_B, list(stops))
            if done.all():
                return

    def _decode(
        self, examples: Sequence[Example], sampling: Sampling, pooled: Sequence[list[np.ndarray]]
    ) -> Iterator[np.ndarray]:
        """Next tokens [rows] of ``examples``, ``max_new_tokens`` times, whatever they are."""
        batch, pooled_BLE, lengths_B = self.inputs(examples, pooled)
        room = batch.decoder_tokens.shape[1] + bucket(sampling.max_new_tokens)
        how = (sampling.temperature, sampling.top_p, sampling.repetition_penalty)
        key = jax.random.key(sampling.seed)
        with use_mesh(self.mesh):
            logits_BV, cache = prefill(self.params, batch, pooled_BLE, lengths_B, model=self.model, room=room)
            seen_BV = jnp.zeros(logits_BV.shape, bool)
            for step in range(sampling.max_new_tokens):
                tokens_B, seen_BV = choose(logits_BV, seen_BV, jax.random.fold_in(key, step), how=how)
                if step + 1 < sampling.max_new_tokens:
                    # Queued before the tokens are fetched, so that the device works while the host reads.
                    logits_BV, cache = self.advance(tokens_B, cache)
                yield np.asarray(tokens_B)[: len(examples)]

    def embeddings(
        self, examples: Sequence[Example], progress: Callable[[int], None] | None = None
    ) -> Iterator[np.ndarray]:
        """Yield the spliced prompt embeddings of every example, ``[positions, D]`` in the compute dtype.

        All windows are encoded first; ``progress`` is told how many each chunk had.
        """
        examples, pooled = self.read(examples, progress)
        for example, spans in zip(examples, pooled, strict=True):
            batch, pooled_BLE, _ = self.inputs([example], [spans])
            with use_mesh(self.mesh):
                x_BSD = _splice(self.params, batch, pooled_BLE, model=self.model)
            yield np.asarray(x_BSD[0, : len(example.tokens)])

    def latents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Latents of each text as the decoder reads them, ``[ceil(tokens / N), D]`` in the compute dtype.

        The strings of special tokens in a text are read as ordinary characters. Raises ``LclmError`` on a text without
        tokens.
        """
        memory = self.decoder_tokenizer.memory_ids
        tags = np.array([memory.start, memory.end], np.int32)
        examples = []
        for number, text in enumerate(texts):
            span = self.encoder_tokenizer.encode(text, plain=True)
            if not len(span):
                raise LclmError(f"text {number} has no token; there is nothing to compress: leave it out")
            outline = make_outline([tags], [np.zeros(2, np.float32)], [1], [span])
            examples.append(expand(outline, self.model.ratio, memory.placeholder))
            check_ids(examples[-1], self._tokenizers, self.model)
        return [x_SD[1:-1] for x_SD in self.embeddings(examples)]

    def pooled(
        self, examples: Sequence[Example], progress: Callable[[int], None] | None = None
    ) -> list[list[np.ndarray]]:
        """Pooled vectors of every span of every example, at the model's ratio."""
        spans = [span for example in examples for span in example.spans]
        return list(split_spans(examples, self.encoder.pooled(spans, progress)))

    def read(
        self, examples: Sequence[Example], progress: Callable[[int], None] | None = None
    ) -> tuple[list[Example], list[list[np.ndarray]]]:
        """Examples with the ratios that ``ratios`` gives their spans, and the vectors of every span at its ratio.

        Spans that have ratios already keep them.
        """
        read, vectors = [], []
        for example, spans in zip(examples, self.pooled(examples, progress), strict=True):
            if example.ratios is None and self.ratios is not None:
                example = with_ratios(example, self.ratios(spans), self.model)
            if example.ratios is not None:
                pairs = [(self.model.ratio, ratio) for ratio in example.ratios.tolist()]
                sized = zip(spans, map(len, example.spans), pairs, strict=True)
                spans = [merge_vectors(*one) for one in sized]
            read.append(example)
            vectors.append(spans)
        return read, vectors

    def inputs(
        self, examples: Sequence[Example], pooled: Sequence[list[np.ndarray]]
    ) -> tuple[Batch, np.ndarray, np.ndarray]:
        """What the decoder reads of ``examples``: batch, pooled_BLE and lengths_B; the first one fills up the rows."""
        more = rows_for(len(examples), self.mesh) - len(examples)
        padded = [*examples, *[examples[0]] * more]
        batch, pooled_BLE = prompt_batch(padded, [*pooled, *[pooled[0]] * more], self.model)
        return batch, pooled_BLE, np.array([len(example.tokens) for example in padded], np.int32)

    def stops(self, sampling: Sampling) -> frozenset[int]:
        """Tokens that end a row."""
        if sampling.stop_ids is not None:
            return frozenset(sampling.stop_ids)
        return self.decoder_tokenizer.stop_ids

    @functools.cached_property
    def advance(self) -> DecodingStep:
        """What appends a token to every row of a cache."""
        return DecodingStep(self.params, self.model, self.mesh)

    @property
    def _tokenizers(self) -> Tokenizers:
        return Tokenizers(self.decoder_tokenizer, self.encoder_tokenizer)


def place(params: Params, model: ModelConfig, mesh: Mesh) -> Any:
    """``params`` laid out on ``mesh`` by the sharding table; JAX arrays that lie on one device stay there."""
    if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params)) and mesh.size == 1:
        return params
    return jax.device_put(params, params_sharding(mesh, logical_axes(model), params))


@functools.partial(jax.jit, static_argnames=("model", "room"))
def prefill(
    params: Params, batch: Batch, pooled_BLE: jax.Array, lengths_B: jax.Array, *, model: ModelConfig, room: int
) -> tuple[jax.Array, KVCache]:
    """Logits after each prompt, and a cache of ``room`` positions that holds it."""
    x_BSD = spliced(params, model, batch, pooled_BLE)
    cache = init_cache(model, x_BSD.shape[0], room)
    hidden_BSD, cache = decode_cached(params, model, x_BSD, batch.decoder_positions, cache, lengths_B)
    last_B1D = jnp.take_along_axis(hidden_BSD, lengths_B[:, None, None] - 1, axis=1)
    return logits(params, model, last_B1D)[:, 0], cache


@functools.partial(jax.jit, static_argnames=("model",))
def _splice(params: Params, batch: Batch, pooled_BLE: jax.Array, *, model: ModelConfig) -> jax.Array:
    return spliced(params, model, batch, pooled_BLE)


@functools.partial(jax.jit, static_argnames=("how",), donate_argnames=("seen_BV",))
def choose(
    logits_BV: jax.Array, seen_BV: jax.Array, key: jax.Array, *, how: tuple[float, float, float]
) -> tuple[jax.Array, jax.Array]:
    """The next token of every row, and the tokens that it has generated so far."""
    tokens_B = pick(logits_BV, seen_BV, key, *how)
    return tokens_B, seen_BV.at[jnp.arange(tokens_B.shape[0]), tokens_B].set(True)
