"""Whether a configuration fits a mesh, asked before anything is compiled."""

import logging
import math
from collections.abc import Iterable

from jax.sharding import Mesh

from lclm_jax.batch import check_batch_rows
from lclm_jax.config.model import ModelConfig
from lclm_jax.config.tree import Config
from lclm_jax.errors import LclmError
from lclm_jax.parallel.mesh import batch_parts
from lclm_jax.parallel.sharding import ENCODER_ROWS, LOGICAL_AXIS_RULES, widest

logger = logging.getLogger(__name__)


def validate_mesh(config: Config, mesh: Mesh, stages: Iterable[str] | None = None) -> None:
    """Check that ``mesh`` divides every size of ``config`` that it cuts; ``stages``: None is all.

    Raises:
        LclmError: it does not; the message names the key, the mesh axes and what would do.
    """
    for key, size, axis, fix in _model_sizes(config.model):
        _check(mesh, key, size, axis, fix)
    for name in config.stages if stages is None else stages:
        stage, pack = config.stages[name], config.pack(name)
        rows = stage.batch_rows // stage.microbatches
        check_batch_rows(name, stage.batch_rows, stage.microbatches, batch_parts(mesh.shape))
        fix = "make row_length a multiple of 2 * mesh.context"
        _check(mesh, f"stages.{name}: pack.row_length={pack.row_length}, which", pack.row_length, "seq", fix, pieces=2)
        if (twin := config.twin_length(name)) is not None:
            fix = "make distill.row_length a multiple of 2 * mesh.context"
            _check(mesh, f"stages.{name}: distill.row_length={twin}, which", twin, "seq", fix, pieces=2)
        spread = widest(ENCODER_ROWS, rows * pack.encoder_rows, mesh)
        if (used := _pieces(mesh, spread)) < mesh.size:
            logger.warning(
                "stages.%s: %d encoder rows a microbatch are spread over %d of %d devices, the others repeat the"
                " encoder's work; a multiple of %d would use all (pack.encoder_rows)",
                name, rows * pack.encoder_rows, used, mesh.size, mesh.size,
            )  # fmt: skip


def _model_sizes(model: ModelConfig) -> list[tuple[str, int, str, str]]:
    """(key, size, logical axis that cuts it, what to do) of everything in the model that a mesh divides."""
    tensor, vocab = "lower mesh.tensor", "pad the table (lclm import --pad-to 128) or lower mesh.tensor"
    width = "use fewer devices along these axes and more along mesh.replica"
    sizes = [
        *_stack("decoder", model),
        ("model.decoder.vocab_size", model.decoder.vocab_size, "vocab", vocab),
        ("model.decoder.hidden_size", model.decoder.hidden_size, "param_embed", width),
        ("model.decoder.hidden_size", model.decoder.hidden_size, "param_out", tensor),
        ("the width of a latent", model.latent_size, "param_latent", width),
        ("model.encoder.hidden_size", model.encoder.hidden_size, "encoder_embed", width),
    ]
    return sizes + (_stack("encoder", model) if model.adapter.row.blocks == "encoder" else [])


def _stack(tower: str, model: ModelConfig) -> list[tuple[str, int, str, str]]:
    """Sizes of a stack of blocks that runs over ``tensor``: the decoder, or an adapter with the encoder's blocks."""
    backbone, fix = getattr(model, tower), "lower mesh.tensor"
    return [
        (f"model.{tower}.num_heads", backbone.num_heads, "heads", fix),
        (f"model.{tower}.num_kv_heads", backbone.num_kv_heads, "kv_heads", fix),
        (f"model.{tower}.mlp_size", backbone.mlp_size, "mlp", fix),
    ]


def _check(mesh: Mesh, key: str, size: int, axis: str, fix: str, pieces: int = 1) -> None:
    """``pieces``: that a device takes where there are several."""
    devices = _pieces(mesh, axis)
    if size % (devices * pieces) and devices > 1:
        shown = " * ".join(f"mesh.{name}" for name in LOGICAL_AXIS_RULES[axis])
        what = key if key.endswith("which") else f"{key}={size}"
        of = f"{devices * pieces}, {pieces} pieces for each of " if pieces > 1 else ""
        raise LclmError(f"{what} is not a multiple of {of}the {devices} devices of {shown}; {fix}")


def _pieces(mesh: Mesh, axis: str) -> int:
    return math.prod(mesh.shape[name] for name in LOGICAL_AXIS_RULES[axis])
