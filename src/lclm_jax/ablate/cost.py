"""What a variant costs: parameters, FLOPs by formula, memory of the process."""

import resource
import sys

import jax
import numpy as np

from lclm_jax.ablate.plan import parameter_count, train_flops
from lclm_jax.ablate.results import Cost
from lclm_jax.batch import Batch
from lclm_jax.config import Config
from lclm_jax.data.loading.loader import make_loader
from lclm_jax.data.loading.position import batch_stats
from lclm_jax.model.flops import step_flops
from lclm_jax.model.lclm import abstract_params
from lclm_jax.text.tokenizer import Tokenizers

_SAMPLE_BATCHES = 8


def measure_cost(config: Config, tokenizers: Tokenizers, raw_tokens_per_second: float) -> Cost:
    """The cost of the variant ``config``; FLOPs per raw token are those of the first batches of its last stage.

    The formula counts full rows; it is scaled by the positions in use, so that rows left half empty, because all
    variants share them, do not count.
    """
    sizes = {part: parameter_count(tree) for part, tree in abstract_params(config.model).items()}
    stage = list(config.stages)[-1]
    pack, settings = config.pack(stage), config.stages[stage]
    flops = step_flops(config.model, settings, pack)
    rows = settings.batch_rows
    encoder_each = flops.encoder.forward / (rows * pack.encoder_rows * pack.encoder_row_length)
    latents_each = flops.adapter.forward / (rows * pack.encoder_rows * pack.encoder_row_length / config.model.ratio)
    decoder_each = (flops.decoder.forward + flops.head.forward) / (rows * pack.row_length)
    encoder, latents, decoder, raw = _positions(config, stage, tokenizers)
    return Cost(
        encoder_parameters=sizes["encoder"],
        adapter_parameters=sizes["adapter"],
        decoder_parameters=sizes["decoder"],
        encoder_flops=encoder_each * encoder / raw,
        decoder_flops=(decoder_each * decoder + latents_each * latents) / raw,
        train_flops=train_flops(config),
        raw_tokens_per_second=raw_tokens_per_second,
        peak_memory_bytes=peak_memory_bytes(),
        positions_per_raw_token=decoder / raw,
    )


def peak_memory_bytes() -> int:
    """Largest memory of the accelerator so far, or of this process where there is none or it does not say."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _positions(config: Config, stage: str, tokenizers: Tokenizers) -> tuple[int, int, int, int]:
    """Encoder positions, latents, decoder positions and raw tokens of the first batches of ``stage``."""
    totals = np.zeros(4, np.int64)
    with make_loader(config, stage, tokenizers) as loader:
        for _ in range(min(_SAMPLE_BATCHES, len(loader))):
            batch, stats = next(loader)
            totals += [*_used(batch), stats.raw_tokens]
    encoder, latents, decoder, raw = totals.tolist()
    return encoder, latents, decoder, raw


def _used(batch: Batch) -> tuple[int, int, int]:
    stats = batch_stats(batch)
    return int(np.count_nonzero(batch.encoder_segments)), stats.latents, stats.decoder_tokens
