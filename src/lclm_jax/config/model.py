"""Shape of the encoder, the adapter, the decoder, and of the compression between them."""

import itertools
from typing import Annotated, Literal

from pydantic import AfterValidator, field_validator, model_validator

from lclm_jax.config.base import Tree, key, one_of, required, suggestion
from lclm_jax.config.presets import BACKBONES
from lclm_jax.config.registry.adapters import ADAPTERS, AdapterRow
from lclm_jax.config.registry.attention_backends import ATTENTION_BACKENDS
from lclm_jax.config.registry.pooling_backends import POOLING_BACKENDS
from lclm_jax.config.registry.poolings import LATE_LAYERS, POOLINGS, PoolingRow
from lclm_jax.config.registry.remat_policies import REMAT_POLICIES, RematPolicy, remat_of

Dtype = Literal["float32", "bfloat16"]
Quantization = Literal["none", "int8", "fp8"]
RematProduct = Literal["q", "k", "v", "o", "gate", "up"]
LoraTarget = Literal["q", "k", "v", "o", "gate", "up", "down"]


ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "original_positions", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_positions", "beta_fast", "beta_slow", "truncate", "attention_factor"),
}
"""Kind of rotary scaling -> the keys that it reads."""


class RopeScaling(Tree, role="result"):
    """How rotary frequencies are changed for texts longer than the backbone was first trained on."""

    type: Literal["default", "linear", "llama3", "yarn"] = key(
        "default",
        "default: not at all; linear: all divided by factor; llama3: low ones divided, high ones kept (Llama 3.1);"
        " yarn: the same by numbers of rotations, and attention_factor (arXiv 2309.00071).",
    )
    factor: float = key(1.0, "What low frequencies are divided by.", gt=0, allow_inf_nan=False)
    original_positions: int | None = key(None, "Longest text of the first training (llama3, yarn).", gt=0)
    low_freq_factor: float = key(1.0, "Rotations in that text up to which a frequency is low (llama3).", gt=0)
    high_freq_factor: float = key(4.0, "Rotations in that text from which a frequency is high (llama3).", gt=0)
    beta_fast: float = key(32.0, "Rotations in that text from which a frequency is high (yarn).", gt=0)
    beta_slow: float = key(1.0, "Rotations in that text up to which a frequency is low (yarn).", gt=0)
    truncate: bool = key(True, "Round the bounds between low and high to whole pairs of dimensions (yarn).")
    attention_factor: float = key(1.0, "What cosines and sines are multiplied by (yarn).", gt=0)

    @model_validator(mode="after")
    def _check(self):
        used = ROPE_KEYS[self.type]
        for name, field in type(self).model_fields.items():
            if name not in ("type", *used) and getattr(self, name) != field.default:
                raise ValueError(
                    f"rope_scaling.{name}={getattr(self, name)!r} has no effect with type={self.type}; leave it out, or"
                    f" set rope_scaling.type to {' or '.join(kind for kind, keys in ROPE_KEYS.items() if name in keys)}"
                )
        if "original_positions" in used and self.original_positions is None:
            raise ValueError(f"rope_scaling.type={self.type} needs original_positions; set it as the model's files say")
        if self.low_freq_factor >= self.high_freq_factor or self.beta_slow >= self.beta_fast:
            raise ValueError(
                f"rope_scaling: low_freq_factor={self.low_freq_factor} must be below high_freq_factor="
                f"{self.high_freq_factor}, and beta_slow={self.beta_slow} below beta_fast={self.beta_fast}"
            )
        return self


class BackboneConfig(Tree, role="result"):
    """A decoder-only transformer: Qwen3, or with ``qk_norm: false`` Llama (Mistral) or Qwen2 (``qkv_bias: true``)."""

    preset: str | None = key(
        None, "Name of a released model whose shape fills every key not given here.", role="logging"
    )
    vocab_size: int = required("Rows of the embedding table; the tokenizer may use fewer.", gt=0)
    hidden_size: int = required("Width of the residual stream.", gt=0)
    num_layers: int = required("Transformer blocks.", gt=0)
    num_heads: int = required("Query heads (H).", gt=0)
    num_kv_heads: int = required("Key/value heads (K); divides num_heads.", gt=0)
    head_dim: int = required("Width of one head (d); even, because RoPE rotates pairs.", gt=0)
    mlp_size: int = required("Width of the SwiGLU MLP (F).", gt=0)
    rope_theta: float = key(1e6, "Base of the rotary frequencies.", gt=0)
    rope_scaling: RopeScaling = key(RopeScaling(), "Change of the rotary frequencies for longer texts.")
    norm_eps: float = key(1e-6, "Epsilon of every RMSNorm of the backbone.", gt=0)
    qk_norm: bool = key(True, "RMSNorm on queries and keys per head (Qwen3); false for Llama.")
    qkv_bias: bool = key(False, "Biases of the query, key and value projections (Qwen2); not with qk_norm.")
    tie_embeddings: bool = key(True, "The output head reuses the embedding table.")
    max_positions: int = key(40960, "Longest sequence the backbone was made for.", role="layout", gt=0)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: object) -> object:
        if not isinstance(values, dict) or not isinstance(preset := values.get("preset"), str):
            return values
        if preset not in BACKBONES:
            raise ValueError(f"preset {preset!r} is unknown; {suggestion(preset, BACKBONES)}")
        return {**BACKBONES[preset], **values}

    @model_validator(mode="after")
    def _check(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads};"
                " query heads share key/value heads in equal groups: change one of the two"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; RoPE rotates pairs: use an even head_dim")
        if self.qk_norm and self.qkv_bias:
            raise ValueError("qk_norm and qkv_bias exclude each other: no family of models has both; set one to false")
        return self


class AdapterConfig(Tree, role="result"):
    """Projection of encoder latents into the decoder's embedding space."""

    type: Annotated[str, AfterValidator(one_of(ADAPTERS))] = key(
        "mlp",
        "mlp: RMSNorm, Linear, GELU, Linear; attn_mlp / mlp_attn: with attention layers before / after it; or another"
        f" of {', '.join(ADAPTERS)}.",
    )
    num_layers: int = key(1, "Attention layers over the latents of one span (of attn_mlp and mlp_attn).", gt=0)

    @property
    def row(self) -> AdapterRow:
        """What is declared of the type."""
        return ADAPTERS[self.type]


class LoraConfig(Tree, role="result"):
    """Low-rank updates ``alpha / rank * A @ B`` of projections of a backbone's blocks (LoRA, arXiv 2106.09685)."""

    rank: int = key(16, "Width of the bottleneck between A and B.", gt=0)
    alpha: float = key(32.0, "Scale of the update, divided by the rank.", gt=0)
    dropout: float = key(0.0, "Share of the inputs of A that training drops.", ge=0, lt=1)
    targets: tuple[LoraTarget, ...] = key(
        ("q", "k", "v", "o", "gate", "up", "down"), "Projections that have an update.", min_length=1
    )

    @field_validator("targets")
    @classmethod
    def _once(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(targets)) != len(targets):
            raise ValueError(f"targets={list(targets)} names a projection twice; name each once")
        return targets


class LoraTowers(Tree, role="result"):
    """LoRA by backbone; a stage trains it with ``lr.encoder_lora`` and ``lr.decoder_lora``."""

    encoder: LoraConfig | None = key(None, "LoRA of the encoder; null: none.")
    decoder: LoraConfig | None = key(None, "LoRA of the decoder; null: none.")


class QuantizedTowers(Tree, role="result"):
    """8-bit products in training, by backbone: those with the kernels of its blocks, forward and backward.

    Embeddings, norms, the adapter, the output head, attention and low-rank updates stay as they are. int8 is for TPUs
    v5e, v5p and v6e, fp8 for TPU7x, Hopper and Blackwell; a CPU computes both, slowly.
    """

    encoder: Quantization = key("none", "Products of the encoder's blocks: none, int8 or fp8.", added=True)
    decoder: Quantization = key("none", "Products of the decoder's blocks: none, int8 or fp8.", added=True)


class RematTensors(Tree, role="layout"):
    """Products with weights that a backward pass need not take again, by where they wait for it.

    The outputs of the projections of a block, as for LoRA; ``down`` is not among them, as nothing needs its output.
    """

    device: tuple[RematProduct, ...] = key((), "Products that the device keeps.", added=True)
    host: tuple[RematProduct, ...] = key((), "Products that are moved to the host's memory and back.", added=True)

    @model_validator(mode="after")
    def _once(self):
        names = [*self.device, *self.host]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"device={list(self.device)} and host={list(self.host)} name {', '.join(twice)} twice")
        return self


class RematTowers(Tree, role="layout"):
    """Products that are saved beside what ``remat`` says, by backbone."""

    encoder: RematTensors = key(RematTensors(), "Of the encoder's blocks.")
    decoder: RematTensors = key(RematTensors(), "Of the decoder's blocks.")


class ModelConfig(Tree, role="result"):
    """Encoder, adapter, decoder and the compression between them."""

    encoder: BackboneConfig = required("Backbone that reads the windows of the memory spans.")
    decoder: BackboneConfig = required("Backbone that reads text and latents.")
    adapter: AdapterConfig = key(AdapterConfig(), "Projection of latents into the decoder's embedding space.")
    lora: LoraTowers = key(LoraTowers(), "Low-rank updates of the backbones.")
    quantize: QuantizedTowers = key(QuantizedTowers(), "8-bit products in training, by backbone.")
    ratio: int = key(16, "N: encoder tokens per latent.", gt=0)
    span_ratios: tuple[int, ...] = key(
        (),
        "Ratios N of which every memory span has one of its own (mean pooling), ascending: ratio first, each a multiple"
        " of the one before; none: all spans have ratio.",
        added=True,
    )
    window: int = key(1024, "W: tokens that attend to each other in the encoder; a multiple of ratio.", gt=0)
    overlap: int = key(0, "O: context tokens beside a window, read but not pooled.", ge=0)
    pooling: Annotated[str, AfterValidator(one_of(POOLINGS))] = key(
        "mean", f"How a group of N hidden states becomes one latent: {', '.join(POOLINGS)}."
    )
    pool_before_last: int = key(
        0, "Layers of the encoder that run after mean pooling, over the latents of each window (ARC-Encoder).", ge=0
    )
    mask: Literal["causal", "bidirectional"] = key("causal", "Attention inside one window.")
    memory_token_ids: tuple[int, int, int] | None = key(
        None, "Decoder ids of memory_start, memory_end and memory; read from the tokenizer when absent."
    )
    compute_dtype: Dtype = key("bfloat16", "Type of activations and matrix products.")
    param_dtype: Dtype = key(
        "float32",
        "Type that parameters are kept in; bfloat16: half the memory, updates are computed in float32 and rounded at"
        " random, so that small ones count on average.",
    )
    remat: Annotated[str, AfterValidator(one_of(REMAT_POLICIES))] = key(
        "full",
        "Activation checkpointing: what the backward pass recomputes. none: nothing; full: every block; attention:"
        " every block but attention; decoder_attention: every block but the decoder's attention; dots: all but"
        " products with weights; dots_attention: all but these and attention.",
        role="layout",
    )
    remat_tensors: RematTowers = key(RematTowers(), "Products that are saved beside what remat says, by backbone.")
    embedding_std: float = key(0.02, "Standard deviation of embedding rows that start at random.", gt=0)
    scan_layers: bool = key(
        True, "Compile one block and scan over the layers, instead of unrolling them.", role="layout"
    )
    attention: Annotated[str, AfterValidator(one_of(ATTENTION_BACKENDS, "auto"))] = key(
        "auto",
        "Attention backend; auto chooses by platform and shape, a named one that cannot do the work raises:"
        f" {', '.join(ATTENTION_BACKENDS)}.",
        role="layout",
    )
    pooling_backend: Annotated[str, AfterValidator(one_of(POOLING_BACKENDS, "auto", "reference"))] = key(
        "auto",
        "Kernel of pooling and the norms around it; a named one that cannot do the work raises: reference,"
        f" {', '.join(POOLING_BACKENDS)}.",
        role="layout",
    )
    loss_chunk: int = key(
        1024, "Logits that exist at once in the cross-entropy on a device, in whole positions.", role="layout", gt=0
    )

    @field_validator("lora", mode="before")
    @classmethod
    def _without_lora(cls, lora: object) -> object:
        return LoraTowers() if lora is None else lora

    @model_validator(mode="after")
    def _check(self):
        self._check_span_ratios()
        if self.window % self.alignment:
            low = self.window // self.alignment * self.alignment
            choices = " or ".join(str(v) for v in (low, low + self.alignment) if v)
            raise ValueError(
                f"window={self.window} is not a multiple of ratio={self.alignment}; set model.window to {choices}"
            )
        if REMAT_POLICIES[self.remat].keeps_products and self.quantize != QuantizedTowers():
            raise ValueError(
                f"remat={self.remat} saves products, which model.quantize would make in 32 bits; set model.remat to"
                f" {', '.join(name for name, policy in REMAT_POLICIES.items() if not policy.keeps_products)}"
            )
        if REMAT_POLICIES[self.remat].saves_dots and self.remat_tensors != RematTowers():
            raise ValueError(
                f"remat_tensors has no effect with remat={self.remat}, which saves every product; leave it out, or set"
                f" model.remat to {', '.join(name for name, policy in REMAT_POLICIES.items() if not policy.saves_dots)}"
            )
        if self.pool_before_last and (self.pooling != "mean" or self.pool_before_last >= self.encoder.num_layers):
            raise ValueError(
                f"pool_before_last={self.pool_before_last} needs pooling=mean, not {self.pooling}, and more than"
                f" {self.pool_before_last} encoder layers, not {self.encoder.num_layers}; change model.pool_before_last"
            )
        right = self.overlap if self.mask == "bidirectional" else 0
        markers = self.window // self.ratio if self.has_markers else 0
        longest = self.overlap + self.window + right + markers
        if longest > self.encoder.max_positions:
            raise ValueError(
                f"window={self.window} with its context and markers takes {longest} positions, encoder.max_positions"
                f" is {self.encoder.max_positions}; lower model.window"
            )
        return self

    def remat_of(self, tower: Literal["encoder", "decoder"]) -> RematPolicy:
        """What ``remat`` and ``remat_tensors`` say of a backbone."""
        tensors: RematTensors = getattr(self.remat_tensors, tower)
        return remat_of(self.remat, tower)._replace(device=tensors.device, host=tensors.host)

    def _check_span_ratios(self) -> None:
        ratios = self.span_ratios
        if not ratios:
            return
        if ratios[0] != self.ratio or any(b <= a or b % a for a, b in itertools.pairwise(ratios)):
            raise ValueError(
                f"span_ratios={list(ratios)} must begin with ratio={self.ratio}, and each be a multiple of the one"
                " before, such as [4, 8, 16]; change model.span_ratios or model.ratio"
            )
        if self.pooling != "mean" or self.pool_before_last:
            raise ValueError(
                f"span_ratios={list(ratios)} needs pooling=mean and pool_before_last=0, not {self.pooling} and"
                f" {self.pool_before_last}: only a mean over N tokens is a mean of means over fewer; change one"
            )

    @property
    def alignment(self) -> int:
        """Where the pooled part of a window may start in an encoder row: at multiples of the largest N of a span."""
        return max(self.span_ratios, default=self.ratio)

    @property
    def pooling_row(self) -> PoolingRow:
        """What is declared of the pooling."""
        return LATE_LAYERS if self.pool_before_last else POOLINGS[self.pooling]

    @property
    def encoder_stacks(self) -> tuple[tuple[int, int], ...]:
        """(layers, tokens per position) of the encoder's layers, in order: the last ones may run over latents."""
        late = self.pool_before_last
        return ((self.encoder.num_layers - late, 1), (late, self.ratio))

    @property
    def latent_size(self) -> int:
        """Width of a latent before the adapter: E, or N*E for concat pooling."""
        width = self.pooling_row.width
        return self.encoder.hidden_size * (self.ratio if width == "ratio" else width)

    @property
    def adapter_backbone(self) -> BackboneConfig | None:
        """Shape of the adapter's attention layers; None if it has none.

        They are blocks like the encoder's before the MLP (``attn_mlp``) and like the decoder's after it (``mlp_attn``).
        With ``concat`` pooling those before the MLP run on the pooled width N * E; the PyTorch code crashes there.
        """
        blocks = self.adapter.row.blocks
        if blocks is None:
            return None
        before = blocks == "encoder"
        backbone, width = (self.encoder, self.latent_size) if before else (self.decoder, self.decoder.hidden_size)
        return backbone.model_copy(update={"num_layers": self.adapter.num_layers, "hidden_size": width})

    @property
    def has_markers(self) -> bool:
        """Whether a window ends with one marker per latent."""
        return self.pooling_row.markers is not None

    @property
    def has_pad_markers(self) -> bool:
        """Whether these are the encoder's pad token, which the tokenizer tells."""
        return self.pooling_row.markers == "pad"

    @property
    def plain(self) -> "ModelConfig":
        """The same model without LoRA."""
        return self.model_copy(update={"lora": LoraTowers()})


__all__ = [
    "BACKBONES",
    "AdapterConfig",
    "BackboneConfig",
    "Dtype",
    "LoraConfig",
    "LoraTowers",
    "ModelConfig",
    "QuantizedTowers",
    "RopeScaling",
]
