"""Train a byte-level BPE with Qwen's pre-tokenization, chat and memory tokens, saved as a Hugging Face folder."""

import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

import tokenizers
from lclm_jax.errors import LclmError
from lclm_jax.files import write_text
from lclm_jax.paths import to_path
from lclm_jax.text.memory_tags import MEMORY_TOKENS
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, *MEMORY_TOKENS)
"""They get the last ids, in this order."""

# The pattern of Qwen's tokenizer.json: contractions, words with one leading mark, single digits, punctuation, blanks.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SMALLEST = 256 + len(SPECIAL_TOKENS)


def train_tokenizer(texts: Iterable[str], vocab_size: int, out_dir: str | Path, tools: bool = False) -> Path:
    """Train on ``texts`` and save ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``.

    The same texts in the same order give the same bytes. Special-token strings in the texts are plain characters.

    Args:
        texts: training texts.
        vocab_size: rows, special tokens included; fewer are made if the texts hold too few pairs to merge.
        out_dir: folder to write.
        tools: whether its chat template prints tools, calls and results, in the form of Hermes and Qwen.

    Returns:
        ``out_dir``.

    Raises:
        LclmError: ``vocab_size`` below the bytes and special tokens, no text at all, or a disk that refuses.
    """
    if vocab_size < _SMALLEST:
        raise LclmError(
            f"vocab_size={vocab_size} is below {_SMALLEST}: 256 bytes and {len(SPECIAL_TOKENS)} special tokens; raise"
            " tokenizer.vocab_size"
        )
    built = tokenizers.Tokenizer(models.BPE())
    built.normalizer = normalizers.NFC()
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    counted = _Counted(texts)
    built.train_from_iterator(counted, trainer)
    if not counted.characters:
        raise LclmError("no text to train a tokenizer on; the training split of the corpus is empty: check corpus")
    built.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return _save(built, to_path(out_dir), "chats/chatml_tools.jinja" if tools else "chatml.jinja")


class _Counted:
    """Passes texts on and counts their characters."""

    def __init__(self, texts: Iterable[str]):
        self._texts = texts
        self.characters = 0

    def __iter__(self):
        for text in self._texts:
            self.characters += len(text)
            yield text


def _save(built: tokenizers.Tokenizer, folder: Path, chat_template: str) -> Path:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "bos_token": None,
        "unk_token": None,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
    }
    template = files("lclm_jax.text").joinpath(chat_template).read_text(encoding="utf-8")
    write_text(folder / "chat_template.jinja", template)
    write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
    write_text(
        folder / "tokenizer.json", built.to_str(pretty=True)
    )  # last: its presence means that the folder is whole
    return folder
