"""What preparation takes from datatrove (extra ``[prepare]``): its modules, pipelines and executors."""

import importlib
import subprocess
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

from lclm_jax.config.base import suggestion
from lclm_jax.errors import LclmError
from lclm_jax.types import ReadOnlyJson

EXECUTORS = {
    "local": ("datatrove.executor.local", "LocalPipelineExecutor"),
    "slurm": ("datatrove.executor.slurm", "SlurmPipelineExecutor"),
    "ray": ("datatrove.executor.ray", "RayPipelineExecutor"),
}


class Stage(NamedTuple):
    """A pipeline of datatrove and how many tasks it has."""

    name: str
    steps: list[Any]
    tasks: int


def engine_module(name: str) -> ModuleType:
    """A module of datatrove; raises ``LclmError`` if the extra is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise LclmError(
            f"{name} cannot be imported ({error}); install the extra: pip install 'lclm-jax[prepare]'"
        ) from None


def run_stages(executor: str, stages: Sequence[Stage], logs: str, options: ReadOnlyJson) -> None:
    """Run ``stages`` one after the other; see ``run_on``."""
    if executor not in EXECUTORS:
        raise LclmError(f"executor {executor!r} is unknown; {suggestion(executor, EXECUTORS)}")
    module, name = EXECUTORS[executor]
    make, previous = getattr(engine_module(module), name), None
    for stage in stages:
        given = {"depends": previous, "skip_completed": False, "logging_dir": f"{logs}/{stage.name}", **options}
        if executor == "slurm":
            given.setdefault("job_name", f"lclm-{stage.name}")
        if executor == "local":
            given["workers"] = min(given.get("workers", 1), stage.tasks)
        try:
            previous = make(pipeline=stage.steps, tasks=stage.tasks, **given)
        except TypeError as error:
            raise LclmError(f"executor {executor} with {dict(options)}: {error}; give its arguments by -o") from None
    if previous is None:
        return
    try:
        previous.run()
    except (FileNotFoundError, subprocess.CalledProcessError) as error:  # of sbatch, which has said why
        raise LclmError(
            f"executor {executor} with {dict(options)} cannot start its jobs: {error}; call it where sbatch can be"
            " called, with arguments that the cluster takes (-o)"
        ) from None
