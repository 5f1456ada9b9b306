"""Prompts and chats: cut at their memory tags, tokenized as in training, windows handed on as ``memory`` items."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from vllm.logger import init_logger
from vllm.renderers.hf import HfRenderer

from lclm_serving.config import LclmConfig
from lclm_serving.errors import LclmError
from lclm_serving.prompt import PromptReader
from lclm_serving.vllm_plugin import counters
from lclm_serving.vllm_plugin.items import items_of, latents_of_item
from lclm_serving.weights import local_folder
from lclm_serving.windows import checked_ratio

logger = init_logger("vllm.lclm")

RATIO = "compression_ratio"
"""Key of ``mm_processor_kwargs``: tokens of one latent, in one request."""
_OPTIONS = "mm_processor_kwargs"


class LclmRenderer(HfRenderer):
    """vLLM's renderer of Hugging Face chat templates, with our tokenization.

    The template sees the text of all messages, tags included, so spans may stand in any of them, in tool results and in
    arguments; the rendered text is cut, as the JAX generator does it. Plain prompts begin with the token that the
    decoder's tokenizer puts before a text, if it does; chats have what their template prints.
    """

    @cached_property
    def default_chat_tok_params(self) -> Any:
        """What vLLM assumes of chats, without a token before them."""
        return replace(super().default_chat_tok_params, add_special_tokens=False)

    @cached_property
    def _reader(self) -> PromptReader:
        folder = local_folder(self.model_config.model, revision=self.model_config.revision)
        return PromptReader.from_folder(Path(folder), self._lclm)

    @cached_property
    def _lclm(self) -> LclmConfig:
        return self.model_config.hf_config

    @cached_property
    def _counters(self) -> counters.Counters | None:
        return counters.shared()

    def render_messages(self, messages: Any, params: Any) -> Any:
        """The conversation, and its text as a prompt."""
        conversation, prompt = super().render_messages(messages, _as_text(params))
        return conversation, _with_options(prompt, params.mm_processor_kwargs)

    async def render_messages_async(self, messages: Any, params: Any) -> Any:
        """The same, without holding up other requests."""
        conversation, prompt = await super().render_messages_async(messages, _as_text(params))
        return conversation, _with_options(prompt, params.mm_processor_kwargs)

    def render_cmpl(self, prompts: Any, tok_params: Any = None, **options: Any) -> Any:
        """Plain prompts; the options of a request are known before its text is cut."""
        extras = options.get("prompt_extras") or {}
        prompts = [_with_options(prompt, extras.get(_OPTIONS)) for prompt in prompts]
        return super().render_cmpl(prompts, tok_params, **options)

    async def render_cmpl_async(self, prompts: Any, tok_params: Any = None, **options: Any) -> Any:
        """The same, without holding up other requests."""
        extras = options.get("prompt_extras") or {}
        prompts = [_with_options(prompt, extras.get(_OPTIONS)) for prompt in prompts]
        return await super().render_cmpl_async(prompts, tok_params, **options)

    def _tokenize_prompt(self, prompt: Any, params: Any) -> Any:
        ids: list[int] = []
        items: list[np.ndarray] = []
        config = self._lclm
        ratio = self._ratio(prompt.get(_OPTIONS) or {})
        text = tokens = latents = 0
        limit = self.model_config.max_model_len
        for piece in self._reader.pieces(prompt["prompt"], params.add_special_tokens, (limit, limit * ratio)):
            if isinstance(piece, list):
                ids += piece
            else:
                some = items_of(piece, config, ratio)
                ids += [config.memory_start_id, *[config.memory_id] * len(some), config.memory_end_id]
                items += some
                tokens += len(piece)
                latents += sum(map(latents_of_item, some))
            text = len(ids) - len(items)
            if text + latents > limit:
                raise LclmError(
                    f"this prompt takes at least {text} positions for text and {latents} for latents, and the model has"
                    f" {limit}; shorten it, or compress more of it"
                )
        if self._counters is not None:
            self._counters.add(requested=len(items), tokens=tokens, latents=latents, text=text)
        if items:
            logger.info("Prompt: %d text tokens, %d latents of %d tokens", text, latents, tokens)
            prompt = {**prompt, "multi_modal_data": {**(prompt.get("multi_modal_data") or {}), "memory": items}}
        return self._build_tokens_prompt(ids, prompt)

    def _ratio(self, options: dict[str, Any]) -> int:
        """Tokens of one latent: the request's, the server's (``--mm-processor-kwargs``), or the model's."""
        merged = self.model_config.get_multimodal_config().merge_mm_processor_kwargs(options)
        ratio = merged.get(RATIO)
        return self._lclm.compression_ratio if ratio is None else checked_ratio(self._lclm, ratio)

    def _tokenize_singleton_prompt(self, prompt: Any, params: Any) -> Any:
        """As vLLM does it, but for its limit of characters: text that is compressed may be longer than the context."""
        if not _is_text(prompt):
            return super()._tokenize_singleton_prompt(prompt, params)
        return params.apply_post_tokenization(self.tokenizer, self._tokenize_prompt(prompt, params))

    async def _tokenize_singleton_prompt_async(self, prompt: Any, params: Any) -> Any:
        if not _is_text(prompt):
            return await super()._tokenize_singleton_prompt_async(prompt, params)
        return params.apply_post_tokenization(self.tokenizer, await self._tokenize_prompt_async(prompt, params))


def _with_options(prompt: Any, options: dict[str, Any] | None) -> Any:
    """``prompt`` with the request's ``mm_processor_kwargs``; vLLM adds them after the text was cut."""
    return {**prompt, _OPTIONS: options} if options and isinstance(prompt, dict) else prompt


def _is_text(prompt: Any) -> bool:
    return "prompt_token_ids" not in prompt and "prompt_embeds" not in prompt and isinstance(prompt.get("prompt"), str)


def _as_text(params: Any) -> Any:
    """Chat parameters by which a template gives text, not ids: a tokenizer would read tags as tokens."""
    return replace(params, chat_template_kwargs={**params.chat_template_kwargs, "tokenize": False})
