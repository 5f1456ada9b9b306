"""The layers that blocks are made of, and how modules declare parameters: shape, axes and initialiser in one place.

Linen keeps names, random streams and shape checks; the rest of the program sees a plain nested dict of float32 arrays.
"""

import importlib
import math
from collections.abc import Callable
from typing import NamedTuple, cast

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta
from jax.ad_checkpoint import checkpoint_name

from lclm_jax.config.model import LoraConfig, ModelConfig, Quantization
from lclm_jax.model.functional import product, rms_norm
from lclm_jax.model.lora import dropped, low_rank_equations, widened
from lclm_jax.model.quantized import quantized_product
from lclm_jax.parallel.sharding import axis_names, constrain, logical_shard_map
from lclm_jax.types import PyTree

LAYER_AXIS = "layers"
Initializer = Callable[..., jax.Array]
"""(key, shape, dtype) -> the first values of a parameter, as ``flax.linen.initializers`` make them."""

DROPOUT = "dropout"
"""Name of the random stream of LoRA's dropout; without it nothing is dropped."""


class Declared(flax.struct.PyTreeNode, meta.AxisMetadata[jax.Array]):
    """A new parameter with its logical axis names; Linen's own boxes would also constrain it, by other rules."""

    value: jax.Array
    axes: tuple[str, ...] = flax.struct.field(pytree_node=False)

    def unbox(self) -> jax.Array:
        """The array."""
        return self.value

    def replace_boxed(self, val: PyTree) -> PyTree:
        """The same axes around another array."""
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[str, object]) -> "Declared":
        """Called by ``nn.scan``: the stacked parameter gains the axis of the layers."""
        return self.replace(axes=(*self.axes[:index], LAYER_AXIS, *self.axes[index:]))

    def remove_axis(self, index: int, params: dict[str, object]) -> "Declared":
        """Called by ``nn.scan``: one layer of a stacked parameter."""
        return self.replace(axes=(*self.axes[:index], *self.axes[index + 1 :]))


class Module(nn.Module):
    """Base of the modules: declares parameters, and constrains activations except during initialisation."""

    def declare(self, name: str, init: Initializer, shape: tuple[int, ...], axes: tuple[str, ...]) -> jax.Array:
        """The float32 parameter ``name``."""

        def first_value(key: jax.Array) -> Declared:
            return Declared(init(key, shape, jnp.float32), axes)

        if self.is_initializing():
            return cast(jax.Array, self.param(name, first_value))
        return cast(jax.Array, self.param(name, lambda key: jnp.zeros(shape, jnp.float32)))

    def constrained(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """``constrain``; initialisation runs on dummy inputs that fit no mesh."""
        return x if self.is_initializing() else constrain(x, *axes)


class Products(NamedTuple):
    """Multiply-adds of one latent in the forward pass; norms, softmax and other elementwise work is left out."""

    kernels: float
    """With parameters."""
    first: float
    """Of these, the ones that read the input: what a backward pass that ends here need not go through."""
    states: float = 0.0
    """Between activations, as in attention."""


def load(code: str, model: ModelConfig) -> Module:
    """The module that the registry's ``module:class`` names, of ``model``."""
    module, _, name = code.partition(":")
    return cast(Module, getattr(importlib.import_module(module), name)(model))


class ProductOptions(NamedTuple):
    """What a configuration says of one projection, beside its shape. Hashable."""

    lora: LoraConfig | None = None
    """The low-rank update; None: there is none."""
    quantize: Quantization = "none"
    """int8, fp8: the product with the kernel is taken in 8 bits, forward and backward."""
    saved: str | None = None
    """What the result is called in policies of activation checkpointing; None: nothing."""


class Projection(Module):
    """A linear map ``einsum(equation, x, kernel)``, with a bias over the kernel's output axes if ``bias`` names them.

    The kernel starts as a normal of variance ``gain / fan_in`` (LeCun et al. 1998, Efficient BackProp); ``gain`` below
    one tames the maps that write to the residual stream. Biases start at zero.

    With ``how.lora`` a low-rank update is added (arXiv 2106.09685): ``alpha / rank * (x A) B``, of which training drops
    inputs. A starts uniform as in the peft package, B at zero, so that the update is nothing at first.

    """

    equation: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    contracted: int = 1
    gain: float = 1.0
    bias: tuple[str, ...] = ()
    how: ProductOptions = ProductOptions()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The product, in the dtype of ``x``."""
        out = self._product(x)
        return out if self.how.saved is None else checkpoint_name(out, self.how.saved)

    def _product(self, x: jax.Array) -> jax.Array:
        inputs, outputs = range(self.contracted), range(self.contracted, len(self.shape))
        init = nn.initializers.variance_scaling(self.gain, "fan_in", "normal", inputs, outputs)
        kernel = self.declare("kernel", init, self.shape, self.axes)
        operands, order = self.equation.split("->")
        of_x, of_kernel = operands.split(",")
        sizes = dict(zip(of_x, x.shape, strict=True)) | dict(zip(of_kernel, self.shape, strict=True))
        if self.is_initializing():  # shapes are all that matters
            out = jnp.zeros([sizes[axis] for axis in order], x.dtype)
        elif self.how.quantize == "none":
            out = product(self.equation, x, kernel)
        else:
            found = of_x.removesuffix(of_kernel[: self.contracted]) + of_kernel[self.contracted :]
            out = quantized_product(x, kernel, self.contracted, self.how.quantize)
            out = out.transpose([found.index(axis) for axis in order])
        if self.bias:
            bias = self.declare("bias", nn.initializers.zeros, self.shape[self.contracted :], self.bias)
            out = out + bias.astype(x.dtype).reshape([sizes[axis] if axis in of_kernel else 1 for axis in order])
        return out if self.how.lora is None else out + self._low_rank(x, self.how.lora)

    def _low_rank(self, x: jax.Array, lora: LoraConfig) -> jax.Array:
        """The update, in the dtype of ``x``."""
        cut = self.contracted
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", range(cut), (cut,))
        lora_a = self.declare("lora_a", init, (*self.shape[:cut], lora.rank), (*self.axes[:cut], "lora_rank"))
        shape, axes = (lora.rank, *self.shape[cut:]), ("lora_rank", *self.axes[cut:])
        lora_b = self.declare("lora_b", nn.initializers.zeros, shape, axes)
        if lora.dropout and self.has_rng(DROPOUT):
            x = dropped(x, lora.dropout, self.make_rng(DROPOUT))
        down, up = low_rank_equations(self.equation, cut)
        return widened(up, product(down, x, lora_a), lora_b) * (lora.alpha / lora.rank)


class RMSNorm(Module):
    """RMSNorm over the last axis; the scale starts at one."""

    size: int
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The normalised ``x``, in its dtype."""
        return rms_norm(x, self.declare("scale", nn.initializers.ones, (self.size,), ("norm",)), self.eps)


class Embedding(Module):
    """An embedding table; rows start as a normal of standard deviation ``std`` (Qwen3 and Llama: 0.02)."""

    rows: int
    width: int
    std: float
    axes: tuple[str, str] = ("vocab", "param_embed")

    @nn.compact
    def __call__(self) -> jax.Array:
        """The table [V, D], float32."""
        init = nn.initializers.normal(self.std)
        return self.declare("table", init, (self.rows, self.width), self.axes)


SHARERS = 8
"""Devices that share a lookup. More would look up more tokens each, in fewer columns than a register has lanes; fewer
would hold more columns of the table at once."""


def lookup(
    table_VD: jax.Array, tokens_BS: jax.Array, table_axes: tuple[str, str], token_axes: tuple[str, str], dtype: str
) -> jax.Array:
    """x_BSD in ``dtype``: rows ``tokens_BS`` of the table.

    Every device looks up its columns for the tokens of the devices that it shares the work with, which hold the other
    columns; then tokens are swapped for columns (all-to-all). Where the table is cut over more than ``SHARERS`` devices
    each first gathers its neighbours' columns, so that what is looked up, and what the gradient adds up and sorts, is
    the same for any number of devices. Gradients add up in float32.

    Args:
        table_VD: embedding table.
        tokens_BS: ids, int32.
        table_axes: logical axes of the table.
        token_axes: logical axes of the tokens; the result has them too, and its width is whole.
        dtype: of the result.
    """
    vocab, width = (axis_names(name) for name in table_axes)
    spread = axis_names(*token_axes)
    shared = tuple(axis for axis in width if axis in spread)
    absent = tuple(axis for axis in width if axis not in spread)

    def local(table_VD: jax.Array, tokens_BS: jax.Array) -> jax.Array:
        ids_P = tokens_BS.reshape(-1)
        # Rounded after the lookup, so that a token's gradients add up in float32 whatever the table is kept in.
        columns_NPD = _shared_columns(table_VD.astype(jnp.float32), ids_P, shared, vocab, dtype)
        columns = jax.lax.all_gather(columns_NPD, absent) if absent else columns_NPD[None]
        sizes = [jax.lax.axis_size(axis) for axis in (*absent, *shared)]
        columns = columns.reshape(*sizes, ids_P.size, -1)
        # From one axis for every mesh axis, in the order they were asked, to the order that cuts the table's columns.
        order = [(*absent, *shared).index(axis) for axis in width]
        x_BSD = columns.transpose(len(sizes), *order, len(sizes) + 1).reshape(*tokens_BS.shape, -1)
        return jax.lax.psum(x_BSD, vocab) if vocab else x_BSD

    return logical_shard_map(local, [table_axes, token_axes], (*token_axes, "embed"))(table_VD, tokens_BS)


def _shared_columns(
    table_VD: jax.Array, ids_P: jax.Array, shared: tuple[str, ...], vocab: tuple[str, ...], dtype: str
) -> jax.Array:
    """[devices of ``shared``, P, columns of each]: this device's tokens in the columns of all."""
    if not shared:
        return _rows(table_VD, ids_P[None], vocab).astype(dtype)
    devices = math.prod(jax.lax.axis_size(axis) for axis in shared)
    sharers = min((size for size in range(SHARERS, devices) if devices % size == 0), default=devices)
    near, far = _groups(devices, sharers)
    if near is not None:
        table_VD = jax.lax.all_gather(table_VD, shared, axis=1, tiled=True, axis_index_groups=near)
    ids_NP = jax.lax.all_gather(ids_P, shared, axis_index_groups=far)
    columns_NPD = _rows(table_VD, ids_NP, vocab).astype(dtype)
    columns_NPD = jax.lax.all_to_all(columns_NPD, shared, 0, 0, axis_index_groups=far)
    if near is None:
        return columns_NPD
    columns = columns_NPD.reshape(sharers, ids_P.size, devices // sharers, -1)
    return columns.swapaxes(1, 2).reshape(devices, ids_P.size, -1)


def _groups(devices: int, sharers: int) -> tuple[list[list[int]] | None, list[list[int]] | None]:
    """The devices that gather neighbouring columns, and those that then share a lookup; None: all in one group."""
    if sharers == devices:
        return None, None
    near = [list(range(first, first + devices // sharers)) for first in range(0, devices, devices // sharers)]
    return near, [list(group) for group in zip(*near, strict=True)]


def _rows(table_VD: jax.Array, ids_NP: jax.Array, vocab: tuple[str, ...]) -> jax.Array:
    """Rows of this device's part of the table; zeros for ids that lie in another's."""
    if not vocab:
        return table_VD[ids_NP]
    ids_NP = ids_NP - jax.lax.axis_index(vocab) * table_VD.shape[0]
    mine_NP = (ids_NP >= 0) & (ids_NP < table_VD.shape[0])
    rows_NPD = table_VD[jnp.where(mine_NP, ids_NP, 0)]
    return jnp.where(mine_NP[..., None], rows_NPD, 0.0)
