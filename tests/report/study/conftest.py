"""Made-up results of a study, for the report; no number of them was measured."""

import math
import zlib

import numpy as np
import pytest

from lclm_jax.ablate.results import Cost, VariantResult
from lclm_jax.ablate.variants import Variant
from lclm_jax.config.study import PublishedConfig, StudyConfig

SEEDS = (0, 1, 2, 3)


def made_up_result(variant: Variant, shift: float, cost: float = 1.0, diverges: tuple[int, ...] = ()) -> VariantResult:
    """Losses around 2.5 + ``shift``: seeds differ by 0.05, and the differences between variants by 0.01."""
    noise = np.random.default_rng(zlib.crc32(variant.name.encode())).normal(size=(2, len(SEEDS)))
    seeds = 0.05 * np.random.default_rng(7).normal(size=len(SEEDS))
    bad = np.array([math.nan if seed in diverges else 0.0 for seed in SEEDS])
    loss = 2.5 + shift + seeds + 0.01 * noise[0]
    steps = np.arange(0, 1000, 20)
    rows = np.random.default_rng(3).normal(size=(len(SEEDS), len(steps)))
    curves = loss[:, None] + 4 * np.exp(-steps / 120) + 0.08 * rows
    curves[:, 30:] += bad[:, None]
    loss += bad
    depth = 0.95 - shift - 0.4 * (1 - np.exp(-np.arange(32) / 20)) + 0.02 * noise[1][:, None]
    return VariantResult(
        variant=variant.name,
        overrides=variant.overrides,
        config_hash="made-up",
        seeds=SEEDS,
        measures={
            "held_out_loss": loss.tolist(),
            "train_loss": (loss - 0.2).tolist(),
            "latent_loss": (loss + 0.01 * noise[1]).tolist(),
            "raw_loss": (2.4 + seeds).tolist(),
            "no_context_loss": (2.9 + 0.02 * noise[0]).tolist(),
            "repetition_loss": (loss - 2.0).tolist(),
            "needle_loss": (loss + noise[1]).tolist(),
            "recovered_share": (0.8 - shift + 0.05 * noise[1]).tolist(),
            "verbatim_accuracy": depth.mean(1).tolist(),
            "needle_accuracy": (0.3 + 0.1 * noise[0]).tolist(),
        },
        curves={"steps": [steps.tolist()], "train_loss": curves.tolist()},
        verbatim_by_depth=depth.clip(0, 1).tolist(),
        cost=Cost(
            encoder_parameters=1_234_567,
            adapter_parameters=45_678,
            decoder_parameters=2_345_678,
            encoder_flops=2.5e6 * cost,
            decoder_flops=1.1e6,
            train_flops=3.2e12,
            raw_tokens_per_second=12345.6 / cost,
            peak_memory_bytes=int(1.2e9 * cost),
            positions_per_raw_token=0.2531,
        ),
        seconds={"train": 61.0, "compile": 9.5, "evaluate": 12.0},
        environment={"device": "cpu", "jax": "0.10.2"},
    )


def made_up(study: StudyConfig, variants: list[Variant], shifts: dict[str, float]) -> dict[str, VariantResult]:
    return {
        one.name: made_up_result(one, shifts[one.name], 1 + 0.5 * number)
        for number, one in enumerate(variants)
        if one.name in shifts
    }


def factor_rows(baseline: dict[str, str], changes: list[tuple[str, str]]) -> list[Variant]:
    rows = [Variant("baseline", {}, baseline)]
    return rows + [
        Variant(f"{factor}={level}", {f"model.{factor}": level}, baseline | {factor: level})
        for factor, level in changes
    ]


@pytest.fixture(scope="session")
def grid():
    """Mask and overlap crossed, one published source; all have run."""
    study = StudyConfig(
        name="mask-overlap",
        title="Does the mask matter once the overlap is the same?",
        config="base.yaml",
        design="grid",
        factors={"mask": ["causal", "bidirectional"], "overlap": [0, 8]},
        seeds=SEEDS,
        smallest_effect=0.05,
        published=(
            PublishedConfig(source="A paper", measure="loss at 16x", values={"baseline": 1.0, "both": 1.2, "gone": 2}),
        ),
    )
    levels = {"mask": "causal", "overlap": "0"}
    variants = [
        Variant("baseline", {}, levels),
        Variant("mask=bidirectional", {"mask": "bidirectional"}, levels | {"mask": "bidirectional"}),
        Variant("overlap=8", {"overlap": 8}, levels | {"overlap": "8"}),
        Variant("both", {"mask": "bidirectional", "overlap": 8}, {"mask": "bidirectional", "overlap": "8"}),
    ]
    shifts = {"baseline": 0.0, "mask=bidirectional": 0.1, "overlap=8": -0.2, "both": 0.3}
    return study, variants, made_up(study, variants, shifts)


@pytest.fixture(scope="session")
def wide():
    """Fourteen variants with long names, one of which diverged in a seed and one has not run."""
    base = {"pooling": "mean", "mask": "causal", "window": "64", "adapter.hidden_multiplier": "2"}
    changes = [("pooling", name) for name in ("concat", "eos", "attention with 4 learned queries", "slots", "none")]
    changes += [("mask", "bidirectional"), ("mask", "block"), ("window", "16"), ("window", "32"), ("window", "256")]
    changes += [("adapter.hidden_multiplier", "4")]
    variants = factor_rows(base, changes)
    long = "ARC-Encoder-style pooling before the last two layers"
    variants += [Variant(long, {"model.pooling": "arc"}, base), Variant("CompLLM", {"model.window": "segment"}, base)]
    study = StudyConfig(
        name="pooling-mask-window",
        title="Which pooling, mask and window work best from scratch?",
        config="../demo.yaml",
        settings={"model.ratio": 4},
        factors={"pooling": ["mean", "concat"], "mask": ["causal", "bidirectional"]},
        variants={one.name: dict(one.overrides) for one in variants[-2:]},
        seeds=SEEDS,
        steps=1000,
        together=True,
        smallest_effect=0.02,
        published=(
            PublishedConfig(
                source="Table 7 of a paper",
                measure="training loss, 16x, from scratch",
                values={
                    "baseline": 1.169,
                    "pooling=concat": 1.171,
                    "mask=bidirectional": 1.191,
                    "window=16": 1.183,
                    "window=256": 1.172,
                    "adapter.hidden_multiplier=4": 1.1,
                },
            ),
        ),
    )
    steps = (0.0, 0.004, 0.08, -0.03, 0.05, 0.4, 0.002, 0.03, 0.06, 0.02, 0.001, -0.004, -0.01)
    results = made_up(study, variants, {one.name: shift for one, shift in zip(variants, steps, strict=False)})
    broken = variants[5]
    results[broken.name] = made_up_result(broken, 0.4, diverges=(1,))
    return study, variants, results
