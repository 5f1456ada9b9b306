"""The state that a stage begins with, born in its place on the mesh."""

from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import KeyEntry

from lclm_jax.config import ModelConfig
from lclm_jax.model.lclm import abstract_params, init_params, logical_axes
from lclm_jax.model.lora import is_lora
from lclm_jax.parallel import params_sharding
from lclm_jax.train.core.freeze import groups_of, merge, path_name, select
from lclm_jax.train.core.optimizer import Optimizer
from lclm_jax.train.core.state import TrainState
from lclm_jax.types import Params, PyTree


def params_shardings(model: ModelConfig, mesh: Mesh) -> PyTree:
    """Shardings of the parameters; raises ``LclmError`` where the mesh does not divide a size."""
    return params_sharding(mesh, logical_axes(model), abstract_params(model))


def state_shardings(model: ModelConfig, optimizer: Optimizer, mesh: Mesh) -> TrainState:
    """Shardings of a whole state: moments like their parameters, scalars on every device."""
    replicated: PyTree = NamedSharding(mesh, PartitionSpec())
    params = params_shardings(model, mesh)
    opt_state = optimizer.state_shardings(abstract_params(model), params, replicated)
    return TrainState._make((replicated, params, opt_state, replicated))


def abstract_state(model: ModelConfig, optimizer: Optimizer, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of a state: what a restore needs."""
    params = abstract_params(model)
    shapes = jax.eval_shape(lambda tree: initial_state(tree, optimizer, 0), params)
    state: TrainState = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(model, optimizer, mesh),
    )
    return state


def random_params(model: ModelConfig, seed: int, mesh: Mesh) -> Params:
    """Random parameters, made where they belong; a pure function of (model, seed)."""
    init = jax.jit(lambda: init_params(model, jax.random.key(seed)), out_shardings=params_shardings(model, mesh))
    params: Params = init()
    return params


def with_fresh_lora(params: Params, model: ModelConfig, seed: int, mesh: Mesh | None) -> Params:
    """``params`` plus the LoRA leaves of ``model`` that they lack, with the values that ``random_params`` gives them.

    Fresh leaves change nothing that the model computes: B is zero.

    Args:
        params: parameters of ``model`` or of a model that differs by having no LoRA, or less of it.
        model: what they shall be parameters of.
        seed: of the random values.
        mesh: where the new leaves lie, sharded; None: NumPy arrays on the host.
    """
    labels = _lora_labels(model, {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)})
    if "missing" not in groups_of(labels):
        return params

    def init() -> PyTree:  # only the leaves that leave the program are computed
        return select(init_params(model, jax.random.key(seed)), labels, ("missing",))

    if mesh is None:
        return merge(params, jax.device_get(jax.jit(init)()))
    places = select(params_shardings(model, mesh), labels, ("missing",))
    return merge(params, jax.jit(init, out_shardings=places)())


def without_missing_lora(abstract: PyTree, model: ModelConfig, stored: Callable[[], Collection[str]]) -> PyTree:
    """``abstract`` parameters of ``model`` less the LoRA leaves that a checkpoint lacks.

    ``stored`` gives the paths that it holds; it is not called for a model without LoRA. Leaves of any other kind stay,
    so that their absence is found when the checkpoint is read.
    """
    if model.plain == model:
        return abstract
    return select(abstract, _lora_labels(model, stored()), ("there",))


def _lora_labels(model: ModelConfig, paths: Collection[str]) -> PyTree:
    """Tree of ``"missing"`` for LoRA leaves of ``model`` that are not among ``paths``, ``"there"`` for all others."""

    def label(path: tuple[KeyEntry, ...], _leaf: PyTree) -> str:
        name = path_name(path)
        return "missing" if is_lora(name) and name not in paths else "there"

    return jax.tree_util.tree_map_with_path(label, abstract_params(model))


def fresh_state(
    params: PyTree, model: ModelConfig, optimizer: Optimizer, mesh: Mesh, seed: int, stage: int = 0
) -> TrainState:
    """State at step 0 around ``params`` (sharded arrays, given up to the state); the rest as ``initial_state``."""
    make = jax.jit(
        lambda tree: initial_state(tree, optimizer, seed, stage),
        out_shardings=state_shardings(model, optimizer, mesh),
        donate_argnums=0,
    )
    state: TrainState = make(params)
    return state


def initial_state(params: PyTree, optimizer: Optimizer, seed: int, stage: int = 0) -> TrainState:
    """State at step 0 of stage number ``stage`` (from 0) around ``params`` (arrays or tracers).

    No two pairs of ``seed`` and ``stage`` share a random key.
    """
    key = jax.random.key(seed)
    rng = jax.random.key_data(jax.random.fold_in(key, stage) if stage else key)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), rng)
