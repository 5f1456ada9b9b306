"""The public Python API: what ``import lclm_jax`` gives. Importing it starts no JAX; calling it does.

Functions that work on a run take the typed configuration that ``load_config`` reads and do what the command of that
name does. Those that use devices import JAX when they are called, after ``config.environment`` has been applied.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lclm_jax.config import Config, RunPaths, apply_environment, load_config
from lclm_jax.config.registry.adapters import ADAPTERS, AdapterRow
from lclm_jax.config.registry.poolings import POOLINGS, PoolingRow
from lclm_jax.errors import LclmError
from lclm_jax.paths import local_copy, store_errors, to_path

if TYPE_CHECKING:
    from lclm_jax.inference.generate import Generator
    from lclm_jax.plan.plans import StagePlan
    from lclm_jax.train.core.hooks import Hook
    from lclm_jax.types import JsonObject


def prepare_data(config: Config, workers: int | None = None, strict: bool = False) -> JsonObject:
    """Prepare the corpus of ``config`` as shards (``lclm data prepare``); trains its tokenizer first if it names none.

    What is prepared already is kept, so a second call returns at once.

    Args:
        config: the run.
        workers: processes; None: one for each core.
        strict: refuse bad rows instead of counting them.

    Returns:
        The manifest: for each collection and split its shards, records and tokens, and the rows left out by reason.

    Raises:
        LclmError: no file matches, a row is bad (``strict``), or the folder holds another preparation.
    """
    from lclm_jax.data.prepare import run

    return run.prepare_data(config, workers, strict)


def train_stages(config: Config, stage: str | None = None, hooks: Sequence[Hook] = (), force: bool = False) -> None:
    """Train every stage of ``config`` that is not finished, or ``stage`` alone (``lclm train``).

    An interrupted stage resumes from its newest checkpoint; its losses are those of an uninterrupted run.

    Args:
        config: the run; its corpus must be prepared.
        stage: name of one stage; None: all, in order.
        hooks: called after the steps that they ask for.
        force: resume even if settings or data have changed since the checkpoint.

    Raises:
        LclmError: unknown stage, missing data, changed settings, a checkpoint that cannot be written or read, or
            training that diverged.
        SystemExit: with status 75, after the state was saved: the process was asked to stop. Call it again to resume.
    """
    apply_environment(config.environment, os.environ)

    import jax

    from lclm_jax.eval.probe import Probe
    from lclm_jax.interop.init_from_hf import imported_params
    from lclm_jax.ops.run_folder import own_run
    from lclm_jax.parallel import join_processes
    from lclm_jax.train.core import stages

    with ExitStack() as run:
        run.enter_context(join_processes(config.train.processes))
        if jax.process_index() == 0:
            run.enter_context(own_run(config, force))
        stages.train(config, stage, read_imports=imported_params, make_probe=Probe, force=force, hooks=hooks)


def evaluate_run(
    config: Config,
    stage: str | None = None,
    step: int | None = None,
    split: Literal["held_out", "validation"] = "held_out",
) -> JsonObject:
    """Measure the context gain and verbatim repetition of a checkpoint on text it was not trained on (``lclm eval``).

    Args:
        config: the run.
        stage: stage of the checkpoint; None: the last one that has any.
        step: step of the stage; None: its newest checkpoint.
        split: ``held_out``, or ``validation`` to tune on.

    Returns:
        ``loss_nats`` with no context, latents and raw text, ``recovered_share``, ``verbatim_token_accuracy`` and more;
        estimates are mappings with ``value`` and ``standard_error``.

    Raises:
        LclmError: there is no such checkpoint, or the split has no file that is long enough.
    """
    apply_environment(config.environment, os.environ)

    from lclm_jax.eval.run import evaluate as measure
    from lclm_jax.parallel import make_mesh
    from lclm_jax.text.run_tokenizers import load_tokenizers
    from lclm_jax.train.checkpoints.run_params import latest_checkpoint, load_params

    stage, step = latest_checkpoint(config, stage, step)
    mesh = make_mesh(config.mesh)
    params = load_params(config, stage, step, mesh)
    return {"stage": stage, "step": step, **measure(config, params, load_tokenizers(config), split, mesh)}


def load_model(folder: str | Path, compute_dtype: Literal["float32", "bfloat16"] | None = None) -> Generator:
    """Load a model that answers prompts and encodes text to latents.

    Args:
        folder: an export (or an imported or published LCLM folder), a run's folder, or a run's YAML.
        compute_dtype: None: as the export is stored, or as the run is configured.

    Returns:
        A ``Generator``: ``generate`` and ``stream`` answer prompts with memory tags, ``latents`` encodes texts.

    Raises:
        LclmError: the folder is neither an export nor a run, or one of its files is damaged.
    """
    from lclm_jax.inference.generate import Generator

    folder = to_path(folder)
    changes: JsonObject = {} if compute_dtype is None else {"compute_dtype": compute_dtype}
    if (folder / "model_config.json").is_file():
        return Generator.from_folder(local_copy(folder), **changes)
    config = load_run(folder)
    apply_environment(config.environment, os.environ)

    from lclm_jax.parallel import make_mesh
    from lclm_jax.text.run_tokenizers import load_tokenizers, resolve
    from lclm_jax.train.checkpoints.run_params import load_params

    tokenizers = load_tokenizers(config)
    config = resolve(config, tokenizers)
    mesh = make_mesh(config.mesh)
    model = config.model.model_copy(update=changes)
    return Generator(load_params(config, mesh=mesh), model, tokenizers.decoder, tokenizers.encoder, mesh)


def load_run(run: str | Path) -> Config:
    """The configuration stored in the folder of a run, or in a YAML; raises ``LclmError`` if there is none."""
    run = to_path(run)
    with store_errors(run):
        is_folder = run.is_dir()
    if not is_folder:
        return load_config(run)
    if not (run / "config.yaml").is_file():
        raise LclmError(
            f"{run} is neither a run (it lacks config.yaml) nor an export (it lacks model_config.json); name the"
            " run_dir of a run, or the folder that lclm export wrote"
        )
    return load_config(run / "config.yaml").model_copy(update={"run_dir": str(run)})


def export_run(
    config: Config,
    out: str | Path | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    lora: Literal["merge", "peft"] = "merge",
) -> Path:
    """Write the newest checkpoint of ``config`` in the Hugging Face layout (``lclm export``).

    Args:
        config: the run.
        out: folder to write; None: ``export/`` in the run's folder.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        lora: ``merge`` adds low-rank updates to their kernels, ``peft`` writes them to ``lora/``.

    Returns:
        The folder: ``decoder/``, ``encoder/``, ``adapter/``, ``model_config.json`` and a model card.

    Raises:
        LclmError: there is no checkpoint, or no other loader could run the model.
    """
    from lclm_jax.interop import runs

    folder = RunPaths(config).export if out is None else to_path(out)
    runs.export_run(config, folder, dtype, lora=lora)
    return folder


def plan_stages(
    config: Config, topology: str, stages: Iterable[str] | None = None, compiled: bool = True
) -> list[StagePlan]:
    """Plan stages for hardware that this machine does not have (``lclm plan``).

    Args:
        config: the run; ``config.mesh`` may leave one axis to be filled (-1).
        topology: for example ``v5p:4x4x4``, ``2xv6e-256``, ``h100:8x8``.
        stages: None: all of them.
        compiled: compile the real step, which takes minutes and needs libtpu (or the CUDA plug-in); False: count
            memory, FLOPs and collective bytes by formula, in a second.

    Returns:
        A plan for each stage: whether it fits, its step time at peak rates, tokens/s, MFU, days and chip-hours.

    Raises:
        LclmError: the topology is unknown, or the compiler is not installed.
    """
    from lclm_jax.plan.topologies import parse_topology, prepare_environment

    target = parse_topology(topology)
    prepare_environment()

    from lclm_jax.plan.plans import plan_stage

    return [plan_stage(config, stage, target, compiled=compiled) for stage in stages or config.stages]


def register_pooling(name: str, pooling: type, *, any_ratio: bool = False, width: int | Literal["ratio"] = 1) -> None:
    """Make a pooling of your own a value of ``model.pooling``.

    Args:
        name: the new value.
        pooling: a Flax module like the one in ``model/poolings/attention.py``: constructed with the
            ``ModelConfig``, called with hidden_BLNE and weights_BLN, returns pooled_BLE, with ``products()``. It must
            be importable by its module and name, because every process of a run imports it.
        any_ratio: whether the same weights serve every compression ratio.
        width: width of a latent before the adapter, in widths of the encoder; ``ratio``: N.

    Raises:
        LclmError: the name is taken.
    """
    if name in POOLINGS:
        raise LclmError(f"model.pooling={name!r} is taken; the names are {', '.join(POOLINGS)}")
    POOLINGS[name] = PoolingRow(code=f"{pooling.__module__}:{pooling.__qualname__}", width=width, any_ratio=any_ratio)


def register_adapter(name: str, adapter: type) -> None:
    """Make an adapter of your own a value of ``model.adapter.type``.

    Args:
        name: the new value.
        adapter: a Flax module like the one in ``model/adapters/linear.py``: constructed with the
            ``ModelConfig``, called with pooled_BLE, segments_BL and positions_BL, returns latents_BLD, with
            ``products()``. It must be importable by its module and name.

    Raises:
        LclmError: the name is taken.
    """
    if name in ADAPTERS:
        raise LclmError(f"model.adapter.type={name!r} is taken; the names are {', '.join(ADAPTERS)}")
    ADAPTERS[name] = AdapterRow(code=f"{adapter.__module__}:{adapter.__qualname__}")
