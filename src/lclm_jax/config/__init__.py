"""The configuration tree: every key declared once, with its default, limits, role and documentation."""

from lclm_jax.config.base import Key, Role, describe_keys, first_release_values, result_values, role_of
from lclm_jax.config.corpus import CollectionConfig, ColumnsConfig, CorpusConfig
from lclm_jax.config.data import OBJECTIVES, DataConfig, PackConfig, RowsFor, SourceConfig, SpanConfig, TokenizerConfig
from lclm_jax.config.devices import MeshConfig, apply_environment
from lclm_jax.config.load import (
    ConfigError,
    config_hash,
    dump_config,
    load_config,
    load_study,
    override,
    parse_config,
    read_yaml,
)
from lclm_jax.config.model import (
    AdapterConfig,
    BackboneConfig,
    LoraConfig,
    LoraTowers,
    ModelConfig,
    QuantizedTowers,
    RopeScaling,
)
from lclm_jax.config.paths import RunPaths
from lclm_jax.config.study import PublishedConfig, StudyConfig
from lclm_jax.config.train import (
    CheckpointConfig,
    EvalConfig,
    InitConfig,
    OptimizerConfig,
    ProcessesConfig,
    TrainConfig,
)
from lclm_jax.config.tree import PARTS, Config, StageConfig

__all__ = [
    "OBJECTIVES",
    "PARTS",
    "AdapterConfig",
    "BackboneConfig",
    "CheckpointConfig",
    "CollectionConfig",
    "ColumnsConfig",
    "Config",
    "ConfigError",
    "CorpusConfig",
    "DataConfig",
    "EvalConfig",
    "InitConfig",
    "Key",
    "LoraConfig",
    "LoraTowers",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PackConfig",
    "ProcessesConfig",
    "PublishedConfig",
    "QuantizedTowers",
    "Role",
    "RopeScaling",
    "RowsFor",
    "RunPaths",
    "SourceConfig",
    "SpanConfig",
    "StageConfig",
    "StudyConfig",
    "TokenizerConfig",
    "TrainConfig",
    "apply_environment",
    "config_hash",
    "describe_keys",
    "dump_config",
    "first_release_values",
    "load_config",
    "load_study",
    "override",
    "parse_config",
    "read_yaml",
    "result_values",
    "role_of",
]
