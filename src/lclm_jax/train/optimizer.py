"""AdamW by group: each with its own schedule, decay and step count, clipped together.

A group is usually a part of the model (adapter, encoder, decoder, memory_rows). A group whose gradient is exactly zero
in a step got no signal (no span in the batch, say): neither momentum nor weight decay moves it, and its Adam count
stays, so its bias correction is that of the updates it has made. The schedule follows the global step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lclm_jax.config import OptimizerConfig, StageConfig
from lclm_jax.train.freeze import groups_of, label_leaves, merge, select, split, stage_rules
from lclm_jax.train.schedule import stage_schedules


@dataclass(frozen=True)
class Group:
    """Settings of one group: ``schedule(k + 1)`` is the learning rate of update k, ``decay`` its decoupled decay."""

    schedule: Callable[[Any], Any]
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
    labels: Any
    groups: Mapping[str, Group]

    def __post_init__(self):
        missing = set(groups_of(self.labels)) - set(self.groups)
        if missing:
            raise ValueError(f"no settings for group {', '.join(sorted(missing))}; give it a schedule and a decay")

    @property
    def names(self) -> tuple[str, ...]:
        """Groups that train, sorted."""
        return groups_of(self.labels)

    def init(self, params: Any) -> dict[str, optax.ScaleByAdamState]:
        """Fresh state by group: count int32, moments float32 in the shapes of the group's parameters.

        Leaves may be ``jax.ShapeDtypeStruct`` under ``jax.eval_shape``.
        """
        adam = self._adam()
        return {name: adam.init(select(params, self.labels, (name,))) for name in self.names}

    def state_shardings(self, params_shardings: Any, replicated: Any) -> dict[str, optax.ScaleByAdamState]:
        """Shardings of ``init``'s state: moments lie like their parameters, counts on every device."""
        state = {}
        for name in self.names:
            branch = select(params_shardings, self.labels, (name,))
            state[name] = optax.ScaleByAdamState(count=replicated, mu=branch, nu=branch)
        return state

    def update(self, grads: Any, state: Any, params: Any, step: jax.Array, apply: jax.Array) -> tuple[Any, Any, Any]:
        """One update of all groups.

        Args:
            grads: gradient of the trainable leaves (frozen leaves absent).
            state: as ``init`` made it.
            params: all parameters.
            step: int32 scalar, the number of updates before this one (skipped ones included).
            apply: bool scalar; False leaves parameters and state as they are.

        Returns:
            (params, state, metrics): ``grad_norm`` (before clipping, over all trainable leaves), and by group
            ``grad_norm/GROUP``, ``learning_rate/GROUP`` and ``updated/GROUP`` (1.0 if the group moved).
        """
        norms = {name: optax.tree.norm(select(grads, self.labels, (name,))) for name in self.names}
        norm = jnp.sqrt(sum(value**2 for value in norms.values()))
        apply = apply & jnp.isfinite(norm)
        # The epsilon is the reference's (torch.nn.utils.clip_grad_norm_).
        scale = jnp.minimum(1.0, self.settings.clip_norm / (norm + 1e-6))
        metrics = {"grad_norm": norm}
        branches, new_state = [], {}
        for name in self.names:
            rate = self.groups[name].schedule(step + 1)
            moving = apply & _has_signal(select(grads, self.labels, (name,)))
            branch = select(params, self.labels, (name,))
            gradient = jax.tree.map(lambda g: g * scale, select(grads, self.labels, (name,)))
            moved, moved_state = self._move(self.groups[name], rate, gradient, state[name], branch)
            branches.append(_choose(moving, moved, branch))
            new_state[name] = _choose(moving, moved_state, state[name])
            metrics[f"grad_norm/{name}"] = norms[name]
            metrics[f"learning_rate/{name}"] = rate
            metrics[f"updated/{name}"] = moving.astype(jnp.float32)
        _, frozen = split(params, self.labels)
        return merge(frozen, *branches), new_state, metrics

    def _move(self, group: Group, rate: jax.Array, gradient: Any, state: Any, params: Any) -> tuple[Any, Any]:
        directions, state = self._adam().update(gradient, state)
        params = jax.tree.map(lambda p, d: p - rate * (d + group.decay * p), params, directions)
        return params, state

    def _adam(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.settings.b1, self.settings.b2, self.settings.eps)


def make_optimizer(settings: OptimizerConfig, stage: StageConfig, params: Any) -> Optimizer:
    """The optimizer of ``stage`` for ``params`` (arrays or shapes): parts as groups, memory rows without decay.

    Raises:
        ValueError: the stage trains nothing, or a floor lies above a peak learning rate.
    """
    labels = label_leaves(stage_rules(stage, params), params)
    schedules = stage_schedules(stage, groups_of(labels))
    decay = {"memory_rows": 0.0, **stage.weight_decay.model_dump()}
    return Optimizer(settings, labels, {name: Group(schedules[name], decay[name]) for name in schedules})


def _choose(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _has_signal(gradient: Any) -> jax.Array:
    """Whether any element differs from zero (a norm could underflow)."""
    return jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient)]))
