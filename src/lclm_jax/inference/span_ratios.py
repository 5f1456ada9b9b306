"""Ratios of the spans of a prompt: given by the caller, or chosen by a linear head on the encoder's state.

The encoder reads every window once, at the model's N. The vectors of a coarser span are means of these, so a store of
latents serves every ratio. The head says of each span and coarser ratio how likely the loss of the text that follows
stays within a margin of that at the model's N; a span takes the largest ratio whose chance is above a threshold. The
threshold is the one number that a budget (latents per token) is met with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lclm_jax.config import ModelConfig
from lclm_jax.errors import LclmError
from lclm_jax.files import replacing
from lclm_jax.text.example import Example, latent_count, placeholder_ranges

FILE = "ratio_head.safetensors"
"""Name of a head in the folder of its model."""
AUTO = "auto"
Chooser = Callable[[Sequence[np.ndarray]], Sequence[int]]
"""Pooled vectors [latents, E] of each span of a prompt, at the model's N, to a ratio for each."""


def with_ratios(example: Example, ratios: Sequence[int], model: ModelConfig) -> Example:
    """``example``, which has the model's N, with the ``ratios`` of its spans: a run of placeholders loses its last.

    Raises:
        LclmError: a ratio that latents of the model cannot have, or not one ratio for each span.
    """
    assert model.memory_token_ids is not None, "resolved before a model runs"
    if len(ratios) != len(example.spans):
        raise LclmError(
            f"{len(ratios)} ratios for {len(example.spans)} memory spans; give one for each, or one for all"
        )
    if ratios:
        check_ratios(ratios, model)
    kept = np.ones(len(example.tokens), bool)
    runs = placeholder_ranges(example.tokens, model.memory_token_ids[2])
    for (start, stop), span, ratio in zip(runs, example.spans, ratios, strict=True):
        kept[start + latent_count(len(span), ratio) : stop] = False
    return Example(example.tokens[kept], example.loss[kept], example.spans, np.array(ratios, np.int32))


def check_ratios(ratios: Sequence[int], model: ModelConfig) -> None:
    """Raise ``LclmError`` unless spans of ``model`` can have these ratios."""
    if model.pooling != "mean" or model.pool_before_last:
        raise LclmError(
            f"spans have ratios of their own with mean pooling alone, and this model's is {model.pooling}"
            f"{' before its last layers' if model.pool_before_last else ''}; leave the ratio out"
        )
    possible = [n for n in range(model.ratio, model.window + 1, model.ratio) if model.window % n == 0]
    if wrong := [ratio for ratio in ratios if ratio not in possible]:
        raise LclmError(
            f"ratio {wrong[0]} is no multiple of the model's {model.ratio} that divides its window of {model.window};"
            f" use one of {', '.join(map(str, possible[:6]))}{', ...' if len(possible) > 6 else ''}"
        )


def merge_vectors(vectors_LE: np.ndarray, tokens: int, ratios: tuple[int, int]) -> np.ndarray:
    """[ceil(tokens / N), E]: means over N tokens from means over n, in the same dtype; sums are float32.

    Args:
        vectors_LE: of one span.
        tokens: of the span.
        ratios: (n, N), n divides N.
    """
    fine, coarse = ratios
    if fine == coarse or not tokens:
        return vectors_LE
    counts_L1 = np.full((len(vectors_LE), 1), fine, np.float32)
    counts_L1[-1] = tokens - fine * (len(vectors_LE) - 1)
    starts = np.arange(0, len(vectors_LE), coarse // fine)
    sums = np.add.reduceat(vectors_LE.astype(np.float32) * counts_L1, starts, axis=0)
    merged: np.ndarray = (sums / np.add.reduceat(counts_L1, starts, axis=0)).astype(vectors_LE.dtype)
    return merged


def same_ratios(given: Sequence[int]) -> Chooser:
    """The ratios ``given``: one for all spans, or one for each."""
    return lambda spans: [*given] * len(spans) if len(given) == 1 else [*given]


@dataclass(frozen=True, eq=False)
class RatioHead:
    """A linear head on the mean of a span's pooled vectors, and what thresholds are worth."""

    ratios: tuple[int, ...]
    """Ascending; the first is the model's N."""
    kernel_EK: np.ndarray
    """[E, ratios - 1] float32."""
    bias_K: np.ndarray
    """[ratios - 1] float32."""
    thresholds: np.ndarray
    """[points] float32, descending: from one that no span passes to one that all do."""
    budgets: np.ndarray
    """[points] float32: latents per token of held-out spans at each threshold, descending."""

    def chances(self, states_SE: np.ndarray) -> np.ndarray:
        """[spans, ratios - 1]: how likely each coarser ratio is within the margin; never more than a finer one."""
        logits_SK = states_SE.astype(np.float32) @ self.kernel_EK + self.bias_K[None]
        chances: np.ndarray = np.minimum.accumulate(0.5 * (1 + np.tanh(0.5 * logits_SK)), axis=1)
        return chances

    def choose(self, states_SE: np.ndarray, threshold: float) -> np.ndarray:
        """int64 [spans]: the largest ratio whose chance is above the threshold."""
        passed = (self.chances(states_SE) > threshold).sum(axis=1)
        return np.array(self.ratios, np.int64)[passed]

    def threshold(self, budget: float) -> float:
        """The highest threshold that meets a budget (latents per token) on held-out text.

        Raises:
            LclmError: no threshold does.
        """
        meets = np.flatnonzero(self.budgets <= budget)
        if not meets.size:
            raise LclmError(
                f"budget {budget:g} is below {float(self.budgets[-1]):.4f} latents per token, what"
                f" the largest ratio, {self.ratios[-1]}, takes; raise the budget"
            )
        return float(self.thresholds[meets[0]])

    def chooser(self, budget: float) -> Chooser:
        """What a ``Generator`` takes as ``ratios``."""
        threshold = self.threshold(budget)
        return lambda spans: self.choose(span_states(spans), threshold).tolist() if len(spans) else []

    def save(self, folder: Path) -> None:
        """Write the head into the folder of its model."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        with replacing(folder / FILE) as part:
            save_file(arrays, part, {"ratios": " ".join(map(str, self.ratios))})

    @classmethod
    def load(cls, folder: Path, model: ModelConfig) -> "RatioHead":
        """The head of the exported ``model`` in ``folder``; raises ``LclmError`` if it has none, or another's."""
        path = folder / FILE
        if not path.is_file():
            raise LclmError(f"{folder} has no {FILE}; fit one with `lclm fit-ratios RUN {folder}`")
        try:
            with safe_open(path, "np") as file:
                arrays = {name: file.get_tensor(name) for name in _ARRAYS}
                ratios = tuple(int(text) for text in (file.metadata() or {})["ratios"].split())
        except (SafetensorError, KeyError, ValueError) as error:
            raise LclmError(f"{path} is no ratio head ({error}); fit it again with `lclm fit-ratios`") from None
        if ratios[0] != model.ratio or arrays["kernel_EK"].shape != (model.encoder.hidden_size, len(ratios) - 1):
            raise LclmError(f"{path} was fitted for another model; fit it again with `lclm fit-ratios`")
        check_ratios(ratios, model)
        return cls(ratios, **arrays)


_ARRAYS = ("kernel_EK", "bias_K", "thresholds", "budgets")


def span_states(spans: Sequence[np.ndarray]) -> np.ndarray:
    """[spans, E] float32: the mean of each span's pooled vectors, what the head reads."""
    return np.stack([vectors.astype(np.float32).mean(axis=0) for vectors in spans])


def parse_ratios(text: str | None, budget: float | None, folder: Path, model: ModelConfig) -> Chooser | None:
    """What ``--ratio`` and ``--budget`` mean for the model in ``folder``; None: every span has the model's N.

    Args:
        text: ``auto``, one ratio, or ratios with commas between them.
        budget: latents per token; goes with ``auto``.
        folder: of the model.
        model: its configuration.
    """
    if (text == AUTO) != (budget is not None):
        raise LclmError("a budget (latents per token) goes with the ratio auto; give both or neither")
    if text is None:
        return None
    if text == AUTO and budget is not None:
        return RatioHead.load(folder, model).chooser(budget)
    try:
        given = [int(one) for one in text.split(",")]
    except ValueError:
        raise LclmError(f"ratio {text!r} is neither {AUTO} nor whole numbers such as 16 or 4,16,8") from None
    check_ratios(given, model)
    return same_ratios(given)
