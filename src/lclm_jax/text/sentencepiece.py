"""SentencePiece models as tokenizers of the ``tokenizers`` library: the same ids, with character offsets.

Two things that SentencePiece does to the ends of a text are left out, as they would make a slice of a text differ from
the same characters inside it: no space is put before the first word (``add_dummy_prefix``), and white space is not
stripped from the ends. Inside a text the ids are SentencePiece's own (but for ties), which is checked each time a model
is read.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

import tokenizers
from lclm_jax.errors import LclmError
from tokenizers import decoders, models, normalizers, pre_tokenizers

MODEL_NAMES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
"""File names of models in a folder."""

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_UNIGRAM, _BPE = 1, 2
_NEVER = -1e7
"""Score of pieces that text must never become."""
_PROBES = (
    "Plain English text, with commas; numbers like 1234.5 and a name: O'Neill.",
    "def f(x):\n    return x + 1  # comment\n\n\nclass A:\n\tpass",
    "Größe, naïve, 東京タワー, привет, 👍🏽 and ½ ﬁne.",
    "many   spaces    here",
)


def model_in(path: Path) -> Path | None:
    """The SentencePiece model that ``path`` is, or that a folder without a ``tokenizer.json`` holds."""
    if path.is_file():
        return path if path.suffix == ".model" else None
    if (path / "tokenizer.json").is_file():
        return None
    return next((path / name for name in MODEL_NAMES if (path / name).is_file()), None)


@lru_cache(maxsize=4)
def read_sentencepiece(path: Path) -> tuple[str, dict[str, str]]:
    """The model at ``path`` as the text of a ``tokenizer.json``, and the names of its bos, eos, pad and unk tokens.

    Raises:
        LclmError: it is no SentencePiece model, of an unknown kind, or the two libraries disagree on its ids.
    """
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined] # made at run time
    try:
        proto.ParseFromString(path.read_bytes())
        if not proto.pieces:
            raise LclmError("no pieces")
    except (OSError, LclmError, DecodeError) as error:
        raise LclmError(f"{path} is not a SentencePiece model ({error}); name another tokenizer") from None
    spec = proto.trainer_spec
    if spec.model_type not in (_UNIGRAM, _BPE) or not spec.split_by_whitespace or spec.treat_whitespace_as_suffix:
        raise LclmError(
            f"{path}: only unigram and BPE models whose pieces begin at white space can be cut into spans; export the"
            " tokenizer as a tokenizer.json"
        )
    built = _build(proto)
    _check(proto, built, path)
    names = {"bos_token": spec.bos_id, "eos_token": spec.eos_id, "pad_token": spec.pad_id, "unk_token": spec.unk_id}
    pieces = proto.pieces
    special = {name: pieces[index].piece for name, index in names.items() if 0 <= index < len(pieces)}
    return built.to_str(), special


def _build(proto: Any) -> tokenizers.Tokenizer:
    spec, pieces = proto.trainer_spec, proto.pieces
    if spec.model_type == _UNIGRAM:
        scored = [(piece.piece, _NEVER if piece.type in (_CONTROL, _UNUSED) else piece.score) for piece in pieces]
        unknown = next(i for i, piece in enumerate(pieces) if piece.type == _UNKNOWN)
        model: models.Model = models.Unigram(scored, unknown, spec.byte_fallback)
    else:
        vocabulary = {piece.piece: i for i, piece in enumerate(pieces)}
        model = models.BPE(
            vocabulary, _merges(pieces), unk_token=spec.unk_piece, fuse_unk=True, byte_fallback=spec.byte_fallback
        )
    built = tokenizers.Tokenizer(model)
    built.normalizer = _normalizer(proto.normalizer_spec)
    # Where pieces may begin, so where text may be cut: before white space that follows something else.
    built.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("▁*[^▁]+|▁+"), behavior="isolated")
    built.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    for piece in pieces:
        if piece.type in (_UNKNOWN, _CONTROL):
            built.add_special_tokens([tokenizers.AddedToken(piece.piece, special=True, normalized=False)])
        elif piece.type == _USER:
            built.add_tokens([tokenizers.AddedToken(piece.piece, special=False, normalized=False)])
    return built


def _normalizer(spec: Any) -> normalizers.Normalizer:
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(tokenizers.Regex(" {2,}"), " "))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])


def _merges(pieces: Any) -> list[tuple[str, str]]:
    """Pairs in the order in which SentencePiece would join them: by the score of what they become."""
    usable = {piece.piece: i for i, piece in enumerate(pieces) if piece.type not in (_CONTROL, _UNKNOWN, _BYTE)}
    merges = []
    for whole, index in usable.items():
        pairs = [(whole[:i], whole[i:]) for i in range(1, len(whole))]
        known = sorted((usable[a], usable[b], a, b) for a, b in pairs if a in usable and b in usable)
        merges += [(-pieces[index].score, a, b) for _, _, a, b in known]
    return [(a, b) for _, a, b in sorted(merges, key=lambda merge: merge[0])]


def _check(proto: Any, built: tokenizers.Tokenizer, path: Path) -> None:
    proto.normalizer_spec.add_dummy_prefix = False
    theirs = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    own = "".join(piece.piece.replace("▁", " ") for piece in proto.pieces[:2000] if piece.type == _NORMAL)
    for text in (*_PROBES, own.strip()):
        expected, found = theirs.encode(text), built.encode(text, add_special_tokens=False).ids
        # (Of two ways to cut "..." that are equally likely, the libraries may take different ones.)
        if sorted(expected) != sorted(found):
            raise LclmError(
                f"{path}: the ids of {text[:40]!r} differ from SentencePiece's own; export the tokenizer as a"
                " tokenizer.json"
            )
