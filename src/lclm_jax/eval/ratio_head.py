"""Fitting the head that chooses a ratio for every span (``inference/span_ratios.py``), and what it is worth.

Targets are loss-aware: the text after a span is scored with the span at every ratio, and the target is the largest
ratio whose mean loss exceeds that of the smallest by at most a margin. For each coarser ratio one logistic regression
says whether the target is at least that ratio. It is fitted on the train split, its ridge and its thresholds are chosen
on the validation split, and everything reported is of the held-out split.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lclm_jax.config import Config
from lclm_jax.data.store.shards import open_split
from lclm_jax.errors import LclmError
from lclm_jax.eval.examples import continuation_variants, spread_places, with_bos
from lclm_jax.eval.score import Scorer
from lclm_jax.eval.statistics import ratio as estimate
from lclm_jax.inference.generate import Generator
from lclm_jax.inference.span_ratios import RatioHead, check_ratios, span_states
from lclm_jax.text.example import Segment
from lclm_jax.types import JsonObject

logger = logging.getLogger(__name__)

RIDGES = (1.0, 10.0, 100.0, 1000.0)
_POINTS = 129
_ITERATIONS = 50


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How a head is fitted."""

    margin: float = 0.02
    """Nats per token that the loss at a target may exceed that at the smallest ratio by."""
    examples: int = 512
    """Spans of the train split."""


class Measured(NamedTuple):
    """Spans of a split, and the text after each."""

    states_SE: np.ndarray
    """What the head reads, float32."""
    tokens_S: np.ndarray
    """Encoder tokens of each span."""
    loss_SN: np.ndarray
    """Mean nats of the text after each span at each ratio, float64."""
    files_S: np.ndarray
    """Record that each span is of."""

    def latents(self, ratios_S: np.ndarray) -> np.ndarray:
        """Latents of each span at a ratio of its own, int64 [spans]."""
        return -(-self.tokens_S // ratios_S)


def fit_ratio_head(config: Config, folder: Path, settings: FitSettings) -> tuple[RatioHead, JsonObject]:
    """A head for the exported model in ``folder``, and what it is worth; see the module.

    Args:
        config: the run that the model is of: its prepared documents, ``model.span_ratios`` and ``eval``.
        folder: the exported model.
        settings: how it is fitted.

    Raises:
        LclmError: the run's spans have one ratio, the model cannot have these, or a split has no file long enough.
    """
    ratios = config.model.span_ratios
    if not ratios:
        raise LclmError("model.span_ratios of the run is empty, so there is nothing to choose from; train with it")
    generator = Generator.from_folder(folder)
    if generator.model.ratio != ratios[0]:
        raise LclmError(
            f"{folder} has ratio={generator.model.ratio} and model.span_ratios={list(ratios)} of the run begins with"
            f" {ratios[0]}; name an export of this run"
        )
    check_ratios(ratios, generator.model)
    count = config.eval.examples
    parts = {"train": settings.examples, "validation": count, "held_out": count}
    measured = {split: measure_split(config, generator, split, n, ratios) for split, n in parts.items()}
    head = fit(measured["train"], measured["validation"], ratios, settings.margin)
    return head, {"margin": settings.margin, **worth(head, measured["held_out"], settings.margin)}


def measure_split(config: Config, generator: Generator, split: str, count: int, ratios: Sequence[int]) -> Measured:
    """States of ``count`` spans of a split, evenly over its files, and losses at each of ``ratios``."""
    settings, model, decoder = config.eval, generator.model, generator.decoder_tokenizer
    documents = open_split(config, settings.collection, split)
    following = settings.continuation_tokens + 1
    places = spread_places(documents, count, settings.context_tokens, following, Counter())
    spans = [place.document.encoder_slice(Segment(True, place.first, place.middle)) for place in places]
    states_SE = span_states(generator.encoder.pooled(spans))
    losses = []
    for ratio in ratios:
        scorer = Scorer(
            generator.params, model.model_copy(update={"ratio": ratio}), generator.mesh, settings.batch_rows, None
        )
        made = [
            continuation_variants(place, settings.continuation_tokens, decoder.memory_ids, ratio) for place in places
        ]
        scores = scorer.score([with_bos(one["latents"], decoder.bos_id) for one in made])
        losses.append((scores.nll * scores.weights).sum(axis=1) / scores.weights.sum(axis=1))
        logger.info("%s: %d spans, ratio %d: %.4f nats per token", split, len(spans), ratio, np.mean(losses[-1]))
    files_S = np.array([place.record for place in places])
    return Measured(states_SE, np.array([len(span) for span in spans]), np.stack(losses, axis=1), files_S)


def targets(loss_SN: np.ndarray, margin: float) -> np.ndarray:
    """int64 [spans]: place of the largest ratio whose loss is at most ``margin`` above that of the first."""
    within = loss_SN <= loss_SN[:, :1] + margin
    last: np.ndarray = loss_SN.shape[1] - 1 - np.argmax(within[:, ::-1], axis=1)
    return last


def fit(train: Measured, chosen_on: Measured, ratios: Sequence[int], margin: float) -> RatioHead:
    """The head of the ridge that predicts the targets of ``chosen_on`` best, with thresholds of these spans."""
    mean_E, scale_E = train.states_SE.mean(axis=0), train.states_SE.std(axis=0) + 1e-6
    best: tuple[float, RatioHead] | None = None
    for ridge in RIDGES:
        reached = [targets(train.loss_SN, margin) >= place for place in range(1, len(ratios))]
        inputs = (train.states_SE - mean_E[None]) / scale_E[None]
        weights = np.stack([logistic_regression(inputs, one, ridge) for one in reached], axis=1)
        kernel_EK = weights[:-1] / scale_E[:, None]
        bias_K = weights[-1] - mean_E @ kernel_EK
        empty = np.zeros(0, np.float32)
        head = RatioHead(tuple(ratios), kernel_EK.astype(np.float32), bias_K.astype(np.float32), empty, empty)
        cost = _log_loss(head, chosen_on, margin)
        if best is None or cost < best[0]:
            best = cost, head
    assert best is not None
    return calibrated(best[1], chosen_on)


def calibrated(head: RatioHead, spans: Measured) -> RatioHead:
    """``head`` with thresholds and the latents per token that they give on ``spans``."""
    chances = head.chances(spans.states_SE)
    inner = np.quantile(chances, np.linspace(1, 0, _POINTS - 2), method="lower")
    thresholds = np.array([2.0, *inner, -1.0], np.float32)
    total = spans.tokens_S.sum()
    budgets = [spans.latents(head.choose(spans.states_SE, float(one))).sum() / total for one in thresholds]
    return RatioHead(head.ratios, head.kernel_EK, head.bias_K, thresholds, np.array(budgets, np.float32))


def logistic_regression(inputs_SE: np.ndarray, reached_S: np.ndarray, ridge: float) -> np.ndarray:
    """[E + 1] float64: weights and, last, the bias of a logistic regression, by Newton's method.

    Args:
        inputs_SE: standardised.
        reached_S: bool: what is predicted.
        ridge: weight of half the squared weights in the sum of log losses; a thousandth of it on the bias, so that
            spans that all agree have finite ones.
    """
    inputs = np.append(inputs_SE.astype(np.float64), np.ones((len(inputs_SE), 1)), axis=1)
    penalty = np.append(np.full(inputs.shape[1] - 1, ridge), ridge / 1000)
    weights = np.zeros(inputs.shape[1])
    for _ in range(_ITERATIONS):
        chance_S = 0.5 * (1 + np.tanh(0.5 * inputs @ weights))
        gradient = inputs.T @ (chance_S - reached_S) + penalty * weights
        hessian = (inputs * (chance_S * (1 - chance_S))[:, None]).T @ inputs + np.diag(penalty)
        step = np.linalg.solve(hessian, gradient)
        weights -= step * min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-8:
            break
    return weights


def worth(head: RatioHead, spans: Measured, margin: float) -> JsonObject:
    """What the head's choices cost and save on ``spans``, beside every static ratio at its own budget.

    Returns:
        ``targets`` (share of the spans by ratio), ``right`` (share whose target the head finds at a threshold of one
        half), and by static ratio: ``latents_per_token``, its ``loss_nats``, and of the choices at this budget
        ``adaptive_latents_per_token``, ``adaptive_loss_nats`` and the paired ``difference_nats`` (adaptive less
        static); estimates have standard errors over files.
    """
    place_S = targets(spans.loss_SN, margin)
    chosen_S = np.searchsorted(head.ratios, head.choose(spans.states_SE, 0.5))
    ones, total = np.ones(len(place_S)), spans.tokens_S.sum()
    static: dict[str, JsonObject] = {}
    for number, ratio in enumerate(head.ratios):
        budget = float(spans.latents(np.full(len(ones), ratio)).sum() / total)
        own = head.choose(spans.states_SE, head.threshold(max(budget, float(head.budgets[-1]))))
        loss_S = spans.loss_SN[np.arange(len(ones)), np.searchsorted(head.ratios, own)]
        values = {
            "loss_nats": spans.loss_SN[:, number],
            "adaptive_loss_nats": loss_S,
            "difference_nats": loss_S - spans.loss_SN[:, number],
        }
        static[str(ratio)] = {
            "latents_per_token": budget,
            "adaptive_latents_per_token": float(spans.latents(own).sum() / total),
            **{name: estimate(value, ones, spans.files_S).as_dict() for name, value in values.items()},
        }
    shares = {str(ratio): float((place_S == number).mean()) for number, ratio in enumerate(head.ratios)}
    return {"spans": len(ones), "targets": shares, "right": float((chosen_S == place_S).mean()), "static": static}


def _log_loss(head: RatioHead, spans: Measured, margin: float) -> float:
    chances = np.clip(head.chances(spans.states_SE), 1e-6, 1 - 1e-6)
    reached = targets(spans.loss_SN, margin)[:, None] >= np.arange(1, len(head.ratios))[None]
    return float(-np.where(reached, np.log(chances), np.log1p(-chances)).mean())
