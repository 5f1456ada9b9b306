"""The root of the configuration tree, and the rules that tie its branches together."""

from pydantic import model_validator

from lclm_jax.config.base import Tree, key, required, suggestion
from lclm_jax.config.corpus import CorpusConfig
from lclm_jax.config.data import OBJECTIVES, DataConfig, PackConfig, TokenizerConfig
from lclm_jax.config.devices import Environment, MeshConfig
from lclm_jax.config.model import ModelConfig
from lclm_jax.config.registry.poolings import POOLINGS
from lclm_jax.config.train import EvalConfig, InitConfig, StageConfig, TrainConfig


class Config(Tree):
    """Everything a run depends on."""

    name: str = required("Name of the run: the stem of its YAML file.")
    run_dir: str = key("runs/{name}", "Folder of everything the run writes; {name} is filled in.")
    seed: int = key(0, "Seed of initialisation, data order and span placement.", ge=0)
    corpus: CorpusConfig = key(CorpusConfig(), "Raw text to prepare.")
    tokenizer: TokenizerConfig = required("Tokenizer folders, or the size of one to train.")
    model: ModelConfig = required("Encoder, adapter, decoder and compression.")
    init: InitConfig = key(InitConfig(), "Imported weights that the first stage starts from.")
    data: DataConfig = key(DataConfig(), "Sources, objectives, packing and loading.")
    stages: dict[str, StageConfig] = required("Stages in order; each starts from the last.")
    train: TrainConfig = key(TrainConfig(), "Settings common to all stages.")
    mesh: MeshConfig = key(MeshConfig(), "Devices by axis.")
    environment: Environment = key(
        {}, "Environment variables set before JAX starts; a list is joined by spaces. Never secrets: it is saved."
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
            for ratio in stage.ratios or (self.model.ratio,):
                self._check_pack(name, self.model, ratio)
            planned = self.planned(self.model)
            self._check_pack(name, planned, planned.ratio)
            if stage.ratios and not self.model.pooling_row.any_ratio:
                choices = " or ".join(pooling for pooling, row in POOLINGS.items() if row.any_ratio)
                raise ValueError(
                    f"stages.{name}.ratios={list(stage.ratios)} needs model.pooling={choices}, not"
                    f" {self.model.pooling}: other poolings have weights of one ratio"
                )
        return self.model_copy(update={"stages": {name: self._resolve(name) for name in self.stages}})

    def _check_folders(self) -> None:
        """A URL would become a folder of that name on every machine, lost with it."""
        for name, folder in {
            "run_dir": self.run_dir,
            "train.checkpoint.local_dir": self.train.checkpoint.local_dir,
        }.items():
            if folder is not None and "://" in folder:
                raise ValueError(
                    f"{name}={folder} is a URL, and a run is written to a folder; mount the bucket (gcsfuse with a"
                    " hierarchical namespace, mountpoint-s3, NFS) and name the folder"
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

    def objectives(self, stage: str) -> list[str]:
        """Objectives of the sources of ``stage``, each once, in the order of ``OBJECTIVES``."""
        used = {self.data.sources[name].objective for name in self.stages[stage].sources}
        return [name for name in OBJECTIVES if name in used]
