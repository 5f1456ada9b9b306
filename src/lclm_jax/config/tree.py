"""The root of the configuration tree, its stages, and the rules that tie its branches together."""

from typing import Literal

from pydantic import field_validator, model_validator

from lclm_jax.config.base import Tree, key, required, suggestion
from lclm_jax.config.corpus import CorpusConfig
from lclm_jax.config.data import OBJECTIVES, DataConfig, PackConfig, TokenizerConfig
from lclm_jax.config.devices import Environment, MeshConfig
from lclm_jax.config.distill import SAME, DistillConfig
from lclm_jax.config.model import ModelConfig
from lclm_jax.config.registry.poolings import POOLINGS
from lclm_jax.config.train import EvalConfig, InitConfig, TrainConfig, parse_skip_range
from lclm_jax.paths import RUN_SCHEMES, is_remote

PARTS = ("adapter", "encoder", "decoder", "memory_rows", "encoder_lora", "decoder_lora")


class Rates(Tree, role="result"):
    """Peak learning rate by part; null freezes the part."""

    adapter: float | None = key(None, "Peak learning rate of the adapter; null: frozen.", gt=0)
    encoder: float | None = key(None, "Peak learning rate of the encoder; null: frozen.", gt=0)
    decoder: float | None = key(None, "Peak learning rate of the decoder; null: frozen.", gt=0)
    memory_rows: float | None = key(
        None, "Peak learning rate of the three memory-token rows; null: the decoder's, or 6e-5 if it is frozen.", gt=0
    )
    encoder_lora: float | None = key(None, "Peak learning rate of the encoder's LoRA; null: frozen.", gt=0)
    decoder_lora: float | None = key(None, "Peak learning rate of the decoder's LoRA; null: frozen.", gt=0)


class Decay(Tree, role="result"):
    """Decoupled weight decay by part; the memory-token rows have none."""

    adapter: float = key(0.01, "Weight decay of the adapter.", ge=0)
    encoder: float = key(0.01, "Weight decay of the encoder.", ge=0)
    decoder: float = key(0.0, "Weight decay of the decoder.", ge=0)
    encoder_lora: float = key(0.0, "Weight decay of the encoder's LoRA.", ge=0)
    decoder_lora: float = key(0.0, "Weight decay of the decoder's LoRA.", ge=0)


class StageConfig(Tree, role="result"):
    """One stage: what trains, on what, for how long."""

    lr: Rates = required("Peak learning rates by part.")
    steps: int = key(0, "Optimizer steps; 0: as many as tokens takes.", ge=0)
    tokens: int | None = key(
        None,
        "Decoder positions to train on, padding included; gives the steps where steps is 0.",
        role="logging",
        gt=0,
    )
    mixture: dict[str, float] = required("Share of the decoder positions of each source of data.sources; relative.")
    mixture_changes: dict[int, dict[str, float]] = key(
        {}, "Mixtures that replace the first from a step on, by step; they hold from the next block of rows."
    )
    batch_rows: int = key(256, "Packed rows in one optimizer step, over all devices.", gt=0)
    microbatches: int = key(
        0, "Gradient accumulation: parts that batch_rows is cut into; 0: train.microbatches.", role="layout", ge=0
    )
    warmup_steps: int | None = key(None, "Steps of linear warm-up; wins over warmup_share.", ge=0)
    warmup_share: float = key(0.05, "Warm-up as a share of the steps.", ge=0, le=1)
    schedule: Literal["cosine", "constant", "wsd"] = key(
        "cosine", "Shape after the warm-up; wsd: stable, then a linear decay over the last decay_share of the steps."
    )
    min_lr: float = key(1e-6, "Learning rate at the end of the cosine or the decay.", ge=0)
    decay_share: float = key(0.2, "Share of the steps that the decay takes (wsd).", gt=0, le=1)
    weight_decay: Decay = key(Decay(), "Decoupled weight decay by part.")
    ratios: tuple[int, ...] = key(
        (),
        "Ratios N of which each step draws one (mean or attention pooling); none: model.ratio. Twice in the list:"
        " twice as often.",
    )
    skip_steps: tuple[str, ...] = key((), 'Inclusive ranges such as "6500-6510": advance data and schedule only.')
    pack: PackConfig | None = key(None, "Row layout of this stage; null: data.pack.")
    from_scratch: bool = key(False, "Start from random weights instead of the previous stage.")
    distill: DistillConfig | None = key(
        None, "Distillation from the decoder that reads the raw text; null: cross-entropy alone.", added=True
    )

    @field_validator("mixture", mode="before")
    @classmethod
    def _without_nulls(cls, mixture: object) -> object:
        """A YAML that is merged over another takes a source out by giving it null."""
        if isinstance(mixture, dict):
            return {name: weight for name, weight in mixture.items() if weight is not None}
        return mixture

    @model_validator(mode="after")
    def _check(self):
        if not self.mixture or any(w <= 0 for w in self.mixture.values()):
            raise ValueError(f"mixture={self.mixture} needs at least one source, every weight above zero")
        for step, mixture in self.mixture_changes.items():
            if step <= 0 or not mixture or any(w <= 0 for w in mixture.values()):
                raise ValueError(
                    f"mixture_changes[{step}]={mixture} needs a step above 0 and at least one source, every weight"
                    " above zero"
                )
        if all(getattr(self.lr, part) is None for part in PARTS if part != "memory_rows"):
            raise ValueError(
                "the stage trains nothing; give lr.adapter, lr.encoder, lr.decoder, lr.encoder_lora or lr.decoder_lora"
                " a learning rate"
            )
        if self.ratios and self.distill is not None and self.distill.offline is not None:
            raise ValueError("logits are stored for rows of one ratio; remove ratios, or distill.offline and .top_k")
        if not self.steps and self.tokens is None:
            raise ValueError("the stage has no length; set steps, or tokens")
        for text in self.skip_steps:
            parse_skip_range(text)
        return self

    def resolved(self, row_length: int, microbatches: int) -> "StageConfig":
        """The stage with the values that zeros leave open.

        Args:
            row_length: decoder positions of a row: gives ``steps`` by ``tokens``, to the nearest step, at least one.
            microbatches: ``train.microbatches``.
        """
        parts = self.microbatches or microbatches
        if self.batch_rows % parts:
            raise ValueError(f"batch_rows={self.batch_rows} is not a multiple of microbatches={parts}; change one")
        steps = self.steps or max(1, round((self.tokens or 0) / (self.batch_rows * row_length)))
        return self.model_copy(update={"steps": steps, "microbatches": parts})

    @property
    def mixtures(self) -> list[tuple[int, dict[str, float]]]:
        """(step, mixture) of each mixture in the order of the steps that they begin with."""
        return [(0, self.mixture), *sorted(self.mixture_changes.items())]

    @property
    def sources(self) -> list[str]:
        """Names of the sources of all mixtures, each once."""
        return list(dict.fromkeys(name for _, mixture in self.mixtures for name in mixture))

    @property
    def warmup(self) -> int:
        """Warm-up in steps."""
        return self.warmup_steps if self.warmup_steps is not None else round(self.steps * self.warmup_share)

    @property
    def teacher_copied(self) -> bool:
        """Whether a step needs weights of a teacher beside the model's own."""
        if self.distill is None or self.distill.offline is not None:
            return False
        trains = any(self.peak_lr(part) is not None for part in ("decoder", "decoder_lora"))
        return trains or self.distill.teacher != SAME

    def peak_lr(self, part: str) -> float | None:
        """Peak learning rate of ``part`` (one of ``PARTS``); None if it is frozen."""
        rate = getattr(self.lr, part)
        if part == "memory_rows" and rate is None:
            return self.lr.decoder if self.lr.decoder is not None else 6e-5
        return rate


class Config(Tree):
    """Everything a run depends on."""

    name: str = required("Name of the run: the stem of its YAML file.", role="logging")
    run_dir: str = key("runs/{name}", "Folder of everything the run writes; {name} is filled in.", role="place")
    seed: int = key(0, "Seed of initialisation, data order and span placement.", role="result", ge=0)
    corpus: CorpusConfig = key(CorpusConfig(), "Raw text to prepare.")
    tokenizer: TokenizerConfig = required("Tokenizer folders, or the size of one to train.")
    model: ModelConfig = required("Encoder, adapter, decoder and compression.")
    init: InitConfig = key(InitConfig(), "Imported weights that the first stage starts from.")
    data: DataConfig = key(DataConfig(), "Sources, objectives, packing and loading.")
    stages: dict[str, StageConfig] = required("Stages in order; each starts from the last.")
    train: TrainConfig = key(TrainConfig(), "Settings common to all stages.")
    mesh: MeshConfig = key(MeshConfig(), "Devices by axis.")
    environment: Environment = key(
        {},
        "Environment variables set before JAX starts; a list is joined by spaces. Never secrets: it is saved.",
        role="layout",
    )
    eval: EvalConfig = key(EvalConfig(), "Held-out measurements.")

    @model_validator(mode="after")
    def _check(self):
        self._check_folders()
        if not self.stages:
            raise ValueError("stages is empty; name at least one stage")
        for name, stage in self.stages.items():
            for source in stage.sources:
                if source not in self.data.sources:
                    raise ValueError(
                        f"stages.{name}.mixture names source {source!r}, which data.sources lacks;"
                        f" {suggestion(source, self.data.sources)}"
                    )
            self._check_lora(name, stage)
            self._check_span_ratios(name, stage)
            for ratio in stage.ratios or (self.model.alignment,):
                self._check_pack(name, self.model, ratio)
            planned = self.planned(self.model)
            self._check_pack(name, planned, planned.alignment)
            if stage.ratios and not self.model.pooling_row.any_ratio:
                choices = " or ".join(pooling for pooling, row in POOLINGS.items() if row.any_ratio)
                raise ValueError(
                    f"stages.{name}.ratios={list(stage.ratios)} needs model.pooling={choices}, not"
                    f" {self.model.pooling}: other poolings have weights of one ratio"
                )
        return self.model_copy(update={"stages": {name: self._resolve(name) for name in self.stages}})

    def _check_folders(self) -> None:
        """A URL that cannot be written would become a folder of that name on every machine, lost with it."""
        scheme, colon, _ = self.run_dir.partition("://")
        if colon and scheme not in RUN_SCHEMES:
            known = " or ".join(f"{name}://" for name in RUN_SCHEMES)
            raise ValueError(
                f"run_dir={self.run_dir}: checkpoints cannot be written to {scheme}://; use {known}, or a folder on a"
                " file system that all machines share"
            )
        local = self.train.checkpoint.local_dir
        if local is not None and is_remote(local):
            raise ValueError(
                f"train.checkpoint.local_dir={local} is a URL, and it is for each machine's own disk; name a folder"
                " there"
            )

    def _resolve(self, name: str) -> StageConfig:
        try:
            return self.stages[name].resolved(self.pack(name).row_length, self.train.microbatches)
        except ValueError as error:
            raise ValueError(f"stages.{name}: {error}") from None

    def _check_lora(self, name: str, stage: StageConfig) -> None:
        for tower in ("encoder", "decoder"):
            rate = stage.peak_lr(f"{tower}_lora")
            if rate is not None and getattr(self.model.lora, tower) is None:
                raise ValueError(
                    f"stages.{name}.lr.{tower}_lora={rate} trains a LoRA that the model lacks; set"
                    f" model.lora.{tower}, for example to {{rank: 16}}"
                )

    def _check_span_ratios(self, name: str, stage: StageConfig) -> None:
        known = self.model.span_ratios
        if known and stage.ratios:
            raise ValueError(
                f"stages.{name}.ratios={list(stage.ratios)} draws one ratio for a step, and model.span_ratios="
                f"{list(known)} one for every span; remove one of the two"
            )
        if known and self.data.rows_for.ratio is not None:
            raise ValueError(
                f"data.rows_for.ratio={self.data.rows_for.ratio} plans rows for one ratio, and model.span_ratios="
                f"{list(known)} gives every span its own; remove one of the two"
            )
        for source in stage.sources:
            ratio = self.data.sources[source].spans.ratio
            if ratio is not None and ratio not in known:
                raise ValueError(
                    f"data.sources.{source}.spans.ratio={ratio} is not one of model.span_ratios={list(known)}; add it"
                    " there, or leave it out"
                )

    def _check_pack(self, stage: str, model: ModelConfig, ratio: int) -> None:
        pack = self.pack(stage)
        markers = model.window // ratio if model.has_markers else 0
        right = model.overlap if model.mask == "bidirectional" else 0
        # The pooled part starts at a multiple of the ratio, so its left context may begin after a gap.
        left = -(-model.overlap // ratio) * ratio
        needed = left + model.window + right + markers
        if pack.encoder_row_length % ratio or model.window % ratio:
            raise ValueError(
                f"encoder_row_length={pack.encoder_row_length} (stage {stage}) or model.window={model.window} is not a"
                f" multiple of ratio={ratio}; latent slots are groups of ratio positions: use a multiple"
            )
        if pack.encoder_row_length < needed:
            raise ValueError(
                f"encoder_row_length={pack.encoder_row_length} (stage {stage}) is below {needed}, what one window"
                f" of {model.window} takes with its context and markers; raise it or lower model.window"
            )

    def planned(self, model: ModelConfig) -> ModelConfig:
        """What rows for ``model`` are planned with: ``model``, or as ``data.rows_for`` says."""
        return model.model_copy(update=self.data.rows_for.given)

    def pack(self, stage: str) -> PackConfig:
        """Row layout of ``stage``."""
        return self.stages[stage].pack or self.data.pack

    def twin_length(self, stage: str) -> int | None:
        """Decoder positions of a row of raw text beside each packed row of ``stage``; None: it has none."""
        distill, pack = self.stages[stage].distill, self.pack(stage)
        if distill is None:
            return None
        return distill.twin_length(pack.row_length, pack.encoder_rows * pack.encoder_row_length)

    def teacher_sizes(self, stage: str) -> tuple[int, int | None, int | None]:
        """(S, S', K) of what distillation adds to a batch of ``stage``: the arguments of ``batch.teacher_shapes``."""
        distill = self.stages[stage].distill
        return self.pack(stage).row_length, self.twin_length(stage), None if distill is None else distill.top_k

    def objectives(self, stage: str) -> list[str]:
        """Objectives of the sources of ``stage``, each once, in the order of ``OBJECTIVES``."""
        used = {self.data.sources[name].objective for name in self.stages[stage].sources}
        return [name for name in OBJECTIVES if name in used]
