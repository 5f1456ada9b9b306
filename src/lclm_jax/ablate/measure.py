"""Measurement of a trained variant, on held-out examples that are the same for every variant and seed."""

import numpy as np
from jax.sharding import Mesh

from lclm_jax.config import Config
from lclm_jax.eval.probe import Probe, Scored, trained_weights
from lclm_jax.text.tokenizer import Tokenizers
from lclm_jax.types import Params


class Measurer:
    """Evaluates parameters of a variant on the study's held-out examples (``train.probe.examples`` of each kind).

    Args:
        config: the variant.
        base: the baseline: its last stage's sources, by their weights there, are what ``held_out_loss`` averages.
        tokenizers: the study's.
        mesh: where the parameters lie.

    Raises:
        LclmError: the held-out split has no file long enough.
    """

    def __init__(self, config: Config, base: Config, tokenizers: Tokenizers, mesh: Mesh):
        stage = list(base.stages)[-1]
        weights = base.stages[stage].mixtures[-1][1]
        self._weights = {f"loss_nats/{name}": weight for name, weight in weights.items()}
        measured = config.model_copy(update={"stages": base.stages, "data": base.data})
        self._probe = Probe(measured, stage, tokenizers, mesh)

    def __call__(self, params: Params) -> tuple[dict[str, float], list[float]]:
        """(measures by their names in ``results.MEASURES``, accuracy of verbatim repetition by position)."""
        scored = self._probe.score(params)
        none, latents, raw = (_loss(scored[f"context_nats/{name}"]) for name in ("none", "latents", "raw"))
        values = {"latent_loss": latents, "raw_loss": raw, "no_context_loss": none}
        values["recovered_share"] = (none - latents) / (none - raw) if none > raw else float("nan")
        held_out = {name: _trained_loss(scored[name]) for name in self._weights if name in scored}
        total = sum(self._weights[name] for name in held_out)
        values["held_out_loss"] = sum(self._weights[name] * loss for name, loss in held_out.items()) / total
        values["repetition_loss"] = _loss(scored["verbatim"])
        values["verbatim_accuracy"] = _accuracy(scored["verbatim"])
        values["needle_loss"] = _loss(scored["needle"])
        values["needle_accuracy"] = _accuracy(scored["needle"])
        return values, _by_position(scored["verbatim"])


def _loss(scored: Scored) -> float:
    return _mean(scored.scores.nll, scored.scores.weights)


def _trained_loss(scored: Scored) -> float:
    return _mean(scored.scores.nll, trained_weights(scored.targets, scored.scores))


def _accuracy(scored: Scored) -> float:
    return _mean(scored.scores.hits, scored.scores.weights)


def _by_position(scored: Scored) -> list[float]:
    """Share of right tokens at each position that any target has."""
    weights = scored.scores.weights.sum(axis=0)
    used = weights > 0
    return ((scored.scores.hits * scored.scores.weights).sum(axis=0)[used] / weights[used]).tolist()


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    return float((values * weights).sum() / weights.sum())
