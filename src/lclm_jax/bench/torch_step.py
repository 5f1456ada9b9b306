"""The train step in PyTorch: transformers' Qwen3, batched as the public PyTorch implementation does.

Written for comparison from the description of that implementation: windows of a row padded to one stack and encoded in
a forward pass of their own, latents spliced into the embeddings, attention of packed rows by an explicit mask, loss on
the full logits, AdamW on the same parts from the same weights. Recomputation on a GPU as ``model.remat`` asks; on a CPU
there is none, which is faster.
"""

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lclm_jax.batch import Batch
from lclm_jax.bench.flops import kernel_sizes
from lclm_jax.config import BackboneConfig, Config, ModelConfig
from lclm_jax.config.registry.poolings import POOLINGS
from lclm_jax.errors import LclmError
from lclm_jax.interop.hf_config import backbone_json
from lclm_jax.interop.hf_weight_map import MEMORY_ROWS_PATH, Tensor, flatten, tensor_table
from lclm_jax.model.adapter import NORM_EPS
from lclm_jax.types import Params

if TYPE_CHECKING:
    import torch
    from transformers import AutoModel, AutoModelForCausalLM


class TorchStep:
    """A model and its optimizer on the fastest device that torch sees."""

    def __init__(self, config: Config, stage: str, params: Params, first: Batch):
        import torch

        model = config.model
        if model.adapter.type != "mlp" or model.pooling_row != POOLINGS["mean"] or model != model.plain:
            raise LclmError(
                "the comparison with PyTorch has mean pooling after the last layer, the mlp adapter and no LoRA; set"
                " model.adapter.type, model.pooling and model.pool_before_last so, or leave it out with --no-torch"
            )
        self.torch, self.config, self.stage = torch, config, config.stages[stage]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.modules = _build(config.model, params, self.device)
        self.optimizer = self._make_optimizer()
        self.first_loss = self._step(first)
        """Loss of the first batch before any update: equal to ours up to rounding."""

    def run(self, batches: list[Batch]) -> float:
        """Seconds a step."""
        self._wait()
        start = time.perf_counter()
        for batch in batches:
            self._step(batch)
        self._wait()
        return (time.perf_counter() - start) / len(batches)

    def free(self) -> None:
        """Give the device's memory back; nothing runs after this."""
        del self.modules, self.optimizer
        if self.device.type == "cuda":
            self.torch.cuda.empty_cache()

    def _make_optimizer(self) -> "torch.optim.Optimizer":
        groups, train = [], self.config.train.optimizer
        for part, module in self.modules.items():
            rate = self.stage.peak_lr(part)
            module.requires_grad_(rate is not None)
            if rate is not None:
                decay = getattr(self.stage.weight_decay, part)
                groups.append({"params": list(module.parameters()), "lr": rate, "weight_decay": decay})
        if self.stage.peak_lr("decoder") is None:
            table = self.modules["decoder"].get_input_embeddings().weight.requires_grad_()
            keep = self.torch.zeros(len(table), 1, device=self.device)
            keep[list(self.config.model.memory_token_ids or ())] = 1
            table.register_hook(lambda gradient: gradient * keep)
            groups.append({"params": [table], "lr": self.stage.peak_lr("memory_rows"), "weight_decay": 0.0})
        return self.torch.optim.AdamW(groups, betas=(train.b1, train.b2), eps=train.eps)

    def _step(self, batch: Batch) -> float:
        torch, low = self.torch, self.config.model.compute_dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            loss = self._loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        leaves = [leaf for group in self.optimizer.param_groups for leaf in group["params"]]
        torch.nn.utils.clip_grad_norm_(leaves, self.config.train.optimizer.clip_norm)
        self.optimizer.step()
        return float(loss.detach())

    def _loss(self, batch: Batch) -> "torch.Tensor":
        torch, decoder = self.torch, self.modules["decoder"]
        embeds = decoder.get_input_embeddings()(self._tensor(batch.decoder_tokens))
        rows = []
        for row in range(len(batch.decoder_tokens)):
            places, latents = self._latents(batch, row)
            rows.append(embeds[row] if latents is None else embeds[row].index_copy(0, places, latents.to(embeds.dtype)))
        segments = self._tensor(batch.decoder_segments)
        order = torch.arange(segments.shape[1], device=self.device)
        visible = (segments[:, :, None] == segments[:, None, :]) & (order[:, None] >= order[None, :])
        positions = self._tensor(batch.decoder_positions)
        mask, embeds = visible[:, None], torch.stack(rows)
        out = decoder(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False)
        losses = torch.nn.functional.cross_entropy(
            out.logits.float().flatten(0, 1), self._tensor(batch.targets).flatten(), reduction="none"
        )
        weights = torch.as_tensor(batch.loss_weights, device=self.device).flatten()
        return (losses * weights).sum() / weights.sum()

    def _latents(self, batch: Batch, row: int) -> "tuple[torch.Tensor, torch.Tensor] | tuple[None, None]":
        """(places in the row, latents there) of one packed row; (None, None) if it has no span."""
        torch, model = self.torch, self.config.model
        windows = windows_of(batch, row, model.ratio)
        if not len(windows.slots):
            return None, None
        mask = None  # right padding is never seen by what comes before it
        if model.mask == "bidirectional":
            real = np.arange(windows.tokens.shape[1]) < windows.lengths[:, None]
            mask = self._tensor(real[:, None, None, :] | np.eye(real.shape[1], dtype=bool)[None, None])
        hidden = self.modules["encoder"](
            input_ids=self._tensor(windows.tokens), position_ids=self._tensor(windows.positions), attention_mask=mask
        ).last_hidden_state
        pairs = zip(hidden, self._tensor(windows.weights), strict=True)
        pooled = [_mean(states, weights, model.ratio) for states, weights in pairs]
        latents = self.modules["adapter"](torch.cat(pooled))
        by_slot = {slot: number for number, slot in enumerate(windows.slots.tolist())}
        places = np.flatnonzero(batch.latent_index[row] >= 0)
        numbers = [by_slot[slot] for slot in batch.latent_index[row][places].tolist()]
        return self._tensor(places), latents[numbers]

    def _tensor(self, array: np.ndarray) -> "torch.Tensor":
        tensor = self.torch.as_tensor(array, device=self.device)
        return tensor.long() if tensor.dtype == self.torch.int32 else tensor

    def _wait(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()


def _mean(states: "torch.Tensor", weights: "torch.Tensor", ratio: int) -> "torch.Tensor":
    """Means of groups of ``ratio`` pooled states; the last over what is left."""
    import torch

    pooled = states[weights > 0]
    short = -len(pooled) % ratio
    counts = torch.full((len(pooled) // ratio + (short > 0), 1), float(ratio), device=states.device)
    counts[-1] -= short
    padded = torch.nn.functional.pad(pooled, (0, 0, 0, short))
    return padded.unflatten(0, (-1, ratio)).sum(1) / counts


def _build(model: ModelConfig, params: Params, device: "torch.device") -> "dict[str, Any]":
    """Encoder, decoder and adapter with our weights; ``Any``, as torch types what a module has as tensors."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    def backbone(
        kind: "type[AutoModel | AutoModelForCausalLM]", shape: BackboneConfig, causal: bool
    ) -> "torch.nn.Module":
        values = backbone_json(shape, causal, "float32", {})
        config = AutoConfig.for_model(values.pop("model_type"), **values)
        return kind.from_config(config, attn_implementation="sdpa", dtype=torch.float32)

    pooled, width = model.latent_size, model.decoder.hidden_size
    adapter = {
        "norm": torch.nn.RMSNorm(pooled, NORM_EPS),
        "fc1": torch.nn.Linear(pooled, width),
        "gelu": torch.nn.GELU(),
        "fc2": torch.nn.Linear(width, width),
    }
    modules: dict[str, Any] = {
        "encoder": backbone(AutoModel, model.encoder, False),
        "decoder": backbone(AutoModelForCausalLM, model.decoder, True),
        "adapter": torch.nn.Sequential(OrderedDict(adapter)),
    }
    leaves = dict(flatten(params))
    for part, module in modules.items():
        tensors = [tensor for tensor in tensor_table(model) if tensor.folder == part]
        state = {t.name: torch.from_numpy(_values(t, leaves, model).copy()) for t in tensors}
        missing, unexpected = module.load_state_dict(state, strict=False)
        assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
        module.to(device).train()
        if device.type == "cuda" and model.remat != "none" and part != "adapter":
            module.gradient_checkpointing_enable()
    return modules


def _values(tensor: Tensor, leaves: dict[str, np.ndarray], model: ModelConfig) -> np.ndarray:
    """The tensor of a file, memory rows in the decoder's table."""
    array = np.asarray(leaves[tensor.path][tensor.index(slice(0, tensor.shape[0]))])
    if tensor.path == "decoder/embed/table":
        array = array.copy()
        array[list(model.memory_token_ids or ())] = leaves[MEMORY_ROWS_PATH]
    return tensor.to_theirs(array).reshape(tensor.shape)


class Windows(NamedTuple):
    """The windows of one packed row, each padded on the right to the longest."""

    tokens: np.ndarray
    """[windows, longest] int64."""
    positions: np.ndarray
    """[windows, longest] int64: from 0 in each window."""
    lengths: np.ndarray
    """[windows]: tokens of each."""
    weights: np.ndarray
    """[windows, longest] float32: 1 on pooled tokens."""
    slots: np.ndarray
    """[latents]: slot of our batch that each latent, window by window, has."""


def windows_of(batch: Batch, row: int, ratio: int) -> Windows:
    """The windows of packed row ``row``, in array order."""
    found = []
    for encoder_row, segments in enumerate(batch.encoder_segments[row]):
        for segment in np.unique(segments[segments > 0]):
            found.append((encoder_row, np.flatnonzero(segments == segment)))
    longest = max((len(places) for _, places in found), default=1)
    shape = (len(found), longest)
    tokens, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    weights, slots = np.zeros(shape, np.float32), list[int]()
    for number, (encoder_row, places) in enumerate(found):
        inside = slice(0, len(places))
        tokens[number, inside] = batch.encoder_tokens[row, encoder_row, places]
        positions[number, inside] = np.arange(len(places))
        weights[number, inside] = batch.pool_weights[row, encoder_row, places]
        pooled = places[weights[number, inside] > 0]
        first = (encoder_row * batch.encoder_tokens.shape[2] + pooled[0]) // ratio
        slots += range(first, first - (-len(pooled) // ratio))
    lengths = np.array([len(places) for _, places in found], np.int64)
    return Windows(tokens, positions, lengths, weights, np.array(slots, np.int64))


def padding_factor(model: ModelConfig, batch: Batch) -> float:
    """Work of the padded batching over that of ours, by the products of positions with weights.

    Encoder positions differ: every window as long as the longest of its row, against shared rows of fixed width. The
    decoder's rows are the same.
    """
    sizes = kernel_sizes(model)
    head = model.decoder.vocab_size * model.decoder.hidden_size
    decoder = batch.decoder_tokens.size * (sizes["decoder"] + head)
    padded = sum(windows_of(batch, row, model.ratio).tokens.size for row in range(len(batch.decoder_tokens)))
    return (padded * sizes["encoder"] + decoder) / (batch.encoder_tokens.size * sizes["encoder"] + decoder)
