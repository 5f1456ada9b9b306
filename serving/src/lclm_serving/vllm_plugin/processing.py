"""The modality ``memory`` of vLLM: parsed, hashed, and given places in the prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import MultiModalDataParser, ProcessorBatchItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
)

from lclm_serving.config import LclmConfig
from lclm_serving.memory_tags import PLACEHOLDER
from lclm_serving.vllm_plugin.items import by_span, check_item, item_key, items_of, latents_of_item
from lclm_serving.windows import latent_count

MODALITY = "memory"


class MemoryItems(ProcessorBatchItems):
    """Items of one prompt, or those of it that no cache has."""

    def __init__(self, data: Sequence[Any]):
        super().__init__(data, MODALITY)

    def get_processor_data(self) -> Mapping[str, object]:
        """What the processor is called with."""
        return {MODALITY: self.get_all()}


class MemoryParser(MultiModalDataParser):
    """Reads ``multi_modal_data["memory"]``."""

    def __init__(self, config: LclmConfig):
        super().__init__()
        self._config = config

    def _parse_memory(self, data: Any) -> MemoryItems | None:
        if data is None:
            return None
        return MemoryItems([None if item is None else check_item(item, self._config) for item in data])

    def _get_subparsers(self) -> Mapping[str, Any]:
        return {MODALITY: self._parse_memory}


class LclmProcessingInfo(BaseProcessingInfo):
    """Limits of the modality."""

    @property
    def config(self) -> LclmConfig:
        """Of the model."""
        return self.ctx.model_config.hf_config

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Any number of items: the context bounds them."""
        return {MODALITY: None}

    @property
    def allowed_mm_limits(self) -> Mapping[str, int]:
        """The option ``--limit-mm-per-prompt`` if it is given, else as many as fit into the context."""
        options = self.ctx.get_mm_config()
        limit = options.get_limit_per_prompt(MODALITY)
        if options.limit_per_prompt.get(MODALITY) is None and limit:
            limit = self.ctx.model_config.max_model_len
        return {MODALITY: limit}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Latents of a full window, or of the longest span that fits."""
        if by_span(self.config):
            return {MODALITY: seq_len}
        return {MODALITY: latent_count(self.config.encoder_window_size, self.config.compression_ratio)}

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """None: the renderer reads ours."""
        return {"text_kwargs": set()}

    def get_data_parser(self) -> MultiModalDataParser:
        """See ``MemoryParser``."""
        return MemoryParser(self.config)


class LclmDummyInputs(BaseDummyInputsBuilder[LclmProcessingInfo]):
    """What vLLM measures memory with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """A placeholder per item."""
        return PLACEHOLDER * mm_counts.get(MODALITY, 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> Any:
        """Full windows; of spans, so many tokens as one batch of the encoder has."""
        config = self.info.config
        size = config.encoder_window_size
        if by_span(config):
            size = min(seq_len * config.compression_ratio, 128 * size)
        (item, *_) = items_of(np.zeros(size, np.int64), config)
        return {MODALITY: [item] * mm_counts.get(MODALITY, 0)}


class LclmMultiModalProcessor(BaseMultiModalProcessor[LclmProcessingInfo]):
    """Items to tensors; each placeholder of the prompt to one per latent."""

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        items: Any = hf_data[MODALITY]
        sizes = torch.tensor([len(item) for item in items], dtype=torch.int64)
        return BatchFeature({"memory_ids": [torch.from_numpy(np.array(item)) for item in items], "memory_sizes": sizes})

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        # A flat field would send the places of all items with every item: 512 windows took 5 s between two processes.
        return {
            "memory_ids": MultiModalFieldConfig.batched(MODALITY),
            "memory_sizes": MultiModalFieldConfig.batched(MODALITY, keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptReplacement]:
        config = self.info.config
        if MODALITY not in mm_items:  # every item was in the processor's cache
            return []
        items = mm_items.get_items(MODALITY, MemoryItems)
        return [
            PromptReplacement(
                modality=MODALITY,
                target=[config.memory_id],
                replacement=lambda index: [config.memory_id] * latents_of_item(items.get(index)),
            )
        ]

    def _get_mm_hashes(self, inputs: Any) -> dict[str, list[str]]:
        config, model = self.info.config, self.info.model_id
        found = inputs.mm_data_items
        return {
            modality: [item_key(items.get(index), config, model) for index in range(len(items))]
            for modality, items in found.items()
        }
