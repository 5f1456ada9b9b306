"""The model that vLLM runs: our encoder and adapter, vLLM's own decoder."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.logger import init_logger
from vllm.model_executor.model_loader import DefaultModelLoader
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsMultiModal, SupportsPP
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from lclm_serving.adapter import LclmAdapter
from lclm_serving.config import LclmConfig
from lclm_serving.encoder import build_encoder, pooled_windows
from lclm_serving.vllm_plugin import counters
from lclm_serving.vllm_plugin.items import windows_of_item
from lclm_serving.vllm_plugin.processing import (
    MODALITY,
    LclmDummyInputs,
    LclmMultiModalProcessor,
    LclmProcessingInfo,
)
from lclm_serving.vllm_plugin.store import WindowStore
from lclm_serving.windows import Window

logger = init_logger("vllm.lclm")


@MULTIMODAL_REGISTRY.register_processor(LclmMultiModalProcessor, info=LclmProcessingInfo, dummy_inputs=LclmDummyInputs)
class LclmForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsPP, SupportsLoRA):
    """Encoder, adapter and decoder of one export; the three folders of its weights are read as they are."""

    allow_patterns_overrides = ("decoder/*.safetensors",)
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "model.": "language_model.model.",
            "lm_head.": "language_model.lm_head.",
            "encoder.model.": "encoder.",  # some encoders are published with the prefix of a causal language model
        }
    )
    packed_modules_mapping = {  # noqa: RUF012 - as vLLM reads it
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Memory is no content part of a message: it is written between its tags in the text."""
        raise ValueError("memory is written between its tags in the text, not as a part of a message")

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        model_config = vllm_config.model_config
        self.config: LclmConfig = model_config.hf_config
        marks: Any = self  # of vLLM's mixin
        with marks._mark_tower_model(vllm_config, MODALITY):
            self.encoder = build_encoder(self.config)
            self.adapter = LclmAdapter(self.config)
        with marks._mark_language_model(vllm_config):
            self.language_model: Any = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=self.config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
                architectures=self.config.text_config.architectures,
            )
        self.secondary_weights = [
            DefaultModelLoader.Source(
                model_config.model, model_config.revision, subfolder=part, prefix=f"{part}.", fall_back_to_pt=False
            )
            for part in ("encoder", "adapter")
        ]
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors
        self._counters = counters.shared()
        options = (vllm_config.additional_config or {}).get("lclm_store")
        self._store = WindowStore(options, self.config, model_config.dtype) if options else None

    def get_mm_mapping(self) -> MultiModelKeys:
        """Which part is which: LoRA is of the decoder."""
        return MultiModelKeys.from_string_field(
            language_model="language_model", connector="adapter", tower_model="encoder"
        )

    def embed_multimodal(self, **kwargs: Any) -> Sequence[torch.Tensor]:
        """Latents of each item, [latents, decoder's width]: those of all requests that are scheduled in a step."""
        if kwargs.get("memory_ids") is None:
            return ()
        sizes = torch.as_tensor(kwargs["memory_sizes"]).flatten().tolist()
        ids = kwargs["memory_ids"]
        flat = torch.cat([part.flatten() for part in ids]) if isinstance(ids, list | tuple) else ids.flatten()
        items = [item.cpu().numpy() for item in flat.split(sizes)]
        windows = [windows_of_item(item, self.config) for item in items]
        pooled = iter(self._pooled([window for some in windows for window in some]))
        return self.adapter([torch.cat([next(pooled) for _ in some]) for some in windows])

    def _pooled(self, windows: Sequence[Window]) -> list[torch.Tensor]:
        if self._store is None:
            self._count(encoded=len(windows))
            return pooled_windows(self.encoder, self.config, windows)
        weight = self.adapter.fc1.weight
        before = self._store.damaged
        keys, found = self._store.get(windows)
        missing = [index for index, vectors in enumerate(found) if vectors is None]
        made = pooled_windows(self.encoder, self.config, [windows[index] for index in missing]) if missing else []
        lost = 0
        if missing and get_tensor_model_parallel_rank() == 0:
            lost = self._store.put([keys[index] for index in missing], made)
        self._count(
            encoded=len(missing),
            stored=len(windows) - len(missing),
            lost=lost,
            damaged=self._store.damaged - before,
        )
        new = dict(zip(missing, made, strict=True))
        return [new[index] if vectors is None else vectors.to(weight) for index, vectors in enumerate(found)]

    def _count(self, **counts: int) -> None:
        logger.info("Encoder: %s", ", ".join(f"{count} {name}" for name, count in counts.items() if count))
        if self._counters is not None and get_tensor_model_parallel_rank() == 0:
            self._counters.add(**counts)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Hidden states of the decoder."""
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits of the decoder."""
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load the three folders; returns the names of what was loaded."""
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
