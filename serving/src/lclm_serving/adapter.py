"""The adapter in torch: pooled vectors of a span to latents in the decoder's embedding space."""

import copy
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RotaryEmbedding

from lclm_serving.config import LclmConfig

EPS = 1e-6
"""Of the norm, whatever the towers use."""
_LAYERS = {
    "qwen3": (Qwen3DecoderLayer, Qwen3RotaryEmbedding),
    "qwen2": (Qwen2DecoderLayer, Qwen2RotaryEmbedding),
    "llama": (LlamaDecoderLayer, LlamaRotaryEmbedding),
    "mistral": (MistralDecoderLayer, MistralRotaryEmbedding),
}

LAYER_NAMES = tuple(layer.__name__ for layer, _ in _LAYERS.values())
"""Classes that a device map must not cut."""


class Norm(nn.Module):
    """RMSNorm, computed in float32."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width] to the same, in the dtype of ``x``."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
        return (wide * self.weight.float()).to(x.dtype)


class AdapterLayer(nn.Module):
    """A block of a tower; the attribute has the name that the files give it."""

    def __init__(self, config: PretrainedConfig, number: int):
        super().__init__()
        self.decoder_layer = _LAYERS[config.model_type][0](config, number)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """[1, latents, width] to the same."""
        out = self.decoder_layer(x, attention_mask=mask, position_embeddings=rotary)
        return out[0] if isinstance(out, tuple) else out


class LclmAdapter(nn.Module):
    """RMSNorm, Linear, GELU, Linear; attention over the latents of one span before (``attn_mlp``) or after it."""

    def __init__(self, config: LclmConfig):
        super().__init__()
        latent, width = config.latent_size, int(config.text_config.hidden_size)
        self.kind = config.adapter_type
        self.norm = Norm(latent)
        self.fc1 = nn.Linear(latent, width)
        self.fc2 = nn.Linear(width, width)
        if self.kind != "mlp":
            shape = _layer_config(config, latent if self.kind == "attn_mlp" else width)
            layers = [AdapterLayer(shape, number) for number in range(config.num_adapter_layers)]
            self.attention_layers = nn.ModuleList(layers)
            self.rotary = _LAYERS[shape.model_type][1](shape)

    def forward(self, spans: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Pooled vectors of each span, [latents, latent size], to latents [latents, decoder's width]."""
        sizes = [len(span) for span in spans]
        dtype = self.fc1.weight.dtype
        if self.kind == "attn_mlp":
            spans = [self._attend(span.to(dtype)) for span in spans]
        x = torch.cat([span.to(dtype) for span in spans])
        latents = list(self.fc2(nn.functional.gelu(self.fc1(self.norm(x)))).split(sizes))
        return [self._attend(span) for span in latents] if self.kind == "mlp_attn" else latents

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(len(x), device=x.device)[None]
        rotary = self.rotary(x[None], positions)
        mask = x.new_zeros(1, 1, 1, len(x))  # every latent of a span sees every other
        y = x[None]
        for layer in self.attention_layers:
            y = layer(y, mask, rotary)
        return y[0]


def _layer_config(config: LclmConfig, width: int) -> PretrainedConfig:
    """The tower's configuration at ``width``; heads keep their own width."""
    tower = config.encoder_config if config.adapter_type == "attn_mlp" else config.text_config
    shape = copy.deepcopy(tower)
    heads = getattr(tower, "head_dim", None) or tower.hidden_size // tower.num_attention_heads
    shape.head_dim, shape.hidden_size, shape.num_hidden_layers = heads, width, config.num_adapter_layers
    shape._attn_implementation = "sdpa"
    return shape
