"""From windows of encoder ids to pooled vectors, in torch."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoModel

from lclm_serving.config import LclmConfig
from lclm_serving.windows import Window

TOKENS_AT_ONCE = 1 << 17
"""Positions that the encoder reads at once, padding included."""


def build_encoder(config: LclmConfig) -> nn.Module:
    """The encoder tower of ``config``; its weights are those of the folder ``encoder/``."""
    return AutoModel.from_config(config.encoder_config, attn_implementation="sdpa")


@torch.no_grad()
def pooled_windows(encoder: nn.Module, config: LclmConfig, windows: Sequence[Window]) -> list[torch.Tensor]:
    """Pooled vectors of each window, [latents, latent size], in the encoder's dtype; sums are float32.

    Windows of about one length are read together, so many that memory stays bounded.
    """
    found: dict[int, torch.Tensor] = {}
    lengths = [len(window.ids) + _markers(config, window) for window in windows]
    order = sorted(range(len(windows)), key=lambda i: -lengths[i])
    first = 0
    while first < len(order):
        rows = max(1, TOKENS_AT_ONCE // lengths[order[first]])
        part = order[first : first + rows]
        found |= zip(part, _pool(encoder, config, [windows[i] for i in part]), strict=True)
        first += rows
    return [found[i] for i in range(len(windows))]


def _markers(config: LclmConfig, window: Window) -> int:
    """Padding tokens behind a window, one per latent, whose states are its latents (``eos`` pooling)."""
    return window.latents if config.pooling == "eos" else 0


def _pool(encoder: nn.Module, config: LclmConfig, windows: Sequence[Window]) -> list[torch.Tensor]:
    device = next(encoder.parameters()).device
    sizes = [len(window.ids) + _markers(config, window) for window in windows]
    tokens = torch.full((len(windows), max(sizes)), config.encoder_pad_id or 0)
    for row, window in enumerate(windows):
        tokens[row, : len(window.ids)] = torch.as_tensor(window.ids)
    tokens = tokens.to(device)
    hidden = encoder(
        input_ids=tokens, attention_mask=_mask(encoder, config, tokens, sizes), use_cache=False
    ).last_hidden_state
    if config.pooling == "eos":
        return [row[len(w.ids) : len(w.ids) + _markers(config, w)] for row, w in zip(hidden, windows, strict=True)]
    return [_groups(config, row[w.skip : w.skip + w.pooled], w.ratio) for row, w in zip(hidden, windows, strict=True)]


def _mask(encoder: nn.Module, config: LclmConfig, tokens: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor | None:
    """None for causal attention, where no token sees the padding to its right; else [rows, 1, 1, positions]."""
    if config.encoder_mask_type == "causal":
        return None
    dtype = next(encoder.parameters()).dtype
    ends = torch.tensor(sizes, device=tokens.device)[:, None]
    padding = torch.arange(tokens.shape[1], device=tokens.device)[None] >= ends
    bias = torch.zeros(tokens.shape, dtype=dtype, device=tokens.device)
    return bias.masked_fill(padding, torch.finfo(dtype).min)[:, None, None]


def _groups(config: LclmConfig, hidden: torch.Tensor, ratio: int) -> torch.Tensor:
    """Groups of ``ratio`` states to one vector each; the last group may be short."""
    missing = -len(hidden) % ratio
    groups = nn.functional.pad(hidden, (0, 0, 0, missing)).unflatten(0, (-1, ratio))
    if config.pooling == "concat":
        return groups.flatten(1)
    sizes = torch.full((len(groups), 1), float(ratio), device=hidden.device)
    sizes[-1] -= missing
    return (groups.float().sum(1) / sizes).to(hidden.dtype)
