"""Parameters of a run's checkpoints, for evaluation, generation and export."""

import jax
from jax.sharding import Mesh

from lclm_jax.config import Config, RunPaths
from lclm_jax.config.base import suggestion
from lclm_jax.errors import LclmError
from lclm_jax.model.lclm import abstract_params
from lclm_jax.parallel import use_mesh
from lclm_jax.train.checkpoints.checkpoint import CheckpointError, Checkpoints
from lclm_jax.train.checkpoints.lazy_checkpoint import LazyCheckpoint
from lclm_jax.train.checkpoints.provenance import checkpoints_folder, differing_keys
from lclm_jax.train.core.initial_state import params_shardings, with_fresh_lora, without_missing_lora
from lclm_jax.types import JsonObject, Params, PyTree


def load_params(
    config: Config, stage: str | None = None, step: int | None = None, mesh: Mesh | None = None, ema: bool = False
) -> Params:
    """Parameters of a checkpoint in ``model.param_dtype``, for evaluation and generation.

    LoRA that the model got after that checkpoint was written is fresh: it changes nothing.

    Args:
        config: the run.
        stage: a stage; None: the last one that has a checkpoint.
        step: a step of the stage that has a checkpoint; None: the newest.
        mesh: where the arrays lie, sharded; None: NumPy arrays on the host.
        ema: read the averages of the parameters that the stage trained (``train.optimizer.ema_decay``).

    Raises:
        LclmError: there is no such checkpoint, it is damaged or has no averages (``CheckpointError``), or it is of
            another model.
    """
    stage, step = latest_checkpoint(config, stage, step)
    abstract = abstract_params(config.model)
    if mesh is not None:
        abstract = _placed(config, mesh)
    folder = checkpoints_folder(config, stage)
    with Checkpoints(folder) as checkpoints:
        _check_model(config, stage, checkpoints.meta(step))
        abstract = without_missing_lora(abstract, config.model, lambda: LazyCheckpoint(folder / str(step)).shapes)
        params = (
            LazyCheckpoint(folder / str(step), ema).placed(abstract)
            if ema
            else checkpoints.restore_params(step, abstract)
        )
    return with_fresh_lora(params, config.model, config.seed, mesh)


def open_params(config: Config, stage: str | None = None, step: int | None = None, ema: bool = False) -> LazyCheckpoint:
    """Parameters of a checkpoint to be read piece by piece; arguments and errors as ``load_params``."""
    stage, step = latest_checkpoint(config, stage, step)
    folder = checkpoints_folder(config, stage)
    with Checkpoints(folder) as checkpoints:
        _check_model(config, stage, checkpoints.meta(step))
    return LazyCheckpoint(folder / str(step), ema)


def latest_checkpoint(config: Config, stage: str | None = None, step: int | None = None) -> tuple[str, int]:
    """(stage, step) of the checkpoint that ``load_params`` reads; raises ``LclmError`` if there is none."""
    if stage is not None and stage not in config.stages:
        raise LclmError(f"stage {stage!r} is unknown; {suggestion(stage, config.stages)}")
    for name in [stage] if stage else reversed(config.stages):
        with Checkpoints(checkpoints_folder(config, name)) as checkpoints:
            steps = checkpoints.steps()
        if step is not None and stage is not None and step not in steps:
            known = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(f"stage {stage} has no checkpoint of step {step}; it has: {known}")
        if steps:
            return name, steps[-1] if step is None else step
    where = checkpoints_folder(config, stage) if stage else RunPaths(config).root
    raise CheckpointError(f"{where} has no checkpoint; train first")


def _placed(config: Config, mesh: Mesh) -> PyTree:
    """Shapes of the parameters with their shardings on ``mesh``."""
    with use_mesh(mesh):
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract_params(config.model),
            params_shardings(config.model, mesh),
        )


def _check_model(config: Config, stage: str, meta: JsonObject) -> None:
    stored = {
        name: value for name, value in meta["config"]["model"].items() if name in ("encoder", "decoder", "adapter")
    }
    # Parsed again, so that a key that this version added has its default on both sides.
    stored = {
        name: type(getattr(config.model, name))(**value).model_dump(mode="json") for name, value in stored.items()
    }
    now = config.model.model_dump(mode="json")
    # LoRA may be added to a model; what it drops in training is no part of its shape.
    loras = {tower: lora for tower, lora in meta["config"]["model"].get("lora", {}).items() if lora}
    stored["lora"] = {tower: lora | {"dropout": None} for tower, lora in loras.items()}
    now["lora"] = {tower: now["lora"][tower] and now["lora"][tower] | {"dropout": None} for tower in loras}
    differences = list(differing_keys(stored, {name: now[name] for name in stored}))
    if differences:
        key, old, new = differences[0]
        raise CheckpointError(
            f"the checkpoints of stage {stage} are of another model (model.{key}: {old!r}, now {new!r}); use the run's"
            f" own configuration, {RunPaths(config).resolved_config}"
        )
