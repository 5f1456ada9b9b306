"""An LCLM as a model of transformers: spans of the prompt are encoded once, and their latents stand in for tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from lclm_serving.adapter import LAYER_NAMES, LclmAdapter
from lclm_serving.config import LclmConfig
from lclm_serving.encoder import build_encoder, pooled_windows
from lclm_serving.errors import LclmError
from lclm_serving.weights import is_layout, local_folder, state_dict
from lclm_serving.windows import checked_ratio, windows_of


class LclmForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Encoder, adapter and decoder.

    ``LclmProcessor`` makes its inputs: ``input_ids`` with a placeholder for every latent, ``memory_ids`` (encoder ids
    of all spans of the batch, one a row, padded on the right), ``memory_sizes`` (their tokens) and, where it is not the
    model's, ``memory_ratios`` (tokens of one latent). Spans are in the order in which they stand in the rows.
    """

    config_class = LclmConfig
    config: LclmConfig
    base_model_prefix = "language_model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = [*LAYER_NAMES, "AdapterLayer"]  # noqa: RUF012 - as transformers reads it

    def __init__(self, config: LclmConfig):
        super().__init__(config)
        self.encoder = build_encoder(config)
        self.adapter = LclmAdapter(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path | None, *arguments: Any, config: Any = None, **options: Any
    ) -> "LclmForConditionalGeneration":
        """Load an LCLM's folder, a hub repository of one, or what ``save_pretrained`` wrote.

        Args:
            pretrained_model_name_or_path: folder or OWNER/NAME.
            *arguments: of ``PreTrainedModel.from_pretrained``.
            config: None: the folder's own.
            **options: of ``PreTrainedModel.from_pretrained``: ``dtype``, ``device_map``, ``revision`` and others.

        Raises:
            LclmError: weights that are missing, damaged or pickled.
        """
        source = pretrained_model_name_or_path
        if source is None or "state_dict" in options:
            return super().from_pretrained(source, *arguments, config=config, **options)
        folder = local_folder(source, **options)
        if not is_layout(folder):
            return super().from_pretrained(source, *arguments, config=config, **options)
        for name in ("revision", "subfolder", "force_download", "adapter_kwargs", "_commit_hash"):
            options.pop(name, None)
        if config is None:
            config = LclmConfig.from_pretrained(folder)
        if "dtype" not in options and "torch_dtype" not in options:
            options["dtype"] = "auto"
        model = super().from_pretrained(None, *arguments, config=config, state_dict=state_dict(folder), **options)
        model.config._name_or_path = str(source)
        for place in (folder, folder / "decoder"):
            if (place / "generation_config.json").is_file():
                model.generation_config = GenerationConfig.from_pretrained(place)
                break
        return model

    def get_input_embeddings(self) -> torch.nn.Module:
        """The decoder's table."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        """Replace the decoder's table."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> torch.nn.Module:
        """The decoder's head."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: torch.nn.Module) -> None:
        """Replace the decoder's head."""
        self.language_model.set_output_embeddings(value)

    def pooled(self, spans: Sequence[torch.Tensor], ratios: Sequence[int] | None = None) -> list[torch.Tensor]:
        """Pooled vectors of spans of encoder ids, each [latents, latent size]: what a store of latents keeps.

        ``ratios``: tokens of one vector, for each span; None: the model's.
        """
        chosen = [None] * len(spans) if ratios is None else [checked_ratio(self.config, ratio) for ratio in ratios]
        windows = [windows_of(s.cpu().numpy(), self.config, ratio) for s, ratio in zip(spans, chosen, strict=True)]
        found = iter(pooled_windows(self.encoder, self.config, [w for some in windows for w in some]))
        return [torch.cat([next(found) for _ in some]) for some in windows]

    def latents(
        self, memory_ids: torch.Tensor, memory_sizes: torch.Tensor, memory_ratios: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Latents of spans as the decoder reads them, each [latents, decoder's width].

        Args:
            memory_ids: encoder ids, [spans, longest].
            memory_sizes: tokens of each span, [spans].
            memory_ratios: tokens of one latent in each span, [spans]; None: the model's.
        """
        spans = [row[:size] for row, size in zip(memory_ids, memory_sizes.tolist(), strict=True)]
        if any(not len(span) for span in spans):
            raise LclmError("a memory span has no token; leave it out")
        return self.adapter(self.pooled(spans, None if memory_ratios is None else memory_ratios.tolist()))

    def spliced(
        self,
        input_ids: torch.Tensor,
        memory_ids: torch.Tensor,
        memory_sizes: torch.Tensor,
        memory_ratios: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[rows, positions, width]: the decoder's embeddings with latents in place of placeholders.

        Raises ``LclmError`` unless there are as many placeholders as latents.
        """
        embeds = self.get_input_embeddings()(input_ids)
        places = input_ids == self.config.memory_id
        latents = torch.cat(self.latents(memory_ids, memory_sizes, memory_ratios)).to(embeds)
        if int(places.sum()) != len(latents):
            raise LclmError(
                f"input_ids have {int(places.sum())} placeholders and memory_ids make {len(latents)} latents; build"
                " both with the model's processor"
            )
        return embeds.masked_scatter(places[..., None], latents)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        memory_ids: torch.Tensor | None = None,
        memory_sizes: torch.Tensor | None = None,
        memory_ratios: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (and the loss, with ``labels``) of the decoder.

        Args:
            input_ids: decoder ids, [rows, positions].
            memory_ids: see ``latents``; None: the prompt has no span, or the cache holds them.
            memory_sizes: see ``latents``.
            memory_ratios: see ``latents``.
            inputs_embeds: in place of all of these.
            **options: of the decoder: ``attention_mask``, ``past_key_values``, ``labels`` and others.
        """
        if inputs_embeds is None and memory_ids is not None and len(memory_ids):
            assert input_ids is not None and memory_sizes is not None
            inputs_embeds = self.spliced(input_ids, memory_ids, memory_sizes, memory_ratios)
        if inputs_embeds is not None:
            input_ids = None
        return self.language_model(input_ids=input_ids, inputs_embeds=inputs_embeds, **options)

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *arguments: Any,
        memory_ids: torch.Tensor | None = None,
        memory_sizes: torch.Tensor | None = None,
        memory_ratios: torch.Tensor | None = None,
        **options: Any,
    ) -> Any:
        """``GenerationMixin.generate`` from a prompt with spans, which are encoded once, before the first token."""
        if inputs is not None:
            options["input_ids"] = inputs
        if memory_ids is not None and len(memory_ids):
            assert memory_sizes is not None
            options["inputs_embeds"] = self.spliced(options["input_ids"], memory_ids, memory_sizes, memory_ratios)
        return super().generate(None, *arguments, **options)  # type: ignore[misc]
