"""The optimizer by group: each with its own schedule, decay and step count, clipped together.

A group is usually a part of the model (adapter, encoder, decoder, memory_rows). A group whose gradient is exactly zero
in a step got no signal (no span in the batch, say): neither momentum nor weight decay moves it, and its Adam step
count is not incremented, so its bias correction is that of the updates it has made. The schedule still advances. With
``ema_decay`` the state also holds averages of the trainable parameters, under the name ``EMA``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyEntry
from jax.typing import ArrayLike

from lclm_jax.config import OptimizerConfig, StageConfig
from lclm_jax.errors import LclmError
from lclm_jax.train.core.freeze import groups_of, label_leaves, merge, path_name, select, split, stage_rules
from lclm_jax.train.core.schedule import stage_schedules
from lclm_jax.train.core.update_rules import stochastic_round, update_rule
from lclm_jax.types import PyTree

EMA = "ema"
"""Name of the averages in the optimizer's state, beside those of the groups."""


@dataclass(frozen=True)
class Group:
    """Settings of one group: ``schedule(k + 1)`` is the learning rate of update k, ``decay`` its decoupled decay."""

    schedule: Callable[[ArrayLike], jax.Array]
    decay: float = 0.0


@dataclass(frozen=True)
class Optimizer:
    """Pure functions over (trainable parameters, gradients, state); holds no arrays.

    Attributes:
        settings: betas, eps and clip norm, common to all groups.
        labels: tree of parameters with the group of each leaf, or ``FROZEN``.
        groups: group -> settings; every label has one.
    """

    settings: OptimizerConfig
    labels: PyTree
    groups: Mapping[str, Group]

    def __post_init__(self) -> None:
        missing = set(groups_of(self.labels)) - set(self.groups)
        if missing:
            raise LclmError(f"no settings for group {', '.join(sorted(missing))}; give it a schedule and a decay")

    @property
    def names(self) -> tuple[str, ...]:
        """Groups that train, sorted."""
        return groups_of(self.labels)

    def init(self, params: PyTree) -> dict[str, PyTree]:
        """Fresh state by group (``update_rules``), and the averages, equal to the parameters.

        Leaves may be ``jax.ShapeDtypeStruct`` under ``jax.eval_shape``.
        """
        moving = update_rule(self.settings)
        state = {name: moving.init(_wide(select(params, self.labels, (name,)))) for name in self.names}
        if self.settings.ema_decay is not None:
            trainable = split(params, self.labels)[0]
            state[EMA] = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), trainable)
        return state

    def state_shardings(self, params: PyTree, params_shardings: PyTree, replicated: object) -> dict[str, PyTree]:
        """Shardings of ``init``'s state: what has the path and shape of a parameter lies like it, the rest everywhere.

        Args:
            params: shapes of all parameters.
            params_shardings: their shardings.
            replicated: sharding of counts and of factored moments.
        """
        shapes = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        places = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params_shardings)}

        def place(path: tuple[KeyEntry, ...], leaf: jax.ShapeDtypeStruct) -> object:
            names = path_name(path).split("/")
            tails = ("/".join(names[first:]) for first in range(len(names)))
            owner = next((tail for tail in tails if tail in shapes), None)
            return places[owner] if owner is not None and shapes[owner] == leaf.shape else replicated

        placed: dict[str, PyTree] = jax.tree_util.tree_map_with_path(place, jax.eval_shape(self.init, params))
        return placed

    def update(
        self,
        grads: PyTree,
        state: PyTree,
        params: PyTree,
        step: jax.Array,
        apply: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[PyTree, PyTree, dict[str, jax.Array]]:
        """One update of all groups.

        Args:
            grads: float32 gradient of the trainable leaves (frozen leaves absent).
            state: as ``init`` made it.
            params: all parameters.
            step: int32 scalar, the number of updates before this one (skipped ones included).
            apply: bool scalar; False leaves parameters and state as they are.
            key: random key of the step, for the rounding of bfloat16 parameters; others need none.

        Returns:
            (params, state, metrics): ``grad_norm`` (before clipping, over all trainable leaves), and by group
            ``grad_norm/GROUP``, ``learning_rate/GROUP``, ``update_norm/GROUP`` (of the change of the parameters) and
            ``updated/GROUP`` (1.0 if the group moved).
        """
        norms = {name: optax.tree.norm(select(grads, self.labels, (name,))) for name in self.names}
        norm = jnp.sqrt(sum(value**2 for value in norms.values()))
        apply = apply & jnp.isfinite(norm)
        # The epsilon is the reference's (torch.nn.utils.clip_grad_norm_).
        scale = jnp.minimum(1.0, self.settings.clip_norm / (norm + 1e-6))
        metrics = {"grad_norm": norm}
        branches, new_state = [], {}
        for number, name in enumerate(self.names):
            rate = self.groups[name].schedule(step + 1)
            moving = apply & _has_signal(select(grads, self.labels, (name,)))
            branch = select(params, self.labels, (name,))
            gradient = jax.tree.map(lambda g: g * scale, select(grads, self.labels, (name,)))
            updates, moved_state = update_rule(self.settings).update(gradient, state[name], _wide(branch))
            own_key = None if key is None else jax.random.fold_in(key, number)
            moved = _moved(branch, updates, rate, self.groups[name].decay, own_key)
            branches.append(_choose(moving, moved, branch))
            new_state[name] = _choose(moving, moved_state, state[name])
            metrics[f"grad_norm/{name}"] = norms[name]
            metrics[f"learning_rate/{name}"] = rate
            metrics[f"updated/{name}"] = moving.astype(jnp.float32)
            metrics[f"update_norm/{name}"] = _distance(branches[-1], branch)
        _, frozen = split(params, self.labels)
        if (decay := self.settings.ema_decay) is not None:
            averages = jax.tree.map(lambda mean, leaf: decay * mean + (1 - decay) * leaf, state[EMA], merge(*branches))
            new_state[EMA] = _choose(apply, averages, state[EMA])
        return merge(frozen, *branches), new_state, metrics


def make_optimizer(settings: OptimizerConfig, stage: StageConfig, params: PyTree) -> Optimizer:
    """The optimizer of ``stage`` for ``params`` (arrays or shapes): parts as groups, memory rows without decay.

    Raises:
        LclmError: the stage trains nothing, or a floor lies above a peak learning rate.
    """
    labels = label_leaves(stage_rules(stage, params), params)
    schedules = stage_schedules(stage, groups_of(labels))
    decay = {"memory_rows": 0.0, **stage.weight_decay.model_dump()}
    return Optimizer(settings, labels, {name: Group(schedules[name], decay[name]) for name in schedules})


def _moved(params: PyTree, updates: PyTree, rate: jax.Array, decay: float, key: jax.Array | None) -> PyTree:
    """``params`` after one update, in their dtype; computed in float32."""
    leaves, structure = jax.tree.flatten(params)
    found = []
    for number, (param, towards) in enumerate(zip(leaves, jax.tree.leaves(updates), strict=True)):
        wide = param.astype(jnp.float32)
        moved = wide - rate * (towards.astype(jnp.float32) + decay * wide)
        if param.dtype == jnp.bfloat16:
            if key is None:
                raise LclmError("bfloat16 parameters need stochastic rounding; give Optimizer.update a key")
            moved = stochastic_round(moved, jax.random.fold_in(key, number))
        found.append(moved)
    return jax.tree.unflatten(structure, found)


def _wide(tree: PyTree) -> PyTree:
    """Parameters as the optimizer sees them, whose state is made like them."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def _distance(new: PyTree, old: PyTree) -> jax.Array:
    norm: jax.Array = optax.tree.norm(jax.tree.map(jnp.subtract, _wide(new), _wide(old)))
    return norm


def _choose(condition: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _has_signal(gradient: PyTree) -> jax.Array:
    """Whether any element differs from zero (a norm could underflow)."""
    return jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient)]))
