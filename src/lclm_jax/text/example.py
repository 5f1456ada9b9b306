"""Examples: what one text or chat gives the decoder to read, the encoder to compress, and the loss to count.

An ``Outline`` is free of the compression ratio, so one prepared corpus serves every ratio; ``expand`` fills in the
placeholders of one ratio and gives the ``Example`` that is packed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from lclm_jax.text.chats.prefix_lengths import PrefixLengths
from lclm_jax.text.chats.rendered import RenderedChat, render_trained
from lclm_jax.text.chats.replies import check_ids
from lclm_jax.text.chats.special_strings import SpecialStrings
from lclm_jax.text.chunked_encoding import long_ids
from lclm_jax.text.memory_tags import MemoryIds, Piece, split_memory
from lclm_jax.text.outline import Outline, make_outline
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.types import ReadOnlyJson


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One example at one compression ratio N."""

    tokens: np.ndarray
    """int32 [T]: decoder ids, with ceil(span tokens / N) placeholders between the tags of each span."""
    loss: np.ndarray
    """float32 [T]: weight of each token as a target; 0 on tags, placeholders, prompts and the first token."""
    spans: tuple[np.ndarray, ...]
    """Encoder ids of each span, int32, in the order of the text."""
    ratios: np.ndarray | None = None
    """N of each span, int32; None: all spans have the model's."""


def latent_count(span_tokens: int, ratio: int) -> int:
    """Latents (and placeholders) of a span: ceil(tokens / ratio), and one for a span without tokens."""
    return max(1, -(-span_tokens // ratio))


def expand(outline: Outline, ratio: int | np.ndarray, placeholder: int) -> Example:
    """Fill in the placeholders of one ``ratio``, or of one for each span; ``placeholder``: the id of ``<|memory|>``.

    >>> expand(Outline(tokens=[7, START, END, 8], gaps=[2], spans=[five ids]), ratio=4, placeholder=M).tokens
    [7, START, M, M, END, 8]
    """
    ratios = None if isinstance(ratio, int) else np.asarray(ratio, np.int32)
    by_span = [ratio] * len(outline.spans) if isinstance(ratio, int) else ratio.tolist()
    counts = [latent_count(len(span), own) for span, own in zip(outline.spans, by_span, strict=True)]
    length = len(outline.tokens) + sum(counts)
    tokens, loss = np.empty(length, np.int32), np.empty(length, np.float32)
    taken = made = 0
    for gap, count in zip([*outline.gaps.tolist(), len(outline.tokens)], [*counts, 0], strict=True):
        raw = gap - taken
        tokens[made : made + raw], loss[made : made + raw] = outline.tokens[taken:gap], outline.loss[taken:gap]
        made += raw
        tokens[made : made + count], loss[made : made + count] = placeholder, 0
        taken, made = gap, made + count
    return Example(tokens, loss, outline.spans, ratios)


def placeholder_ranges(tokens: np.ndarray, placeholder: int) -> list[tuple[int, int]]:
    """``[start, stop)`` of every run of placeholders in ``tokens``: one run per span."""
    inside = np.concatenate(([0], (np.asarray(tokens) == placeholder).astype(np.int8), [0]))
    edges = np.flatnonzero(np.diff(inside)).reshape(-1, 2)
    return [(int(start), int(stop)) for start, stop in edges]


def outline_pieces(
    pieces: Sequence[Piece], decoder: Tokenizer, encoder: Tokenizer, raw_loss: float = 0.0, bos_id: int | None = None
) -> Outline:
    """Tokenize ``pieces``: raw text by the decoder's tokenizer, spans by the encoder's.

    Args:
        pieces: text cut by ``split_memory``.
        decoder: tokenizer with the memory tokens.
        encoder: tokenizer of the spans.
        raw_loss: loss weight of raw tokens (tags never have any).
        bos_id: put before the text, unless it begins so; None: nothing is.
    """
    memory = decoder.memory_ids
    tokens, loss, gaps, spans, length = [], [], [], [], 0
    for piece in pieces:
        if piece.kind == "span":
            ids = np.array([memory.start, memory.end], np.int32)
            spans.append(long_ids(encoder, piece.text))
            gaps.append(length + 1)
        else:
            ids = long_ids(decoder, piece.text)
        tokens.append(ids)
        loss.append(np.full(len(ids), raw_loss if piece.kind == "raw" else 0.0, np.float32))
        length += len(ids)
    if bos_id is not None and not (tokens and tokens[0][:1].tolist() == [bos_id]):
        tokens, loss = [np.array([bos_id], np.int32), *tokens], [np.zeros(1, np.float32), *loss]
        gaps = [gap + 1 for gap in gaps]
    return make_outline(tokens, loss, gaps, spans)


def cpt_example(text: str, decoder: Tokenizer, encoder: Tokenizer, ratio: int) -> Example:
    """Continual pre-training on ``text`` with memory tags: loss on every token outside the spans and their tags."""
    outline = outline_pieces(split_memory(text), decoder, encoder, raw_loss=1.0, bos_id=decoder.bos_id)
    return expand(outline, ratio, decoder.memory_ids.placeholder)


def prompt_example(prompt: str | Sequence[ReadOnlyJson], decoder: Tokenizer, encoder: Tokenizer, ratio: int) -> Example:
    """A prompt to continue: a string as it is, or chat messages rendered up to the assistant's turn; no loss.

    A string gets the decoder's BOS token if its tokenizer adds one; a chat has it where the template prints it.
    """
    plain = isinstance(prompt, str)
    text = prompt if isinstance(prompt, str) else decoder.render_chat(prompt, add_generation_prompt=True)
    outline = outline_pieces(split_memory(text), decoder, encoder, bos_id=decoder.bos_id if plain else None)
    return expand(outline, ratio, decoder.memory_ids.placeholder)


def chat_outline(
    messages: Sequence[ReadOnlyJson],
    decoder: Tokenizer,
    encoder: Tokenizer,
    target: str | None = None,
    replies: Literal["last", "all"] = "last",
    tools: Sequence[ReadOnlyJson] | None = None,
    strings: SpecialStrings | None = None,
) -> Outline:
    """A chat with loss on the assistant's replies (their end token and what the template puts after it included).

    The whole chat is tokenized at once; a reply begins after as many tokens as its prompt alone has, as in the PyTorch
    code: a leading newline of a reply that merges into the prompt's last token has no loss. A reply marked as not to be
    trained on (``text.chats.loss_markers``) has none.

    Args:
        messages: the chat; without ``target`` it ends with an assistant's message.
        decoder: tokenizer with chat template and memory tokens.
        encoder: tokenizer of the spans.
        target: the last reply, if ``messages`` lacks it.
        replies: ``last`` or ``all`` of the assistant's messages; earlier ones that the template rewrites once more
            messages follow are skipped.
        tools: tools that the template is given.
        strings: the special strings that no text of a foreign chat may become; None: the chat is one's own.

    Raises:
        ChatError: the chat ends without a reply, the template does not render a reply after its own prompt or refuses
            the chat; or with ``strings``: a special token in it (``SpecialTokenError``), or a reply that prints as an
            empty one does (``EmptyReplyError``).
        LossMarkerError: a mark cannot be honoured.
    """
    chat = [*messages] if target is None else [*messages, {"role": "assistant", "content": target}]
    return rendered_outline(render_trained(chat, decoder, replies, tools, strings), decoder, encoder, strings)


def rendered_outline(
    chat: RenderedChat, decoder: Tokenizer, encoder: Tokenizer, strings: SpecialStrings | None = None
) -> Outline:
    """Tokenize a rendered chat; arguments and errors as of ``chat_outline``."""
    outline = outline_pieces(split_memory(chat.text), decoder, encoder)
    if strings is not None:
        check_ids(outline.tokens, outline.spans, strings.in_text(chat.text), (decoder, encoder))
    lengths = PrefixLengths(chat.text, outline.tokens, decoder)
    for start, stop in chat.trained:
        outline.loss[lengths.until(start) : lengths.until(stop)] = 1
    tags = decoder.memory_ids
    outline.loss[np.isin(outline.tokens, (tags.start, tags.end))] = 0
    return outline


def chat_example(
    messages: Sequence[ReadOnlyJson],
    decoder: Tokenizer,
    encoder: Tokenizer,
    ratio: int,
    target: str | None = None,
    replies: Literal["last", "all"] = "last",
) -> Example:
    """``chat_outline`` at one ``ratio``."""
    return expand(chat_outline(messages, decoder, encoder, target, replies), ratio, decoder.memory_ids.placeholder)


class Segment(NamedTuple):
    """Part of a document between two of its cuts (their indices), compressed or raw."""

    compressed: bool
    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class DocumentTokens:
    """Both tokenizations of a document; cut k is the same place of the text in each."""

    decoder_ids: np.ndarray
    """Integers [decoder tokens]; empty where only lengths are needed."""
    decoder_cuts: np.ndarray
    """Integers [cuts]: token indices, from 0 to the number of decoder tokens."""
    encoder_ids: np.ndarray
    """Integers [encoder tokens]: the decoder's where the tokenizers are the same."""
    encoder_cuts: np.ndarray
    """Integers [cuts]."""

    @classmethod
    def from_record(cls, record: Mapping[str, np.ndarray]) -> "DocumentTokens":
        """The columns of a prepared document; without encoder columns both tokenizations are the same."""
        ids, cuts = record["decoder_ids"], record["cuts"]
        return cls(ids, cuts, record.get("encoder_ids", ids), record.get("encoder_cuts", cuts))

    def decoder_slice(self, segment: Segment) -> np.ndarray:
        """Decoder ids of a segment, int32."""
        return self.decoder_ids[self.decoder_cuts[segment.start] : self.decoder_cuts[segment.stop]].astype(np.int32)

    def encoder_slice(self, segment: Segment) -> np.ndarray:
        """Encoder ids of a segment, int32."""
        return self.encoder_ids[self.encoder_cuts[segment.start] : self.encoder_cuts[segment.stop]].astype(np.int32)


def cpt_example_from_ids(
    document: DocumentTokens,
    segments: Sequence[Segment],
    memory: MemoryIds,
    ratio: int | np.ndarray,
    bos_id: int | None = None,
) -> Example:
    """Continual pre-training over alternating ``segments``, behind ``bos_id`` if there is one: loss on raw tokens."""
    tags = np.array([memory.start, memory.end], np.int32)
    opening = np.array([] if bos_id is None else [bos_id], np.int32)
    tokens, gaps, spans, length = [], [], [], opening.size
    for segment in segments:
        if segment.compressed:
            spans.append(document.encoder_slice(segment))
            gaps.append(length + 1)
            tokens.append(tags)
        else:
            tokens.append(document.decoder_slice(segment))
        length += len(tokens[-1])
    weights = [
        np.full(len(ids), not segment.compressed, np.float32) for ids, segment in zip(tokens, segments, strict=True)
    ]
    before = np.zeros(opening.size, np.float32)
    return expand(make_outline([opening, *tokens], [before, *weights], gaps, spans), ratio, memory.placeholder)
