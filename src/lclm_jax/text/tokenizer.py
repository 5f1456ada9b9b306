"""Tokenizer folders without transformers: ids, character offsets, special tokens, chat templates."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

import tokenizers
from lclm_jax.errors import LclmError
from lclm_jax.paths import local_copy, to_path
from lclm_jax.text.chats.chat_template import ChatTemplates
from lclm_jax.text.memory_tags import MEMORY_TOKENS, MemoryIds
from lclm_jax.text.sentencepiece import model_in, read_sentencepiece
from lclm_jax.types import JsonObject, ReadOnlyJson

log = logging.getLogger(__name__)


class Tokenizer:
    """One tokenizer folder (``tokenizer.json``, ``tokenizer_config.json``, ``chat_template.jinja``).

    In the place of ``tokenizer.json`` there may be a SentencePiece model (``tokenizer.model``, ``spiece.model``), or
    the path is such a model. It gets the tokens that ``added_tokens.json`` lists, and the memory tokens after them
    unless ``memory_tokens`` is False. ``chat_template`` names one of several chat templates (see ``ChatTemplates``).

    No method ever adds special tokens by itself. By default the strings of special tokens inside a text become their
    ids, as prompts need; with ``plain=True`` they are read as ordinary characters, as foreign text (a corpus) needs.
    """

    def __init__(self, folder: str | Path, memory_tokens: bool = True, chat_template: str | None = None):
        self.folder, self._memory_tokens, self._chat_template = _on_this_machine(folder), memory_tokens, chat_template
        model = model_in(self.folder)
        home = self.folder if model is None else model.parent
        self._config = _read_json(home / "tokenizer_config.json")
        if model is None:
            self._json = _read_bytes(self.folder / "tokenizer.json")
        else:
            source, names = read_sentencepiece(model)
            wanted = MEMORY_TOKENS if memory_tokens else ()
            self._json = _with_added_tokens(source, _read_json(home / "added_tokens.json"), wanted, self.folder)
            self._config = names | self._config
        self._home = home
        self._parsing, self._put_before = _build(self._json, self.folder)
        _check_ids(self._parsing.get_vocab(with_added_tokens=False), self.folder)

    @classmethod
    def from_folder(cls, path: str | Path, chat_template: str | None = None) -> "Tokenizer":
        """Read the folder (or SentencePiece model) at ``path``; raises ``LclmError`` if it holds no tokenizer."""
        return cls(path, chat_template=chat_template)

    def __reduce__(self):
        return Tokenizer, (self.folder, self._memory_tokens, self._chat_template)

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        plain, _ = _build(self._json, self.folder)
        plain.encode_special_tokens = True
        return plain

    @property
    def settings(self) -> JsonObject:
        """``json`` parsed; raises ``LclmError`` for what only the library's laxer parser takes."""
        try:
            return json.loads(self._json)
        except (ValueError, RecursionError) as error:
            raise LclmError(f"{self.folder}: its tokenizer.json is no valid JSON ({error}); export it again") from None

    @cached_property
    def small_settings(self) -> JsonObject:
        """``settings`` without the vocabulary and its merges, which take seconds to parse and much memory to keep."""
        settings = self.settings
        model = {name: value for name, value in settings["model"].items() if name not in ("vocab", "merges")}
        return settings | {"model": model}

    @property
    def json(self) -> bytes:
        """The content of ``tokenizer.json``, or what takes its place for a SentencePiece model."""
        return self._json

    def backend(self, plain: bool = False) -> tokenizers.Tokenizer:
        """The ``tokenizers`` object, for batches: do not change its settings."""
        return self._plain if plain else self._parsing

    def encode(self, text: str, plain: bool = False) -> np.ndarray:
        """Ids of ``text`` as int32 ``[tokens]``."""
        encoding = self.backend(plain).encode(text, add_special_tokens=False)
        return np.array(encoding.ids, np.int32)

    def encode_with_offsets(self, text: str, plain: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids of ``text`` and the character where each token starts and ends, three int32 ``[tokens]``.

        Tokens that share the bytes of one character all cover that character.
        """
        encoding = self.backend(plain).encode(text, add_special_tokens=False)
        offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
        return np.array(encoding.ids, np.int32), offsets[:, 0], offsets[:, 1]

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special: bool = False) -> str:
        """Text of ``ids``; bytes that form no character become U+FFFD."""
        return self._parsing.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def token_id(self, token: str) -> int | None:
        """Id of one vocabulary entry, or None; None too for what no vocabulary holds: half characters, no text."""
        try:
            return self._parsing.token_to_id(token)
        except (UnicodeEncodeError, TypeError):  # names come from files of others
            return None

    @cached_property
    def vocab_size(self) -> int:
        """Highest id + 1, added tokens included."""
        return max(self._parsing.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def plain_vocab_size(self) -> int:
        """Highest id + 1 that plain text can give: special tokens are left out, other added tokens are not."""
        added = self._parsing.get_added_tokens_decoder()
        plain = [i for i, token in added.items() if not token.special and token.content not in MEMORY_TOKENS]
        return max([*self._parsing.get_vocab(with_added_tokens=False).values(), *plain]) + 1

    @cached_property
    def digest(self) -> str:
        """SHA-256 of ``tokenizer.json`` (or of what takes its place): equal digests mean equal ids."""
        return hashlib.sha256(self._json).hexdigest()

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Text and id of every added token: what foreign text must not be turned into."""
        added = self._parsing.get_added_tokens_decoder()
        return {token.content: index for index, token in added.items() if token.special}

    @cached_property
    def special_ids(self) -> np.ndarray:
        """Ids of the special tokens that no ordinary character becomes: all but that of unknown ones; int32."""
        model = json.loads(self._json).get("model") or {}
        unknown = self.token_id(model["unk_token"]) if model.get("unk_token") else model.get("unk_id")
        return np.array([index for index in self.special_tokens.values() if index != unknown], np.int32)

    @cached_property
    def memory_ids(self) -> MemoryIds:
        """Ids of the memory tokens; raises ``LclmError`` if the vocabulary lacks one."""
        ids = [self.token_id(token) for token in MEMORY_TOKENS]
        missing = [token for token, index in zip(MEMORY_TOKENS, ids, strict=True) if index is None]
        if missing:
            raise LclmError(
                f"tokenizer {self.folder} lacks {', '.join(missing)}; a decoder's tokenizer needs the memory tokens:"
                " add them as special tokens (train_tokenizer does, lclm import does)"
            )
        return MemoryIds(*(int(index) for index in ids if index is not None))

    @cached_property
    def bos_id(self) -> int | None:
        """Id that the tokenizer's post-processor puts before a text; None: it does not.

        ``encode`` leaves it out: who makes a whole text puts it there. A chat begins as its template begins it.
        """
        if len(self._put_before) > 1:
            raise LclmError(
                f"tokenizer {self.folder} puts {len(self._put_before)} tokens before a text"
                f" ({self.decode(self._put_before)!r}), one at most is supported; export one without the others"
            )
        return next(iter(self._put_before), None)

    @property
    def named_ids(self) -> dict[str, int | None]:
        """``bos_token_id``, ``eos_token_id`` and ``pad_token_id``, as ``config.json`` has them."""
        bos = self._named("bos_token") if self._special_name("bos_token") else self.bos_id
        return {"bos_token_id": bos, "eos_token_id": self.eos_id, "pad_token_id": self.pad_id}

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer.

        These are the named end and padding tokens, those of ``generation_config.json`` beside the tokenizer, and the
        one that the chat template puts behind a reply.
        """
        path = self._home / "generation_config.json"
        given = _read_json(path).get("eos_token_id")
        listed = given if isinstance(given, list) else [] if given is None else [given]
        if not all(isinstance(one, int) and not isinstance(one, bool) for one in listed):
            raise LclmError(f"{path}: eos_token_id={given!r} is neither an id nor a list of ids; correct it")
        stops = {self.eos_id, self.pad_id, *listed, self._end_of_reply}
        return frozenset(stop for stop in stops if stop is not None)

    @property
    def _end_of_reply(self) -> int | None:
        """The first special token after a reply of the chat template; None if there is no template or no such token."""
        if not len(self.chat_templates):
            return None
        reply = "Zq7"
        try:
            text = self.render_chat([{"role": "user", "content": "x"}, {"role": "assistant", "content": reply}])
        except LclmError as error:
            log.debug("%s: no end of a reply is known: %s", self.folder, error)
            return None
        added = self._parsing.get_added_tokens_decoder()
        closing = text.rpartition(reply)[2] if reply in text else ""
        return next((int(index) for index in self.encode(closing) if int(index) in added), None)

    @property
    def eos_id(self) -> int:
        """Id that ends a reply; raises ``LclmError`` if ``tokenizer_config.json`` names none."""
        return self._named("eos_token")

    @property
    def pad_id(self) -> int:
        """Id of padding and of encoder markers; the end token's where no padding token is named."""
        return self._named("pad_token" if self._special_name("pad_token") else "eos_token")

    def render_chat(
        self,
        messages: Sequence[ReadOnlyJson],
        add_generation_prompt: bool = False,
        tools: Sequence[ReadOnlyJson] | None = None,
        **variables: object,
    ) -> str:
        """Text of ``messages`` by the folder's chat template.

        Raises ``LclmError`` if there is none, and ``ChatError`` if it refuses the chat or fails on it.
        """
        named = {f"{kind}_token": self._special_name(f"{kind}_token") or "" for kind in ("bos", "eos", "pad", "unk")}
        values = named | {"tools": tools, "add_generation_prompt": add_generation_prompt} | variables
        return self.chat_templates.render(messages, values)

    @cached_property
    def chat_templates(self) -> ChatTemplates:
        """The chat templates of the folder; raises ``LclmError`` if one cannot be read."""
        return ChatTemplates(self._home, self._config.get("chat_template"), self._chat_template)

    def _special_name(self, key: str) -> str | None:
        value = self._config.get(key)
        name = value.get("content") if isinstance(value, dict) else value
        if name is not None and not isinstance(name, str):
            raise LclmError(f"tokenizer {self.folder} has {key}={value!r}; name a token in tokenizer_config.json")
        return name

    def _named(self, key: str) -> int:
        name = self._special_name(key)
        index = None if name is None else self.token_id(name)
        if index is None:
            raise LclmError(
                f"tokenizer {self.folder} has {key}={name!r}; set {key} in tokenizer_config.json to an entry of the"
                " vocabulary"
            )
        return index


def _build(source: bytes, folder: Path) -> tuple[tokenizers.Tokenizer, list[int]]:
    """The tokenizer without its post-processor, and the ids that this puts before a text."""
    try:
        built = tokenizers.Tokenizer.from_str(source.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception on malformed files
        raise LclmError(f"{folder / 'tokenizer.json'} is not a tokenizer: {error}; export it again") from error
    built.no_truncation()
    built.no_padding()
    put_before: list[int] = []
    if built.post_processor is not None:
        encoding = built.encode("a")
        marks = encoding.special_tokens_mask
        put_before = encoding.ids[: marks.index(0) if 0 in marks else len(marks)]
    # A post-processor only adds special tokens and trims offsets; cut points need untrimmed ones.
    built.post_processor = None
    return built, put_before


def _check_ids(vocabulary: Mapping[str, int], folder: Path) -> None:
    """Raise ``LclmError`` if tokens share an id: one of them could not be told from the other."""
    if len(set(vocabulary.values())) == len(vocabulary):
        return
    owners: dict[int, str] = {}
    for token, index in vocabulary.items():
        if index in owners:
            both = f"{owners[index]!r} and {token!r}"
            raise LclmError(f"tokenizer {folder} gives {both} the same id, {index}; export the tokenizer again")
        owners[index] = token


def _with_added_tokens(source: str, listed: dict[str, int], wanted: Sequence[str], folder: Path) -> bytes:
    """``tokenizer.json`` with the tokens of ``added_tokens.json`` at their ids, then those ``wanted``."""
    built = tokenizers.Tokenizer.from_str(source)
    for token in dict.fromkeys([*sorted(listed, key=lambda token: listed[token]), *wanted]):
        if built.token_to_id(token) is None:
            built.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False)])
        if token in listed and built.token_to_id(token) != listed[token]:
            raise LclmError(
                f"{folder}: added_tokens.json gives {token!r} the id {listed[token]}, but the model gives it"
                f" {built.token_to_id(token)}; export the tokenizer as a tokenizer.json"
            )
    return built.to_str().encode()


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LclmError(
            f"cannot read {path}: {error.strerror}; a tokenizer folder holds a tokenizer.json or a SentencePiece"
            " tokenizer.model"
        ) from None


def _on_this_machine(folder: str | Path) -> Path:
    try:
        return local_copy(to_path(folder))
    except FileNotFoundError:
        raise LclmError(f"{folder} holds no tokenizer; name a folder that has tokenizer.json") from None


def _read_json(path: Path) -> JsonObject:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LclmError(f"{path} is not valid JSON: {error}; export the tokenizer again") from None
    if not isinstance(values, dict):
        raise LclmError(f"{path} holds no JSON object; export the tokenizer again")
    return values


class Tokenizers(NamedTuple):
    """The two tokenizers of a run; the same object twice where there is one."""

    decoder: Tokenizer
    encoder: Tokenizer


def check_vocabularies(decoder_rows: int, encoder_rows: int, tokenizers: Tokenizers) -> None:
    """Raise ``LclmError`` if a tokenizer makes ids that the model's embedding table lacks (they would be clamped).

    Args:
        decoder_rows: ``model.decoder.vocab_size``.
        encoder_rows: ``model.encoder.vocab_size``.
        tokenizers: The run's.
    """
    for part, rows, ids in (
        ("decoder", decoder_rows, tokenizers.decoder.vocab_size),
        # No special token occurs in a span, so the encoder's table may lack their rows.
        ("encoder", encoder_rows, tokenizers.encoder.plain_vocab_size),
    ):
        if ids > rows:
            raise LclmError(
                f"model.{part}.vocab_size={rows} is below the {ids} ids of its tokenizer"
                f" {getattr(tokenizers, part).folder}; set it to {ids} or more, or name the tokenizer of the model"
            )
