"""What all stages share: optimizer, checkpoints, supervision, logging, evaluation, imported weights."""

from typing import Literal

from pydantic import model_validator

from lclm_jax.config.base import Tree, key


def parse_skip_range(text: str) -> tuple[int, int]:
    """``"6500-6510"`` or ``"7"`` to inclusive bounds; raises ``ValueError`` on anything else."""
    first, _, last = text.partition("-")
    if not first.isdigit() or (last and not last.isdigit()) or (last and int(last) < int(first)):
        raise ValueError(f'steps {text!r} is not a range; write "FIRST-LAST" with FIRST <= LAST')
    return int(first), int(last or first)


class OptimizerConfig(Tree, role="result"):
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


class CheckpointConfig(Tree, role="logging"):
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
        None,
        "Folder on each machine's own disk for emergency copies between checkpoints; null: none.",
        role="place",
    )
    local_every_steps: int = key(50, "Steps between emergency copies (local_dir).", gt=0)


class StopConfig(Tree, role="logging"):
    """When a run saves and stops by itself, to be started again (exit status 75)."""

    before_end_seconds: float = key(
        300.0, "So long before the cluster job's end (SLURM_JOB_END_TIME, flux, or LCLM_DEADLINE).", ge=0
    )
    cloud_notice: Literal["none", "gce"] = key(
        "none", "gce: also on a maintenance or preemption notice of Google Compute Engine."
    )


class SpikeConfig(Tree, role="logging"):
    """Loss spikes: noticed, and optionally undone."""

    window: int = key(128, "Ordinary steps that the usual loss and its spread are taken from.", gt=3)
    deviations: float | None = key(10.0, "Standard deviations above the median that make a spike; null: off.", gt=0)
    patience: int = key(3, "Steps in a row that must be spikes.", gt=0)
    rewind: bool = key(False, "Go back to the checkpoint before a spike and skip the steps of the spike.")
    max_rewinds: int = key(3, "Rewinds of a stage before the run stops.", gt=0)


class ProbeConfig(Tree, role="logging"):
    """Small held-out measurements during training; lengths and the collection are those of eval."""

    every_steps: int | None = key(
        None, "Steps between probes; there is one at a stage's end, too. null: no probes.", gt=0
    )
    examples: int = key(32, "Examples of each measurement.", gt=0)


class ProcessesConfig(Tree, role="logging"):
    """Time limits of a run of several processes."""

    start_timeout_seconds: int = key(300, "How long processes wait for each other at the start.", gt=0)
    lost_timeout_seconds: int = key(100, "After how long a process that is silent counts as lost.", gt=0)


class TrainConfig(Tree, role="logging"):
    """Settings common to all stages."""

    optimizer: OptimizerConfig = key(OptimizerConfig(), "How gradients become updates.")
    microbatches: int = key(1, "Gradient accumulation of the stages that do not set their own.", role="layout", gt=0)
    gather_once: bool = key(
        False,
        "Gather sharded weights once a step, and not for each pass of each microbatch; they stay in compute_dtype until"
        " its end.",
        role="layout",
        added=True,
    )
    loss_normalisation: Literal["per_token", "per_row"] = key(
        "per_token", "per_token: sum over count of the whole step; per_row: mean of the rows' means.", role="result"
    )
    z_loss: float = key(
        0.0,
        "Weight of the squared log-sum-exp of the logits, which keeps it near zero (PaLM: 1e-4); it is in the gradient,"
        " not in the loss that is reported.",
        role="result",
        ge=0,
    )
    checkpoint: CheckpointConfig = key(CheckpointConfig(), "Checkpoint policy.")
    stop: StopConfig = key(StopConfig(), "When a run saves and stops by itself.")
    spike: SpikeConfig = key(SpikeConfig(), "Loss spikes.")
    probe: ProbeConfig = key(ProbeConfig(), "Evaluation during training.")
    log_every: int = key(20, "Steps between log lines.", gt=0)
    trackers: tuple[Literal["tensorboard", "wandb", "trackio", "ml_goodput"], ...] = key(
        (),
        "Trackers that metrics also go to (ml_goodput: times of steps, to Google Cloud); metrics.jsonl is always"
        " written.",
    )
    processes: ProcessesConfig = key(ProcessesConfig(), "Time limits of a run of several processes.")
    compilation_cache: str | None = key(
        "auto",
        "Folder of compiled programs (also gs://), which a restart finds again; auto: compiled/ in run_dir on"
        " accelerators, none on CPUs; null: none. JAX_COMPILATION_CACHE_DIR wins.",
        role="place",
        added=True,
    )
    profile_steps: str | None = key(None, 'Steps of each stage to trace, such as "10-12"; written to profile/.')
    max_nonfinite_steps: int = key(10, "Consecutive skipped non-finite updates that stop the run.", gt=0)
    data_timeout_seconds: float | None = key(
        600.0, "Longest wait for a batch before the loader is opened again; null: for ever.", gt=0
    )
    watchdog_seconds: float | None = key(
        1800.0, "A process that makes no progress for so long writes its stacks and exits; null: never.", gt=0
    )

    @model_validator(mode="after")
    def _check(self):
        if self.profile_steps is not None:
            parse_skip_range(self.profile_steps)
        return self


class EvalConfig(Tree, role="logging"):
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


class InitConfig(Tree, role="result"):
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
