"""Comparisons that run the model: latents, logits, losses, gradients, packed rows, greedy generation."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from lclm_jax.batch import Batch
from lclm_jax.config import ModelConfig
from lclm_jax.inference.generate import Generator
from lclm_jax.inference.sampling import Sampling
from lclm_jax.interop.hf_weight_map import MEMORY_ROWS_PATH, TABLE_PATH, leaf, tensor_table
from lclm_jax.model.lclm import decode, embed, encode, encode_pooled, forward, logits, token_nll
from lclm_jax.parity.case import Case, span_slots
from lclm_jax.parity.check import GRADIENT, GRADIENT_NORM, LATENTS, LOGITS, LOSS, Check, compare, same
from lclm_jax.text.example import Example
from lclm_jax.types import Params, ReadOnlyJson


def check_model(case: Case, folder: Path) -> Iterator[Check]:
    """Every comparison of ``case`` with ``case.json`` and ``arrays.safetensors`` of ``folder``."""
    arrays = load_file(folder / "arrays.safetensors")
    yield from check_forward(case, arrays)
    yield from check_batch(case)
    if "packed" in case.values:
        yield from check_packed(case)
    if "grad" in case.values:
        yield from check_gradients(case, arrays)
    yield from check_greedy(case)


def check_forward(case: Case, arrays: Mapping[str, np.ndarray]) -> Iterator[Check]:
    """Latents before and after the adapter, logits and losses of every sample, one sample per row."""
    names = list(case.samples)
    batch = case.batch([[name] for name in names])
    found = jax.device_get(_forward(case.params, batch, model=case.model))
    for row, name in enumerate(names):
        sample, size = case.samples[name], len(case.examples[name].tokens)
        for region, slots in enumerate(span_slots(batch, row, sample["latent_counts"])):
            for quantity in ("latents", "projected"):
                key = f"{name}/{quantity}/{region}"
                if key in arrays:
                    yield compare(case.name, key, found[quantity][row][slots], arrays[key], LATENTS)
        if f"{name}/logits" in arrays:
            yield compare(case.name, f"{name}/logits", found["logits"][row, :size], arrays[f"{name}/logits"], LOGITS)
        if sample.get("loss") is not None:
            weights = batch.loss_weights[row]
            yield from _losses(
                case.name, name, float((found["nll"][row] * weights).sum()), float(weights.sum()), sample
            )


def check_batch(case: Case) -> Iterator[Check]:
    """The loss of the samples as one batch: the mean over all its label tokens."""
    if "batch" not in case.values:
        return
    expected = case.values["batch"]
    batch = case.batch([[name] for name in expected["samples"]])
    nll = jax.device_get(_forward(case.params, batch, model=case.model)["nll"])
    total, count = float((nll * batch.loss_weights).sum()), float(batch.loss_weights.sum())
    yield from _losses(case.name, "batch", total, count, expected)


def check_packed(case: Case) -> Iterator[Check]:
    """Losses of packed rows: of the samples alone, of the boundaries, and their sum."""
    expected = case.values["packed"]
    rows = expected["rows"]
    nll = jax.device_get(_forward(case.params, packed_batch(case), model=case.model)["nll"])
    boundaries = case.boundaries(rows)
    terms = expected["boundary_terms"]
    places = [{name: value for name, value in term.items() if name != "nll"} for term in terms]
    yield same(case.name, "packed/boundary_terms", boundaries, places)
    crossing = [float(nll[term["row"], term["label_position"] - 1]) for term in boundaries]
    yield compare(case.name, "packed/boundary_nll", crossing, [term["nll"] for term in terms], LOSS)
    weights = case.batch(rows, expected["target_length"]).loss_weights
    total, count = float((nll * weights).sum()), float(weights.sum())
    if "separate" in expected:
        yield from _losses(case.name, "packed/separate", total, count, expected["separate"])
    yield from _losses(case.name, "packed", total + sum(crossing), count + len(crossing), expected)


def check_gradients(case: Case, arrays: Mapping[str, np.ndarray]) -> Iterator[Check]:
    """Gradient arrays, the norm of every parameter's, and of every part's."""
    expected = case.values["grad"]
    if expected["sample"] is not None:
        batch = case.batch([[expected["sample"]]])
    elif "packed" in case.values:
        batch = packed_batch(case)
    else:
        batch = case.batch([[name] for name in case.values["batch"]["samples"]])
    found = named_tensors(case, jax.device_get(_gradient(case.params, batch, model=case.model)))
    for name in sorted(array for array in arrays if array.startswith("grad/")):
        yield compare(case.name, name, found.get(name.removeprefix("grad/"), np.nan), arrays[name], GRADIENT)
    norms = {name: float(np.linalg.norm(array.astype(np.float64))) for name, array in found.items()}
    if "param_norms" in expected:
        names = sorted(expected["param_norms"])
        yield same(case.name, "grad/parameters", sorted(norms), names)
        ours = [norms.get(name, np.nan) for name in names]
        theirs = [expected["param_norms"][name] for name in names]
        yield compare(case.name, "grad/param_norms", ours, theirs, GRADIENT_NORM)
    for part, value in expected["norms"].items():
        chosen = [norm for name, norm in norms.items() if part in ("total", name.partition(".")[0])]
        yield compare(case.name, f"grad/norm/{part}", float(np.linalg.norm(chosen)), value, GRADIENT_NORM)


def check_greedy(case: Case) -> Iterator[Check]:
    """New ids, always the largest logit, with and without repetition penalty."""
    kinds = sorted({key for sample in case.samples.values() for key in sample if key.startswith("greedy")})
    for kind in kinds:
        names = [name for name, sample in case.samples.items() if kind in sample]
        penalty = float(kind.rpartition("_")[2]) if "penalty" in kind else 1.0
        length = max(len(case.samples[name][kind]["ids"]) for name in names)
        found = greedy_ids(case, [case.prompt(name) for name in names], length, penalty)
        for name, ids in zip(names, found, strict=True):
            expected = case.samples[name][kind]["ids"]
            yield same(case.name, f"{name}/{kind}", ids[: len(expected)], expected)


def greedy_ids(case: Case, prompts: Sequence[Example], count: int, penalty: float = 1.0) -> list[list[int]]:
    """``count`` tokens after each prompt, always the largest logit, never stopping."""
    generator = Generator(case.params, case.model, case.decoder, case.encoder)
    sampling = Sampling(max_new_tokens=count, repetition_penalty=penalty, stop_ids=())
    return [list(generation.ids) for generation in generator.generate_examples(prompts, sampling)]


def packed_batch(case: Case) -> Batch:
    """The packed rows with the boundary terms of the reference put in as targets."""
    packed = case.values["packed"]
    batch = case.batch(packed["rows"], packed["target_length"])
    for term in case.boundaries(packed["rows"]):
        row, position = term["row"], term["label_position"]
        batch.targets[row, position - 1] = batch.decoder_tokens[row, position]
        batch.loss_weights[row, position - 1] = 1
    return batch


def named_tensors(case: Case, params: Params) -> dict[str, np.ndarray]:
    """Reference's parameter name -> array in its layout; the memory rows are put into (added to) the decoder's table.

    ``params`` may be gradients: the table's own rows of the memory tokens have none.
    """
    found = {}
    for tensor in tensor_table(case.model):
        array = np.asarray(leaf(params, tensor.path))
        array = array if tensor.layer is None else array[tensor.layer]
        if tensor.path == TABLE_PATH:
            array = np.array(array)
            array[list(case.decoder.memory_ids)] = np.asarray(leaf(params, MEMORY_ROWS_PATH))
        found[tensor.parameter] = tensor.to_theirs(array)
    return found


def batch_loss(params: Params, model: ModelConfig, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(sum of the weighted negative log likelihoods, sum of the weights) of a batch."""
    nll_BS = token_nll(params, model, forward(params, model, batch), batch.targets)
    return (nll_BS * batch.loss_weights).sum(), jnp.asarray(batch.loss_weights).sum()


def _losses(case: str, what: str, total: float, count: float, expected: ReadOnlyJson) -> Iterator[Check]:
    yield same(case, f"{what}/num_loss_tokens", round(count), expected["num_loss_tokens"])
    mean = total / max(count, 1)
    if "loss" in expected:
        yield compare(case, f"{what}/loss", mean, expected["loss"], LOSS)
    if "sum_nll" in expected:
        yield compare(case, f"{what}/mean_nll", mean, expected["sum_nll"] / expected["num_loss_tokens"], LOSS)


@functools.partial(jax.jit, static_argnames="model")
def _forward(params: Params, batch: Batch, *, model: ModelConfig) -> dict[str, jax.Array]:
    latents_BLD = encode(params, model, batch)
    x_BSD = embed(params, model, batch, latents_BLD)
    hidden_BSD = decode(params, model, x_BSD, batch.decoder_segments, batch.decoder_positions)
    return {
        "latents": encode_pooled(params, model, batch),
        "projected": latents_BLD,
        "logits": logits(params, model, hidden_BSD),
        "nll": token_nll(params, model, hidden_BSD, batch.targets),
    }


@functools.partial(jax.jit, static_argnames="model")
def _gradient(params: Params, batch: Batch, *, model: ModelConfig) -> Params:
    def mean(params):
        total, count = batch_loss(params, model, batch)
        return total / count

    return jax.grad(mean)(params)
