"""The LCLM as pure functions of (params, model, arrays).

Flow: ``encoder_tokens_BMR -> hidden_BMRE -> pooled_BLE -> latents_BLD -> x_BSD -> hidden_BSD``. ``params`` is a plain
nested dict of arrays in ``model.param_dtype``; activations are in ``model.compute_dtype``. Everything but
``init_params``, ``abstract_params`` and ``logical_axes`` runs under a mesh (``parallel.use_mesh``).
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta

from lclm_jax.batch import Batch
from lclm_jax.config.model import ModelConfig
from lclm_jax.kernels.cross_entropy import Shards, cross_entropy, overlaid_logits
from lclm_jax.kernels.distillation import Output, Stored, Teacher, divergence
from lclm_jax.model.adapter import adapter_of, latents_of
from lclm_jax.model.block import Block, attention_context, cached_attention_context
from lclm_jax.model.decoder import Decoder, decoder_options, memory_ids
from lclm_jax.model.encoder import Encoder, dummy_windows
from lclm_jax.model.kv_cache import KVCache
from lclm_jax.model.layers import DROPOUT, Declared
from lclm_jax.model.pooling import (
    dummy_groups,
    fused_norm_scale,
    learned_markers,
    merge_groups,
    pool_rows,
    pooling_of,
)
from lclm_jax.model.poolings.late_layers import first_layers, read_latents, runs_late_layers
from lclm_jax.model.splice import splice
from lclm_jax.parallel.sharding import ENCODER_ROWS, axis_names, constrain, logical_shard_map, widest
from lclm_jax.parallel.zigzag import from_zigzag, to_zigzag
from lclm_jax.types import Params, PyTree


def init_params(model: ModelConfig, key: jax.Array) -> Params:
    """Random parameters; each leaf is a pure function of (model, key). Needs no mesh."""
    return _init(model, key)


def abstract_params(model: ModelConfig) -> Params:
    """Shapes and dtypes of the parameters, as ``jax.ShapeDtypeStruct``; nothing is computed."""
    dtype = jnp.dtype(model.param_dtype)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), meta.unbox(_boxes(model)))


def logical_axes(model: ModelConfig) -> Params:
    """Tuple of logical axis names of every parameter, in the structure of ``init_params``."""
    return jax.tree.map(lambda box: box.axes, _boxes(model), is_leaf=lambda node: isinstance(node, Declared))


def encode_pooled(params: Params, model: ModelConfig, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    """pooled_BLE: one vector per latent slot, before the adapter (``concat``: width N * E).

    ``key``: random key of LoRA's dropout here and below; None (evaluation): nothing is dropped.
    """
    return _encode_pooled(params, model, batch, key, None)


def _encode_pooled(
    params: Params, model: ModelConfig, batch: Batch, key: jax.Array | None, latent_scale_E: jax.Array | None
) -> jax.Array:
    """``encode_pooled``, through the adapter's input norm if its scale is given."""
    alone = _encoder_rows_alone(batch)
    spread = widest(ENCODER_ROWS, alone.encoder_tokens.shape[0])
    with jax.named_scope("encoder/window"):
        windows = (alone.encoder_tokens, alone.encoder_segments, alone.encoder_positions)
        reader, encoder = first_layers(model, params["encoder"])
        x_BMRE = _apply(Encoder(reader), encoder, *windows, False, learned_markers(params, model), key=key)
    with jax.named_scope("pool"):
        if runs_late_layers(model):
            pooled_BLE = read_latents(model, params["encoder"], x_BMRE[:, 0], alone, spread, key)
        else:
            pooled_BLE = pool_rows(params, model, x_BMRE[:, 0], alone, spread, latent_scale_E)
        # Home to the owners of the packed rows: only pooled states travel, a ratio-th of what was computed.
        pooled_BLE = pooled_BLE.reshape(batch.encoder_tokens.shape[0], -1, pooled_BLE.shape[-1])
        pooled_BLE = constrain(pooled_BLE, "batch", "latents", "embed")
        return pooled_BLE if batch.latent_ratios is None else merge_groups(model, pooled_BLE, batch)


def encode(params: Params, model: ModelConfig, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    """latents_BLD: windows to hidden states, pooled, through the adapter. Slots that are gaps hold no meaning."""
    latent_scale_E = fused_norm_scale(params, model)
    pooled_BLE = _encode_pooled(params, model, batch, key, latent_scale_E)
    with jax.named_scope("adapter"):
        spans = (batch.latent_segments, batch.latent_positions)
        return latents_of(params["adapter"], model, pooled_BLE, spans, normed=latent_scale_E is not None)


def embed(params: Params, model: ModelConfig, batch: Batch, latents_BLD: jax.Array | None = None) -> jax.Array:
    """x_BSD: embeddings of the decoder's tokens with ``latents_BLD`` in place of placeholders (None: left as text)."""
    x_BSD = _apply(Decoder(model), params["decoder"], batch.decoder_tokens, method="lookup")
    if latents_BLD is not None:
        with jax.named_scope("splice"):
            x_BSD = splice(x_BSD, latents_BLD, batch.latent_index)
    return constrain(x_BSD, "batch", "seq", "embed")


def decode(
    params: Params,
    model: ModelConfig,
    x_BSD: jax.Array,
    segments_BS: jax.Array,
    positions_BS: jax.Array,
    key: jax.Array | None = None,
) -> jax.Array:
    """hidden_BSD after the final norm; attention is causal by array order and stays inside a segment."""
    x_BSD = to_zigzag(x_BSD, "batch", "seq", "embed")
    segments_BS, positions_BS = (to_zigzag(x_BS, "batch", "seq") for x_BS in (segments_BS, positions_BS))
    context = attention_context(model.decoder, segments_BS, positions_BS)
    with jax.named_scope("decoder"):
        hidden_BSD = _apply(Decoder(model), params["decoder"], x_BSD, context, key=key)[0]
    return from_zigzag(hidden_BSD, "batch", "seq", "embed")


def forward(params: Params, model: ModelConfig, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    """hidden_BSD of a batch: encode, embed, decode."""
    encoder_key, decoder_key = (None, None) if key is None else jax.random.split(key)
    latents_BLD = encode(params, model, batch, encoder_key)
    x_BSD = embed(params, model, batch, latents_BLD)
    return decode(params, model, x_BSD, batch.decoder_segments, batch.decoder_positions, decoder_key)


def logits(params: Params, model: ModelConfig, hidden_BSD: jax.Array) -> jax.Array:
    """float32 logits [B, S, V]: for generation and tests, where S is small."""
    table_VD, memory_rows_3D, ids = output_head(params, model)
    return overlaid_logits(hidden_BSD, table_VD, memory_rows_3D, ids)


def token_nll(params: Params, model: ModelConfig, hidden_BSD: jax.Array, targets_BS: jax.Array) -> jax.Array:
    """nll_BS, float32 nats: of the target at every position, weighted or not; [B, S, V] is never built."""
    return token_nll_and_lse(params, model, hidden_BSD, targets_BS)[0]


def token_nll_and_lse(
    params: Params, model: ModelConfig, hidden_BSD: jax.Array, targets_BS: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """``token_nll``, and the log-sum-exp of every position's logits, float32 [B, S]: what a z-loss is made of."""
    table_VD, memory_rows_3D, ids = output_head(params, model)
    shards = Shards(logical_shard_map, axis_names("batch", "seq"), axis_names("vocab"), axis_names("param_embed"))
    with jax.named_scope("cross_entropy"):
        return cross_entropy(
            hidden_BSD,
            table_VD,
            targets_BS,
            chunk=model.loss_chunk,
            memory_rows_3D=memory_rows_3D,
            memory_ids=ids,
            shards=shards,
        )


def read_raw(decoder: Params, model: ModelConfig, batch: Batch) -> Output:
    """What the logits of ``decoder`` are made of, at the twin of every position of ``batch``; without a gradient.

    Positions that have no twin hold what has no meaning.
    """
    params = {"decoder": jax.lax.stop_gradient(decoder)}
    with jax.named_scope("teacher"):
        x_BSD = embed(params, model, batch._replace(decoder_tokens=batch.twin_tokens))
        hidden_BSD = decode(params, model, x_BSD, batch.twin_segments, batch.twin_positions)
        # A position may predict what the teacher predicts on another device of its row.
        hidden_BSD = constrain(hidden_BSD, "batch", "kv_seq", "embed")
        picked_BSD = jnp.take_along_axis(hidden_BSD, jnp.maximum(batch.twin_index, 0)[..., None], axis=1)
        table_VD, memory_rows_3D, _ = output_head(params, model)
    return Output(constrain(picked_BSD, "batch", "seq", "embed"), table_VD, memory_rows_3D)


def teacher_of(decoder: Params, model: ModelConfig, batch: Batch) -> Teacher:
    """The teacher of ``batch``: the one whose largest logits came with it, or ``decoder``, which reads its twins."""
    if batch.twin_index is None:
        return Stored(batch.teacher_ids, batch.teacher_logits)
    return read_raw(decoder, model, batch)


def divergence_from(
    teacher: Teacher, params: Params, model: ModelConfig, hidden_BSD: jax.Array, temperature: float
) -> jax.Array:
    """kl_BS, float32 nats: of what ``params`` make of ``hidden_BSD`` from the teacher's distribution."""
    table_VD, memory_rows_3D, _ = output_head(params, model)
    shards = Shards(logical_shard_map, axis_names("batch", "seq"), axis_names("vocab"), axis_names("param_embed"))
    student = Output(hidden_BSD, table_VD, memory_rows_3D)
    with jax.named_scope("distillation"):
        return divergence(
            student, teacher, temperature, chunk=model.loss_chunk, memory_ids=memory_ids(model), shards=shards
        )


def decode_cached(
    params: Params,
    model: ModelConfig,
    x_BSD: jax.Array,
    positions_BS: jax.Array,
    cache: KVCache,
    counts_B: jax.Array | None = None,
) -> tuple[jax.Array, KVCache]:
    """Append S positions to every row of ``cache``: (hidden_BSD after the final norm, the longer cache).

    A row is one segment. ``counts_B`` (int32) is how many of the S positions of each row are real, for prompts of
    different lengths padded on the right; what the others return has no meaning and the next call overwrites them.
    The caller sees to it that ``cache.length_B + S`` stays within the cache.
    """
    context = cached_attention_context(model.decoder, positions_BS, cache.length_B, cache.k.shape[2])
    with jax.named_scope("decoder"):
        hidden_BSD, (k, v) = _apply(Decoder(model), params["decoder"], x_BSD, context, (cache.k, cache.v))
    counts_B = jnp.full_like(cache.length_B, x_BSD.shape[1]) if counts_B is None else counts_B
    return hidden_BSD, KVCache(k, v, cache.length_B + counts_B)


def decode_layers_cached(
    layers: Sequence[Params],
    model: ModelConfig,
    x_BSD: jax.Array,
    positions_BS: jax.Array,
    cache: KVCache,
    first: jax.Array | int,
) -> tuple[jax.Array, KVCache]:
    """The part of ``decode_cached`` that some layers do: (x_BSD after them, the cache with their keys and values).

    ``layers`` are the parameters of each, not stacked, of those from number ``first`` (int32) on. The embedding, the
    final norm and the count of ``cache.length_B`` are the caller's.
    """
    context = cached_attention_context(model.decoder, positions_BS, cache.length_B, cache.k.shape[2])
    block, carry = Block(model.decoder, decoder_options(model)), (x_BSD, (cache.k, cache.v))
    with jax.named_scope("decoder"):
        for number, params in enumerate(layers):
            carry, _ = _apply(block, params, carry, jnp.asarray(first + number, jnp.int32), context)
    x_BSD, (k, v) = carry
    return x_BSD, KVCache(k, v, cache.length_B)


def final_norm(params: Params, model: ModelConfig, x_BSD: jax.Array) -> jax.Array:
    """Hidden states for ``logits`` from what the last layer gives."""
    return _apply(Decoder(model), params["decoder"], x_BSD, method="finish")


def _encoder_rows_alone(batch: Batch) -> Batch:
    """``batch`` with every encoder row as if it were the only one of a packed row: [B, M, R] to [B * M, 1, R]."""
    rows, encoder_rows, positions = batch.encoder_tokens.shape
    names = ("encoder_tokens", "encoder_segments", "encoder_positions", "pool_weights")
    alone = {name: getattr(batch, name).reshape(rows * encoder_rows, 1, positions) for name in names}
    if batch.marker_index is not None:  # a marker lies in the encoder row of its slot; those of gaps are not looked at
        first_M1 = jnp.arange(encoder_rows)[:, None] * positions
        markers_BMK = batch.marker_index.reshape(rows, encoder_rows, -1) - first_M1[None]
        alone["marker_index"] = jnp.maximum(markers_BMK, 0).reshape(rows * encoder_rows, -1)
    return batch._replace(**alone)


def _apply(
    module: nn.Module, params: Params, *arrays: PyTree, method: str | None = None, key: jax.Array | None = None
) -> PyTree:
    return module.apply({"params": params}, *arrays, method=method, rngs=None if key is None else {DROPOUT: key})


def output_head(params: Params, model: ModelConfig) -> tuple[jax.Array, jax.Array | None, tuple[int, int, int] | None]:
    """(table_VD, rows that stand in for it at the memory tokens, ids of these): what logits are made of."""
    table_VD, memory_rows_3D = _apply(Decoder(model), params["decoder"], method="output")
    return table_VD, memory_rows_3D, memory_ids(model) if memory_rows_3D is not None else None


@functools.lru_cache(maxsize=128)  # asked for many times while a stage starts, and tracing takes a second
def _boxes(model: ModelConfig) -> Params:
    """Shapes of ``_declare``; the key is made inside, as a mesh may stand for devices that are not there."""
    return jax.eval_shape(lambda: _declare(model, jax.random.key(0)))


def _declare(model: ModelConfig, key: jax.Array) -> Params:
    """Boxed parameters: arrays with their logical axes. All but LoRA's have the values of the model without LoRA."""
    boxes = _declare_at_once(model, key)
    if model.plain == model:
        return boxes
    # Linen's random streams count the parameters of a stack, so LoRA's would change the others' values.
    return _with_lora_of(boxes, _declare_at_once(model.plain, key))


def _with_lora_of(boxes: Params, plain: Params) -> Params:
    """``plain`` and the leaves of ``boxes`` that it lacks."""
    return {
        name: _with_lora_of(node, plain[name]) if isinstance(node, dict) else plain.get(name, node)
        for name, node in boxes.items()
    }


def _declare_at_once(model: ModelConfig, key: jax.Array) -> Params:
    encoder_key, adapter_key, decoder_key = jax.random.split(key, 3)
    if model.memory_token_ids is None:  # shapes and random values do not depend on the ids
        model = model.model_copy(update={"memory_token_ids": (0, 1, 2)})
    pooled_BLE = jnp.zeros((1, 1, model.latent_size))
    zeros_BS = jnp.zeros((1, 1), jnp.int32)
    adapter, pooling = adapter_of(model).init(adapter_key, pooled_BLE, zeros_BS, zeros_BS)["params"], pooling_of(model)
    if pooling is not None:
        pool_key = jax.random.fold_in(adapter_key, 1)
        adapter |= {"pool": pooling.init(pool_key, *dummy_groups(model))["params"]}
    return {
        "encoder": Encoder(model).init(encoder_key, *dummy_windows(model))["params"],
        "adapter": adapter,
        "decoder": Decoder(model).init(decoder_key, zeros_BS, method="everything")["params"],
    }


@functools.partial(jax.jit, static_argnums=0)
def _init(model: ModelConfig, key: jax.Array) -> Params:
    return jax.tree.map(lambda leaf: leaf.astype(model.param_dtype), meta.unbox(_declare(model, key)))
