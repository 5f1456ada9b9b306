"""Comparisons of training: eight optimizer steps, and learning-rate schedules."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lclm_jax.config import OptimizerConfig
from lclm_jax.interop.hf_config import read_json
from lclm_jax.interop.hf_weight_map import MEMORY_ROWS_PATH, TABLE_PATH, flatten, nest, tensor_table
from lclm_jax.parity.case import Case, load_case
from lclm_jax.parity.check import CHANGE_NORM, LEARNING_RATE, TRAINING_LOSS, TRAINING_NORM, Check, compare, same
from lclm_jax.parity.model import batch_loss, named_tensors
from lclm_jax.train.core.freeze import FROZEN, groups_of, merge, split
from lclm_jax.train.core.optimizer import Group, Optimizer
from lclm_jax.train.core.schedule import Schedule
from lclm_jax.types import Params, ReadOnlyJson


def check_training(path: Path, directory: Path) -> Iterator[Check]:
    """Repeat the optimizer steps of ``path`` with our optimizer, regrouped as the reference groups its parameters."""
    values = read_json(path)
    changes = {name: values[name] for name in ("checkpoint", "model_config")}
    case = load_case(directory / "cases" / values["case"], directory / "checkpoints", changes)
    optimizer = make_optimizer(case, values)
    name, order = f"training/{path.stem}", values["group_order"]
    yield same(name, "groups", sorted(groups_of(optimizer.labels)), sorted(order))
    losses, metrics, final = _run(case, values, optimizer)
    steps = values["steps"]
    yield compare(name, "loss", losses, [*(s["loss"] for s in steps), values["final_loss"]], TRAINING_LOSS)
    yield compare(name, "grad_norm", [m["grad_norm"] for m in metrics], [s["grad_norm"] for s in steps], TRAINING_NORM)
    rates = [[m[f"learning_rate/{group}"] for group in order] for m in metrics]
    yield compare(name, "learning_rate", rates, [s["lr"] for s in steps], LEARNING_RATE)
    before, after = named_tensors(case, case.params), named_tensors(case, final)
    expected = values["param_change_norms"]
    changes = {n: float(np.linalg.norm(after[n].astype(np.float64) - before[n])) for n in after}
    moved = sorted(n for n, change in changes.items() if change > 0)
    yield same(name, "parameters_moved", moved, sorted(n for n, change in expected.items() if change > 0))
    yield compare(name, "param_change_norms", [changes[n] for n in expected], list(expected.values()), CHANGE_NORM)


def make_optimizer(case: Case, values: ReadOnlyJson) -> Optimizer:
    """Our AdamW with every leaf in the group that the reference puts it in, frozen where it has none.

    The memory rows are part of the reference's table, so they share its group and its decay.
    """
    labels: dict[str, str | None] = {}
    for tensor in tensor_table(case.model):
        labels[tensor.path] = values["group_of"].get(tensor.parameter, FROZEN)
    labels[MEMORY_ROWS_PATH] = labels[TABLE_PATH]
    hyper = values["hyper"]
    b1, b2 = hyper["betas"]
    settings = OptimizerConfig(b1=b1, b2=b2, eps=hyper["eps"], clip_norm=hyper["max_grad_norm"])
    groups = {}
    for group in values["group_order"]:
        schedule = Schedule(hyper[f"{group}_lr"], hyper["total_steps"], hyper["warmup_steps"], hyper["min_lr"])
        groups[group] = Group(schedule, hyper[f"{group}_weight_decay"])
    ordered = {path: labels[path] for path, _ in flatten(case.params)}
    return Optimizer(settings, nest(ordered), groups)


def check_schedules(path: Path) -> Iterator[Check]:
    """Learning rates of every step; a scheduler stepped once per process sees that many times the steps."""
    for name, values in read_json(path).items():
        if not isinstance(values, dict):
            continue
        processes, steps = values["num_processes"], values["num_training_steps"]
        found = np.empty((steps, len(values["base_lrs"])))
        for column, peak in enumerate(values["base_lrs"]):
            schedule = Schedule(
                peak,
                steps * processes,
                values["num_warmup_steps"] * processes,
                values["min_lr"],
                cosine_fraction=values["cosine_fraction"],
            )
            found[:, column] = [schedule(step * processes + 1) for step in range(steps)]
        yield compare("lr_schedule", name, found, values["lr"], LEARNING_RATE)


def _run(case: Case, values: ReadOnlyJson, optimizer: Optimizer) -> tuple[list[float], list[dict], Any]:
    """(losses before each step and after the last, metrics of each step, final parameters)."""
    names = [name for name in values["samples"] if case.samples[name]["kind"] != "prompt"]
    batch = jax.device_put(case.batch([[name] for name in names]))
    of_decoder = [name for name in values["group_of"] if name.startswith("decoder.")]
    only_memory_rows = of_decoder == ["decoder.model.embed_tokens.weight"]

    def loss_of(trainable, frozen):
        total, count = batch_loss(merge(trainable, frozen), case.model, batch)
        return total / count

    @jax.jit
    def step(params, state, index):
        trainable, frozen = split(params, optimizer.labels)
        loss, grads = jax.value_and_grad(loss_of)(trainable, frozen)
        if only_memory_rows:
            # The reference masks the gradient of all other rows of its table; decay (if any) still moves them.
            grads["decoder"]["embed"]["table"] = jnp.zeros_like(grads["decoder"]["embed"]["table"])
        params, state, metrics = optimizer.update(grads, state, params, index, jnp.array(True))
        return params, state, metrics | {"loss": loss}

    params: Params = jax.device_put(case.params)
    state = optimizer.init(params)
    history = []
    for index in range(len(values["steps"]) + 1):  # the last one only gives the loss after all steps
        final = params
        params, state, metrics = step(params, state, jnp.int32(index))
        history.append({name: float(value) for name, value in metrics.items()})
    return [metrics["loss"] for metrics in history], history[:-1], jax.device_get(final)
