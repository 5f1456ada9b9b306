"""The parameters that a stage begins with, and those of the decoder that teaches it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from lclm_jax.config import Config, InitConfig, load_config, result_values
from lclm_jax.config.distill import SAME
from lclm_jax.data.loading.teacher_rows import TeacherStore
from lclm_jax.errors import LclmError
from lclm_jax.paths import to_path
from lclm_jax.text.run_tokenizers import load_tokenizers
from lclm_jax.text.tokenizer import Tokenizers
from lclm_jax.train.checkpoints.provenance import parent_of, provenance, starts_from_imports
from lclm_jax.train.checkpoints.run_params import latest_checkpoint, load_params
from lclm_jax.train.core.initial_state import random_params, with_fresh_lora
from lclm_jax.train.core.loss import teacher_model
from lclm_jax.types import JsonObject, Params

logger = logging.getLogger(__name__)

ReadImports = Callable[[Config, Mesh], Params]
"""(config, mesh) -> sharded parameters from the folders of ``config.init``."""


class Start(NamedTuple):
    """What parameters are made with."""

    mesh: Mesh
    tokenizers: Tokenizers
    read_imports: ReadImports | None
    """None: nothing may be imported."""


def starting_params(config: Config, stage: str, start: Start) -> Params:
    """The sharded parameters that ``stage`` begins with."""
    mesh, parent = start.mesh, parent_of(config, stage)
    if starts_from_imports(config, stage) and config.init.run:
        return _params_of_run(config, start.tokenizers, mesh)
    if starts_from_imports(config, stage):
        plain = config.model_copy(update={"model": config.model.plain})
        return with_fresh_lora(_imported(plain, start), config.model, config.seed, mesh)
    if parent is None:
        return random_params(config.model, config.seed, mesh)
    return load_params(config, parent, config.stages[parent].steps, mesh)


def _imported(config: Config, start: Start) -> Params:
    if start.read_imports is None:
        raise LclmError("config.init names imported weights and no reader was given; pass read_imports")
    return start.read_imports(config, start.mesh)


def teacher_params(config: Config, stage: str, start: Start) -> Params:
    """The sharded decoder that teaches ``stage``: that of a folder, or the one that the stage begins with."""
    distill = config.stages[stage].distill
    assert distill is not None, "the stage is distilled"
    if distill.teacher == SAME:
        decoder: Params = starting_params(config, stage, start)["decoder"]
        return decoder
    model = teacher_model(config.model, distill)
    # The other parts that a reader of whole models makes are thrown away: let them be small.
    small = model.encoder.model_copy(update={"num_layers": 1, "vocab_size": 8})
    alone = {
        "model": model.model_copy(update={"encoder": small, "pool_before_last": 0}),
        "init": InitConfig(decoder=distill.teacher),
    }
    read: Params = _imported(config.model_copy(update=alone), start)["decoder"]
    return read


def teacher_origin(config: Config, stage: str) -> JsonObject:
    """What the weights of the teacher of ``stage`` follow from, as plain values: stored beside its logits."""
    distill = config.stages[stage].distill
    assert distill is not None, "the stage is distilled"
    values: JsonObject = {"distill": result_values(distill.model_copy(update={"offline": None, "top_k": None}))}
    values["distill"] = {name: values["distill"][name] for name in ("teacher", "row_length")}
    if distill.teacher == SAME:
        ancestors = provenance(config, stage)["ancestors"]
        values |= {"init": result_values(config.init), "seed": config.seed, "ancestors": ancestors}
    return values


def check_taught(config: Config, stage: str) -> None:
    """Check that logits stored for ``stage`` are those of the teacher that it names; raises ``LclmError``."""
    distill = config.stages[stage].distill
    if distill is None or distill.offline is None:
        return
    about = TeacherStore(Path(distill.offline)).about
    if about is not None and about["teacher"] != teacher_origin(config, stage):
        raise LclmError(
            f"{distill.offline} holds logits of another teacher than stage {stage} has now (its weights, or"
            " distill.teacher); run lclm data teach with another distill.offline"
        )


def _params_of_run(config: Config, tokenizers: Tokenizers, mesh: Mesh) -> Params:
    """Parameters of the checkpoint that ``config.init.run`` names, for the model and the tokenizers of ``config``."""
    folder, _, place = (config.init.run or "").partition("@")
    stage, _, step = place.partition("@")
    if step and not step.isdigit():
        raise LclmError(f"init.run={config.init.run!r}: {step!r} is no step; write FOLDER@STAGE@STEP")
    other = load_config(to_path(folder) / "config.yaml").model_copy(update={"run_dir": folder})
    theirs = load_tokenizers(other)
    for role in Tokenizers._fields:
        if getattr(theirs, role).digest != getattr(tokenizers, role).digest:
            raise LclmError(f"init.run={config.init.run!r} has another {role} tokenizer; set tokenizer.{role} to its")
    found = latest_checkpoint(other, stage or None, int(step) if step else None)
    logger.info("starting from %s, %s step %d", folder, *found)
    return load_params(other.model_copy(update={"model": config.model}), *found, mesh)
