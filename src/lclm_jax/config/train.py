"""Stages, optimizer, mesh, checkpoints, evaluation."""

from typing import Any, Literal

from pydantic import field_validator, model_validator

from lclm_jax.config.base import Tree, key, required
from lclm_jax.config.data import PackConfig
from lclm_jax.config.devices import ProcessesConfig

PARTS = ("adapter", "encoder", "decoder", "memory_rows", "encoder_lora", "decoder_lora")


class Rates(Tree):
    """Peak learning rate by part; null freezes the part."""

    adapter: float | None = key(None, "Peak learning rate of the adapter; null: frozen.", gt=0)
    encoder: float | None = key(None, "Peak learning rate of the encoder; null: frozen.", gt=0)
    decoder: float | None = key(None, "Peak learning rate of the decoder; null: frozen.", gt=0)
    memory_rows: float | None = key(
        None, "Peak learning rate of the three memory-token rows; null: the decoder's, or 6e-5 if it is frozen.", gt=0
    )
    encoder_lora: float | None = key(None, "Peak learning rate of the encoder's LoRA; null: frozen.", gt=0)
    decoder_lora: float | None = key(None, "Peak learning rate of the decoder's LoRA; null: frozen.", gt=0)


class Decay(Tree):
    """Decoupled weight decay by part; the memory-token rows have none."""

    adapter: float = key(0.01, "Weight decay of the adapter.", ge=0)
    encoder: float = key(0.01, "Weight decay of the encoder.", ge=0)
    decoder: float = key(0.0, "Weight decay of the decoder.", ge=0)
    encoder_lora: float = key(0.0, "Weight decay of the encoder's LoRA.", ge=0)
    decoder_lora: float = key(0.0, "Weight decay of the decoder's LoRA.", ge=0)


class StageConfig(Tree):
    """One stage: what trains, on what, for how long."""

    lr: Rates = required("Peak learning rates by part.")
    steps: int = key(0, "Optimizer steps; 0: as many as tokens takes.", ge=0)
    tokens: int | None = key(
        None, "Decoder positions to train on, padding included; gives the steps where steps is 0.", gt=0
    )
    mixture: dict[str, float] = required("Share of the decoder positions of each source of data.sources; relative.")
    mixture_changes: dict[int, dict[str, float]] = key(
        {}, "Mixtures that replace the first from a step on, by step; they hold from the next block of rows."
    )
    batch_rows: int = key(256, "Packed rows in one optimizer step, over all devices.", gt=0)
    microbatches: int = key(0, "Gradient accumulation: parts that batch_rows is cut into; 0: train.microbatches.", ge=0)
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

    @field_validator("mixture", mode="before")
    @classmethod
    def _without_nulls(cls, mixture: Any) -> Any:
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

    def peak_lr(self, part: str) -> float | None:
        """Peak learning rate of ``part`` (one of ``PARTS``); None if it is frozen."""
        rate = getattr(self.lr, part)
        if part == "memory_rows" and rate is None:
            return self.lr.decoder if self.lr.decoder is not None else 6e-5
        return rate

    def skips(self, step: int) -> bool:
        """Whether update ``step`` (from 0) is skipped."""
        return any(first <= step <= last for first, last in map(parse_skip_range, self.skip_steps))


def parse_skip_range(text: str) -> tuple[int, int]:
    """``"6500-6510"`` or ``"7"`` to inclusive bounds; raises ``ValueError`` on anything else."""
    first, _, last = text.partition("-")
    if not first.isdigit() or (last and not last.isdigit()) or (last and int(last) < int(first)):
        raise ValueError(f'steps {text!r} is not a range; write "FIRST-LAST" with FIRST <= LAST')
    return int(first), int(last or first)


class OptimizerConfig(Tree):
    """How gradients become updates."""

    kind: Literal["adamw", "adafactor", "muon"] = key(
        "adamw", "adafactor: factored second moments, a third of the memory; muon: orthogonalised momentum."
    )
    b1: float = key(0.9, "Decay of the first moment.", ge=0, lt=1)
    b2: float = key(0.95, "Decay of the second moment (muon: of the momentum).", ge=0, lt=1)
    eps: float = key(1e-8, "Added to the denominator.", gt=0)
    clip_norm: float = key(1.0, "Bound of the joint gradient norm over all trainable leaves.", gt=0)
    moment_dtype: Literal["float32", "bfloat16"] = key(
        "float32", "Of first moments and momentum; second moments are float32."
    )
    ema_decay: float | None = key(
        None, "Keep averages of the trainable parameters with this decay per step; null: none.", gt=0, lt=1
    )


class CheckpointConfig(Tree):
    """When checkpoints are written and which are kept."""

    every_steps: int = key(500, "Steps between checkpoints; the last step of a stage is always saved.", gt=0)
    every_minutes: float | None = key(None, "Also save when so many minutes have passed since the last save.", gt=0)
    keep_last: int = key(2, "Newest checkpoints kept per stage.", gt=0)
    keep_every: int | None = key(None, "Also keep checkpoints whose step is a multiple of this.", gt=0)
    max_failed_saves: int | None = key(
        3, "Saves in a row that may fail before the run stops; null: train on without.", gt=0
    )
    retry_seconds: float = key(30.0, "Wait after a failed save before the next try.", gt=0)
    local_dir: str | None = key(
        None, "Folder on each machine's own disk for emergency copies between checkpoints; null: none."
    )
    local_every_steps: int = key(50, "Steps between emergency copies (local_dir).", gt=0)


class StopConfig(Tree):
    """When a run saves and stops by itself, to be started again (exit status 75)."""

    before_end_seconds: float = key(
        300.0, "So long before the cluster job's end (SLURM_JOB_END_TIME, flux, or LCLM_DEADLINE).", ge=0
    )
    cloud_notice: Literal["none", "gce"] = key(
        "none", "gce: also on a maintenance or preemption notice of Google Compute Engine."
    )


class SpikeConfig(Tree):
    """Loss spikes: noticed, and optionally undone."""

    window: int = key(128, "Ordinary steps that the usual loss and its spread are taken from.", gt=3)
    deviations: float | None = key(10.0, "Standard deviations above the median that make a spike; null: off.", gt=0)
    patience: int = key(3, "Steps in a row that must be spikes.", gt=0)
    rewind: bool = key(False, "Go back to the checkpoint before a spike and skip the steps of the spike.")
    max_rewinds: int = key(3, "Rewinds of a stage before the run stops.", gt=0)


class ProbeConfig(Tree):
    """Small held-out measurements during training; lengths and the collection are those of eval."""

    every_steps: int | None = key(
        None, "Steps between probes; there is one at a stage's end, too. null: no probes.", gt=0
    )
    examples: int = key(32, "Examples of each measurement.", gt=0)


class TrainConfig(Tree):
    """Settings common to all stages."""

    optimizer: OptimizerConfig = key(OptimizerConfig(), "How gradients become updates.")
    microbatches: int = key(1, "Gradient accumulation of the stages that do not set their own.", gt=0)
    loss_normalisation: Literal["per_token", "per_row"] = key(
        "per_token", "per_token: sum over count of the whole step; per_row: mean of the rows' means."
    )
    z_loss: float = key(
        0.0,
        "Weight of the squared log-sum-exp of the logits, which keeps it near zero (PaLM: 1e-4); it is in the gradient,"
        " not in the loss that is reported.",
        ge=0,
    )
    checkpoint: CheckpointConfig = key(CheckpointConfig(), "Checkpoint policy.")
    stop: StopConfig = key(StopConfig(), "When a run saves and stops by itself.")
    spike: SpikeConfig = key(SpikeConfig(), "Loss spikes.")
    probe: ProbeConfig = key(ProbeConfig(), "Evaluation during training.")
    log_every: int = key(20, "Steps between log lines.", gt=0)
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = key(
        (), "Trackers that metrics also go to; metrics.jsonl is always written."
    )
    processes: ProcessesConfig = key(ProcessesConfig(), "Time limits of a run of several processes.")
    profile_steps: str | None = key(None, 'Steps of each stage to trace, such as "10-12"; written to profile/.')
    max_nonfinite_steps: int = key(10, "Consecutive skipped non-finite updates that stop the run.", gt=0)
    data_timeout_seconds: float | None = key(
        600.0, "Longest wait for a batch before the loader is opened again; null: for ever.", gt=0
    )
    watchdog_seconds: float | None = key(
        1800.0, "A process that makes no progress for so long writes its stacks and exits; null: never.", gt=0
    )
    poison_steps: tuple[str, ...] = key(
        (), "Steps whose gradients are made NaN, as skip_steps writes them: a drill, used by lclm chaos."
    )

    @model_validator(mode="after")
    def _check(self):
        if self.profile_steps is not None:
            parse_skip_range(self.profile_steps)
        return self


class EvalConfig(Tree):
    """Held-out measurements of the context gain and of verbatim repetition."""

    collection: str = key("documents", "Prepared collection of documents that is measured.")
    examples: int = key(512, "Examples of each measurement.", gt=1)
    context_tokens: int = key(64, "Tokens of context: compressed, raw, or left out.", gt=0)
    continuation_tokens: int = key(64, "Tokens whose loss is measured.", gt=0)
    repetition_tokens: int = key(64, "Tokens of a span to repeat.", gt=0)
    batch_rows: int = key(32, "Rows evaluated at once.", gt=0)
    free_running_examples: int = key(64, "Repetitions that are also generated greedily; 0: none.", ge=0)
    generations: int = key(4, "Greedy generations from compressed context in the report.", ge=0)
    max_new_tokens: int = key(64, "Tokens of a generation.", gt=0)


class InitConfig(Tree):
    """Folders in the Hugging Face layout that the first stage starts from; what none gives starts at random."""

    encoder: str | None = key(None, "Imported backbone (lclm import --role encoder) that the encoder starts from.")
    decoder: str | None = key(None, "Imported backbone (lclm import --role decoder) that the decoder starts from.")
    lclm: str | None = key(None, "Complete imported or exported LCLM that the whole model starts from.")
    run: str | None = key(
        None, "Run to start from: its folder, FOLDER@STAGE or FOLDER@STAGE@STEP; by default its newest checkpoint."
    )

    @model_validator(mode="after")
    def _check(self):
        for name, whole in (("lclm", self.lclm), ("run", self.run)):
            others = {"encoder": self.encoder, "decoder": self.decoder, "lclm": self.lclm, "run": self.run}
            given = [f"init.{other}" for other, value in others.items() if value and other != name]
            if whole and given:
                raise ValueError(
                    f"init.{name}={whole!r} gives all weights, so {' and '.join(given)} must be null; set one or the"
                    " other"
                )
        return self

    @property
    def given(self) -> bool:
        """Whether any part starts from imported weights."""
        return bool(self.encoder or self.decoder or self.lclm or self.run)
