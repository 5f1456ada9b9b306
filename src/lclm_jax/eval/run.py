"""The held-out evaluation of a run: what ``eval.json`` holds."""

import logging
from collections import Counter

from jax.sharding import Mesh

from lclm_jax.config import Config
from lclm_jax.data.store.shards import open_split
from lclm_jax.eval.context_gain import measure_context_gain
from lclm_jax.eval.examples import spread_places
from lclm_jax.eval.repetition import measure_repetition
from lclm_jax.eval.score import Scorer
from lclm_jax.inference.generate import Generator, place
from lclm_jax.parallel import make_mesh
from lclm_jax.text.tokenizer import Tokenizers
from lclm_jax.types import JsonObject, Params

logger = logging.getLogger(__name__)


def evaluate(
    config: Config, params: Params, tokenizers: Tokenizers, split: str = "held_out", mesh: Mesh | None = None
) -> JsonObject:
    """Measure the context gain and verbatim repetition of ``params`` on the prepared documents of ``split``.

    Deterministic: the same parameters and data give the same numbers. Estimates are dictionaries with ``value``,
    ``standard_error`` (over files; null if unknown), ``count`` and ``clusters`` (files).

    Args:
        config: the run; ``config.eval`` sets sizes, ``config.model`` the model.
        params: parameters, on ``mesh`` or on the host.
        tokenizers: the run's decoder and encoder tokenizers.
        split: ``held_out``, or ``validation`` to tune on.
        mesh: devices; None: as ``config.mesh`` says.

    Returns:
        The keys of ``measure_context_gain`` and ``measure_repetition``, and ``held_out_tokens`` (tokens measured: those
        of the continuations and of the repetitions), ``examples``, ``files``, ``skipped`` and ``settings``.

    Raises:
        LclmError: if the split is not prepared, or has no file long enough.
    """
    settings = config.eval
    memory = tokenizers.decoder.memory_ids
    model = config.model.model_copy(update={"memory_token_ids": tuple(memory)})
    mesh = make_mesh(config.mesh) if mesh is None else mesh
    documents = open_split(config, config.eval.collection, split)
    skipped: dict[str, Counter[str]] = {"continuation": Counter(), "repetition": Counter()}
    following = settings.continuation_tokens + 1
    contexts = spread_places(documents, settings.examples, settings.context_tokens, following, skipped["continuation"])
    spans = spread_places(documents, settings.examples, settings.repetition_tokens, 0, skipped["repetition"])
    pad_id = tokenizers.encoder.pad_id if model.has_pad_markers else None
    params = place(params, model, mesh)
    generator = Generator(params, model, tokenizers.decoder, tokenizers.encoder, mesh)
    scorer = Scorer(params, model, mesh, settings.batch_rows, pad_id)
    logger.info("%s: %d continuations, %d repetitions", split, len(contexts), len(spans))
    result = measure_context_gain(scorer, contexts, settings.continuation_tokens, memory, tokenizers.decoder.bos_id)
    result |= measure_repetition(scorer, generator, spans, settings.free_running_examples)
    return result | {
        "split": split,
        "held_out_tokens": result["continuation_tokens"] + result["repetition_tokens"],
        "examples": {"continuation": len(contexts), "repetition": len(spans)},
        "files": {
            "prepared": len(documents),
            "continuation": len({place.record for place in contexts}),
            "repetition": len({place.record for place in spans}),
        },
        "skipped": {name: dict(counts) for name, counts in skipped.items()},
        "settings": settings.model_dump(mode="json"),
    }
