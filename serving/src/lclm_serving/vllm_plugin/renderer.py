"""Prompts and chats: cut at their memory tags, tokenized as in training, windows handed on as ``memory`` items."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from vllm.renderers.hf import HfRenderer

from lclm_serving.config import LclmConfig
from lclm_serving.errors import LclmError
from lclm_serving.prompt import PromptReader
from lclm_serving.vllm_plugin import counters
from lclm_serving.vllm_plugin.items import items_of, latents_of_item
from lclm_serving.weights import local_folder


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
        return super().render_messages(messages, _as_text(params))

    async def render_messages_async(self, messages: Any, params: Any) -> Any:
        """The same, without holding up other requests."""
        return await super().render_messages_async(messages, _as_text(params))

    def _tokenize_prompt(self, prompt: Any, params: Any) -> Any:
        ids: list[int] = []
        items: list[np.ndarray] = []
        config = self._lclm
        tokens = latents = 0
        for piece in self._reader.pieces(prompt["prompt"], params.add_special_tokens):
            if isinstance(piece, list):
                ids += piece
                continue
            some = items_of(piece, config)
            ids += [config.memory_start_id, *[config.memory_id] * len(some), config.memory_end_id]
            items += some
            tokens += len(piece)
            latents += sum(latents_of_item(item, config) for item in some)
        text, limit = len(ids) - len(items), self.model_config.max_model_len
        if text + latents > limit:
            raise LclmError(
                f"this prompt takes {text} positions for text and {latents} for latents, and the model has {limit};"
                " shorten it, or compress more of it"
            )
        if self._counters is not None:
            self._counters.add(requested=len(items), tokens=tokens, latents=latents, text=text)
        if items:
            prompt = {**prompt, "multi_modal_data": {**(prompt.get("multi_modal_data") or {}), "memory": items}}
        return self._build_tokens_prompt(ids, prompt)

    def _tokenize_singleton_prompt(self, prompt: Any, params: Any) -> Any:
        """As vLLM does it, but for its limit of characters: text that is compressed may be longer than the context."""
        if not _is_text(prompt):
            return super()._tokenize_singleton_prompt(prompt, params)
        return params.apply_post_tokenization(self.tokenizer, self._tokenize_prompt(prompt, params))

    async def _tokenize_singleton_prompt_async(self, prompt: Any, params: Any) -> Any:
        if not _is_text(prompt):
            return await super()._tokenize_singleton_prompt_async(prompt, params)
        return params.apply_post_tokenization(self.tokenizer, await self._tokenize_prompt_async(prompt, params))


def _is_text(prompt: Any) -> bool:
    return "prompt_token_ids" not in prompt and "prompt_embeds" not in prompt and isinstance(prompt.get("prompt"), str)


def _as_text(params: Any) -> Any:
    """Chat parameters by which a template gives text, not ids: a tokenizer would read tags as tokens."""
    return replace(params, chat_template_kwargs={**params.chat_template_kwargs, "tokenize": False})
