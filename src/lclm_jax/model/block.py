"""The transformer block of Qwen3, Llama and Qwen2, and a stack of them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lclm_jax.config.model import BackboneConfig, LoraConfig, ModelConfig, Quantization
from lclm_jax.config.registry.remat_policies import REMAT_POLICIES, RematPolicy
from lclm_jax.kernels.attention import attention
from lclm_jax.kernels.cached_attention import cached_attention, values
from lclm_jax.kernels.platform import device_kind
from lclm_jax.kernels.request import SAVED
from lclm_jax.model.functional import apply_rope, rope_tables, silu_gate
from lclm_jax.model.kv_cache import write
from lclm_jax.model.layers import DROPOUT, Module, ProductOptions, Projection, RMSNorm
from lclm_jax.parallel.sharding import axis_names, logical_shard_map
from lclm_jax.parallel.zigzag import natural_order, pieces_of

Cache = tuple[jax.Array, jax.Array] | None
"""Keys and values of earlier positions, [L, B, T, K, d] of all layers; None: there is no cache."""


class StackOptions(NamedTuple):
    """How a stack runs, beside its shape. Hashable."""

    causal: bool
    backend: str
    remat: RematPolicy
    scan_layers: bool
    rows: str = "batch"
    """Logical axis of the rows."""
    positions: str = "seq"
    """Logical axis of the positions."""
    heads: str = "heads"
    kv_heads: str = "kv_heads"
    mlp: str = "mlp"
    width: str = "param_embed"
    """Logical axis of the residual stream's width in the parameters."""
    lora: LoraConfig | None = None
    """Low-rank updates of the stack's projections."""
    quantize: Quantization = "none"
    """Of their products."""

    def product(self, name: str) -> ProductOptions:
        """What they say of projection ``name``."""
        lora = self.lora if self.lora is not None and name in self.lora.targets else None
        return ProductOptions(lora, self.quantize, name if name in (*self.remat.device, *self.remat.host) else None)

    @classmethod
    def of(cls, model: ModelConfig, causal: bool, rows: str, positions: str) -> "StackOptions":
        """The options that ``model`` sets."""
        return cls(causal, model.attention, REMAT_POLICIES[model.remat], model.scan_layers, rows, positions)


class AttentionContext(NamedTuple):
    """What decides which position sees which, and where each stands; the same for every layer of a stack."""

    cos_BSd: jax.Array
    sin_BSd: jax.Array
    q_segments_BS: jax.Array
    kv_segments_BT: jax.Array | None = None
    """None: the queries' own, rows attend to themselves; then positions that a mesh cuts are in zig-zag order."""
    offset_B: jax.Array | None = None
    """Array order of each row's first query among the keys (with a cache)."""


class Attention(Module):
    """Grouped-query attention with rotary positions and, in Qwen3, RMSNorm on queries and keys per head."""

    config: BackboneConfig
    options: StackOptions

    @nn.compact
    def __call__(
        self, x_BSD: jax.Array, cache: Cache, layer: jax.Array | None, context: AttentionContext
    ) -> tuple[jax.Array, Cache]:
        """Attention over the row (``cache`` None) or over cache and row; (out_BSD, the cache with this row in it).

        ``layer``: which layer of the cache is this one's, int32.
        """
        c, rows, positions = self.config, self.options.rows, self.options.positions
        heads, kv_heads = self.options.heads, self.options.kv_heads
        q_BSHd, k_BSKd, v_BSKd = self._projected(x_BSD, context)
        q_BSHd = self.constrained(q_BSHd, rows, positions, heads, "head_dim")
        # Cut before they are gathered: else the partitioner gathers x, which is wider, and projects all of it again.
        k_BSKd, v_BSKd = (self.constrained(x, rows, positions, kv_heads, "head_dim") for x in (k_BSKd, v_BSKd))
        k_BTKd, v_BTKd = (self.constrained(x, rows, "kv_seq", kv_heads, "head_dim") for x in (k_BSKd, v_BSKd))
        if cache is None:
            out_BSHd = self._attend((q_BSHd, k_BTKd, v_BTKd), context)
        else:
            out_BSHd, keys, values = self._attend_cached((q_BSHd, k_BTKd, v_BTKd), cache, layer, context)
            cache = (keys, values)
        out = Projection(
            "BSHd,HdD->BSD",
            (c.num_heads, c.head_dim, c.hidden_size),
            (heads, "head_dim", self.options.width),
            contracted=2,
            gain=0.5 / c.num_layers,
            how=self.options.product("o"),
            name="o",
        )
        return out(out_BSHd), cache

    def _attend(self, qkv: tuple[jax.Array, jax.Array, jax.Array], context: AttentionContext) -> jax.Array:
        """out_BSHd: every device attends with its rows, heads and queries to all keys of its rows.

        Kernels must not be left to the partitioner, which would run them whole on every device.
        """
        mesh = jax.sharding.get_abstract_mesh()
        if self.is_initializing():  # shapes are all that matters
            return qkv[0]
        if mesh.size == 1:
            return _attend_locally(self.options, (), *qkv, *context[2:])
        rows, positions, heads = self.options.rows, self.options.positions, self.options.heads
        cut = axis_names(positions)
        run: Callable[..., jax.Array] = functools.partial(_attend_locally, self.options, cut)
        if cut and context.kv_segments_BT is None:
            run = functools.partial(_attend_zigzag, self.options, cut)
            context = context._replace(kv_segments_BT=context.q_segments_BS)
        of_q, of_k = (rows, positions, heads, "head_dim"), (rows, "kv_seq", self.options.kv_heads, "head_dim")
        in_axes = (of_q, of_k, of_k, (rows, positions), (rows, "kv_seq"), (rows,))
        return logical_shard_map(run, in_axes, of_q)(*qkv, *context[2:])

    def _attend_cached(
        self,
        qkv: tuple[jax.Array, jax.Array, jax.Array],
        cache: tuple[jax.Array, jax.Array],
        layer: jax.Array | None,
        context: AttentionContext,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(out_BSHd, keys and values of the cache with the row's in them); every device as in ``_attend``."""
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.size == 1:
            return _attend_with_cache(self.options, (), *qkv, *cache, layer, *context[2:])
        rows, positions, heads = self.options.rows, self.options.positions, self.options.heads
        cut = axis_names(positions)
        run = functools.partial(_attend_with_cache, self.options, cut)
        of_q, of_k = (rows, positions, heads, "head_dim"), (rows, "kv_seq", self.options.kv_heads, "head_dim")
        of_cache = ("layers", *of_k)
        in_axes = (of_q, of_k, of_k, of_cache, of_cache, (), (rows, positions), (rows, "kv_seq"), (rows,))
        return logical_shard_map(run, in_axes, (of_q, of_cache, of_cache))(*qkv, *cache, layer, *context[2:])

    def _projected(self, x_BSD: jax.Array, context: AttentionContext) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values, with their norms and positions."""
        c, heads, kv_heads = self.config, self.options.heads, self.options.kv_heads
        # Heads first for v6e, as kernels read them: else XLA copies queries and keys into that layout. For v5p it does
        # not, and the other order is a percent faster by its estimate.
        heads_axis = 1 if "v6" in device_kind() else 2
        q = self._heads("q", c.num_heads, heads, heads_axis)(x_BSD)
        k = self._heads("k", c.num_kv_heads, kv_heads, heads_axis)(x_BSD)
        v = self._heads("v", c.num_kv_heads, kv_heads, heads_axis)(x_BSD)
        if c.qk_norm:
            q = RMSNorm(c.head_dim, c.norm_eps, name="q_norm")(q)
            k = RMSNorm(c.head_dim, c.norm_eps, name="k_norm")(k)
        q = apply_rope(q, context.cos_BSd, context.sin_BSd, heads_axis)
        k = apply_rope(k, context.cos_BSd, context.sin_BSd, heads_axis)
        q_BSHd, k_BSKd, v_BSKd = (jnp.moveaxis(x, heads_axis, 2) for x in (q, k, v))
        return q_BSHd, k_BSKd, v_BSKd

    def _heads(self, name: str, heads: int, axis: str, heads_axis: int) -> Projection:
        c, equation = self.config, "BSD,DHd->BHSd" if heads_axis == 1 else "BSD,DHd->BSHd"
        shape, axes = (c.hidden_size, heads, c.head_dim), (self.options.width, axis, "head_dim")
        bias = (axis, "head_dim") if c.qkv_bias else ()
        return Projection(equation, shape, axes, bias=bias, how=self.options.product(name), name=name)


def _attend_locally(
    options: StackOptions,
    cut: tuple[str, ...],
    q_BSHd: jax.Array,
    k_BTKd: jax.Array,
    v_BTKd: jax.Array,
    q_segments_BS: jax.Array,
    *others: jax.Array | None,
) -> jax.Array:
    """out_BSHd of one device; ``cut``: mesh axes that cut the queries; ``others``: the context's last two."""
    kv_segments_BT, offset_B = others
    if cut:
        first_B = jnp.full(q_BSHd.shape[:1], jax.lax.axis_index(cut) * q_BSHd.shape[1], jnp.int32)
        offset_B = first_B if offset_B is None else first_B + offset_B
    return attention(
        q_BSHd,
        k_BTKd,
        v_BTKd,
        segments=(q_segments_BS, q_segments_BS if kv_segments_BT is None else kv_segments_BT),
        causal=options.causal,
        offset_B=offset_B,
        backend=options.backend,
    )


def _attend_with_cache(
    options: StackOptions,
    cut: tuple[str, ...],
    q_BSHd: jax.Array,
    k_BSKd: jax.Array,
    v_BSKd: jax.Array,
    *others: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As ``_attend_locally``, over a cache that gets the row first; (out_BSHd, keys, values).

    ``others``: keys and values of the cache [L, B, T, K, d], which of its layers, and the context's last three.
    """
    k_LBTKd, v_LBTKd, layer, q_segments_BS, kv_segments_BT, offset_B = others
    assert k_LBTKd is not None and v_LBTKd is not None and q_segments_BS is not None
    assert layer is not None and offset_B is not None
    k_LBTKd, v_LBTKd = (write(old, new, layer, offset_B) for old, new in ((k_LBTKd, k_BSKd), (v_LBTKd, v_BSKd)))
    if q_BSHd.shape[1] == 1 and not cut:
        return cached_attention(q_BSHd, k_LBTKd, v_LBTKd, layer, offset_B), k_LBTKd, v_LBTKd
    k_BTKd, v_BTKd = (
        values(jax.lax.dynamic_index_in_dim(x, layer, keepdims=False)).astype(q_BSHd.dtype) for x in (k_LBTKd, v_LBTKd)
    )
    out_BSHd = _attend_locally(options, cut, q_BSHd, k_BTKd, v_BTKd, q_segments_BS, kv_segments_BT, offset_B)
    return out_BSHd, k_LBTKd, v_LBTKd


def _attend_zigzag(options: StackOptions, cut: tuple[str, ...], *arrays: jax.Array) -> jax.Array:
    """As ``_attend_locally`` for a device that has two pieces of every row: its queries attend piece by piece."""
    devices, (q_BSHd, k_BTKd, v_BTKd, q_segments_BS, kv_segments_BT, _) = jax.lax.axis_size(cut), arrays
    k_BTKd, v_BTKd, kv_segments_BT = (natural_order(x, devices) for x in (k_BTKd, v_BTKd, kv_segments_BT))
    size = q_BSHd.shape[1] // 2
    outs = []
    for half, piece in enumerate(pieces_of(jax.lax.axis_index(cut), devices)):
        here = slice(half * size, (half + 1) * size)
        offset_B = jnp.full(q_BSHd.shape[:1], piece * size, jnp.int32)
        queries = (q_BSHd[:, here], k_BTKd, v_BTKd, q_segments_BS[:, here])
        outs.append(_attend_locally(options, (), *queries, kv_segments_BT, offset_B))
    return jnp.concatenate(outs, axis=1)


class SwiGLU(Module):
    """``down(silu(gate(x)) * up(x))`` (arXiv 2002.05202)."""

    config: BackboneConfig
    options: StackOptions

    @nn.compact
    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        """[B, S, D] in and out."""
        c = self.config
        hidden_BSF = silu_gate(self._widen("gate")(x_BSD), self._widen("up")(x_BSD))
        hidden_BSF = self.constrained(hidden_BSF, self.options.rows, self.options.positions, self.options.mlp)
        shape, axes, gain = (c.mlp_size, c.hidden_size), (self.options.mlp, self.options.width), 0.5 / c.num_layers
        how = self.options.product("down")
        return Projection("BSF,FD->BSD", shape, axes, gain=gain, how=how, name="down")(hidden_BSF)

    def _widen(self, name: str) -> Projection:
        shape, axes = (self.config.hidden_size, self.config.mlp_size), (self.options.width, self.options.mlp)
        return Projection("BSD,DF->BSF", shape, axes, how=self.options.product(name), name=name)


class Block(Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    config: BackboneConfig
    options: StackOptions

    @nn.compact
    def __call__(
        self, carry: tuple[jax.Array, Cache], layer: jax.Array | None, context: AttentionContext
    ) -> tuple[tuple[jax.Array, Cache], None]:
        """((x_BSD, cache), nothing), shaped for ``nn.scan``: the carry, and no output of each layer.

        The cache is carried, so that it is written in place; ``layer``: this one's number, where there is a cache.
        """
        x_BSD, cache = carry
        c, axes = self.config, (self.options.rows, self.options.positions, "embed")
        with jax.named_scope("attn"):
            normed_BSD = RMSNorm(c.hidden_size, c.norm_eps, name="attn_norm")(x_BSD)
            out_BSD, cache = Attention(c, self.options, name="attn")(normed_BSD, cache, layer, context)
            x_BSD = self.constrained(x_BSD + out_BSD, *axes)
        with jax.named_scope("mlp"):
            normed_BSD = RMSNorm(c.hidden_size, c.norm_eps, name="mlp_norm")(x_BSD)
            x_BSD = x_BSD + SwiGLU(c, self.options, name="mlp")(normed_BSD)
        return (self.constrained(x_BSD, *axes), cache), None


def layers(config: BackboneConfig, options: StackOptions, initializing: bool, name: str = "layers") -> nn.Module:
    """A stack of ``config.num_layers`` blocks: ((x_BSD, cache), layers, context) -> ((x_BSD, cache), None).

    ``layers`` [num_layers] int32 counts them where there is a cache; ``initializing``: whether the module that has
    them is (``is_initializing``). Parameters carry the layers on axis 0, scanned or unrolled alike.
    """
    block: Callable[..., nn.Module] = Block
    if options.remat.recomputes:
        # A scanned body is optimised on its own; only unrolled blocks could be merged with their recomputation.
        block = nn.remat(Block, policy=saveable(options.remat), prevent_cse=not options.scan_layers)
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, DROPOUT: True},
        in_axes=(0, nn.broadcast),
        length=config.num_layers,
        unroll=1 if options.scan_layers else config.num_layers,
        # Nothing is broadcast out of the loop, so the body need not be traced once more to find what could be. New
        # parameters have been: their random keys count what is traced.
        check_constancy_invariants=initializing,
    )(config, options, name=name)


@functools.cache
def saveable(remat: RematPolicy) -> Callable[..., bool]:
    """What the backward pass finds saved, for ``jax.checkpoint``; products with weights have no batch dimensions.

    The kernels name their output and log-sum-exp: saving both spares the forward kernel, the output alone would not.
    """
    policies = jax.checkpoint_policies
    if remat.device or remat.host:
        kept = [*remat.device, *([SAVED] if remat.saves_attention else [])]
        if not remat.host:
            return policies.save_only_these_names(*kept)
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=kept,
            names_which_can_be_offloaded=list(remat.host),
            offload_src="device",
            offload_dst="pinned_host",
        )
    dots = policies.dots_with_no_batch_dims_saveable if remat.saves_dots else policies.nothing_saveable
    if not remat.saves_attention:
        return dots
    attention = policies.save_only_these_names(SAVED)
    return policies.save_from_both_policies(dots, attention) if remat.saves_dots else attention


def attention_context(config: BackboneConfig, segments_BS: jax.Array, positions_BS: jax.Array) -> AttentionContext:
    """The context of rows that attend to themselves."""
    cos_BSd, sin_BSd = _rope(config, positions_BS)
    return AttentionContext(cos_BSd, sin_BSd, segments_BS)


def _rope(config: BackboneConfig, positions_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
    return rope_tables(positions_BS, config.head_dim, config.rope_theta, config.rope_scaling)


def cached_attention_context(
    config: BackboneConfig, positions_BS: jax.Array, length_B: jax.Array, keys: int
) -> AttentionContext:
    """The context of rows appended to a cache of ``keys`` slots: array order alone limits what a query sees."""
    cos_BSd, sin_BSd = _rope(config, positions_BS)
    kv_segments_BT = jnp.ones((positions_BS.shape[0], keys), jnp.int32)
    return AttentionContext(cos_BSd, sin_BSd, jnp.ones_like(positions_BS), kv_segments_BT, length_B)
