"""Texts and chats to the inputs of ``LclmForConditionalGeneration``."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, BatchFeature, PreTrainedTokenizerBase

from lclm_serving.config import LclmConfig
from lclm_serving.prompt import PromptReader
from lclm_serving.weights import local_folder
from lclm_serving.windows import checked_ratio


class LclmProcessor:
    """Both tokenizers and the chat template of an LCLM.

    Text between ``<|memory_start|>`` and ``<|memory_end|>`` is compressed, in any message of a chat.

    Args:
        tokenizer: the decoder's, for chat templates and decoding.
        reader: makes ids of prompts.
        folder: where both came from.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, reader: PromptReader, folder: Path):
        self.tokenizer, self.reader, self.folder = tokenizer, reader, folder

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "LclmProcessor":
        """Of an LCLM's folder or hub repository; raises ``LclmError`` if a tokenizer is missing."""
        folder = local_folder(pretrained_model_name_or_path, **options)
        config = AutoConfig.from_pretrained(folder)
        reader = PromptReader.from_folder(folder, config)
        home = folder if (folder / "tokenizer_config.json").is_file() else folder / "decoder"
        return cls(AutoTokenizer.from_pretrained(home), reader, folder)

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write both tokenizers, so that ``from_pretrained`` reads them beside a model's ``config.json``."""
        (Path(folder) / "encoder").mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        home = self.folder if (self.folder / "tokenizer.json").is_file() else self.folder / "decoder"
        for name, source in (("tokenizer.json", home), ("encoder/tokenizer.json", self.folder)):
            shutil.copyfile(source / name, Path(folder) / name)

    @property
    def config(self) -> LclmConfig:
        """Of the model."""
        return self.reader.config

    def __call__(
        self,
        text: str | Sequence[str],
        add_special_tokens: bool = True,
        compression_ratio: int | None = None,
        **_: Any,
    ) -> BatchFeature:
        """``input_ids`` and ``attention_mask`` (padded on the left), ``memory_ids`` and ``memory_sizes``.

        The last two are there if any prompt has a span. ``add_special_tokens``: begin with the token that the decoder's
        tokenizer puts before a text, if it does; a rendered chat has it already. ``compression_ratio``: tokens of one
        latent in these prompts, for models that were trained with several (``memory_ratios``). Raises ``LclmError``
        for a prompt whose tags do not pair up.
        """
        prompts = [text] if isinstance(text, str) else text
        ratio = None if compression_ratio is None else checked_ratio(self.config, compression_ratio)
        read = [self.reader.read(prompt, add_special_tokens, ratio) for prompt in prompts]
        spans = [torch.from_numpy(span) for _, some in read for span in some]
        rows = [torch.tensor(ids, dtype=torch.long) for ids, _ in read]
        longest = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        lengths = torch.tensor([len(row) for row in rows])
        inputs = {
            "input_ids": torch.stack([torch.cat([row.new_full((longest - len(row),), pad or 0), row]) for row in rows]),
            "attention_mask": (torch.arange(longest)[None] >= longest - lengths[:, None]).long(),
        }
        if spans:
            inputs["memory_ids"] = torch.nn.utils.rnn.pad_sequence(spans, batch_first=True)
            inputs["memory_sizes"] = torch.tensor([len(span) for span in spans])
            if ratio is not None:
                inputs["memory_ratios"] = torch.full((len(spans),), ratio)
        return BatchFeature(inputs)

    def apply_chat_template(
        self,
        conversation: Any,
        tokenize: bool = True,
        add_generation_prompt: bool = True,
        compression_ratio: int | None = None,
        **options: Any,
    ) -> Any:
        """A chat, or several, as inputs of the model, or as text with ``tokenize=False``.

        Args:
            conversation: messages, or lists of them.
            tokenize: whether to read the rendered text.
            add_generation_prompt: whether the text ends with the head of a reply.
            compression_ratio: tokens of one latent; None: the model's.
            **options: of the tokenizer's ``apply_chat_template``: ``tools`` and variables of the template.
        """
        for name in ("return_tensors", "return_dict", "padding"):
            options.pop(name, None)
        text: Any = self.tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=add_generation_prompt, **options
        )
        if not tokenize:
            return text
        return self(text, add_special_tokens=False, compression_ratio=compression_ratio)

    def decode(self, *arguments: Any, **options: Any) -> str | list[str]:
        """``decode`` of the decoder's tokenizer."""
        return self.tokenizer.decode(*arguments, **options)

    def batch_decode(self, *arguments: Any, **options: Any) -> list[str]:
        """``batch_decode`` of the decoder's tokenizer."""
        return self.tokenizer.batch_decode(*arguments, **options)
