"""The optimizer of a run: clipping, then a rule for the update, its rate along a schedule. All of it optax's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from ...params import Tree, by_layer, paths
from ..task.config import TrainConfig

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "rmsprop": optax.rmsprop,
    "lion": optax.lion,
}
SCHEDULES: dict[str, Callable[[float, int], Any]] = {
    "constant": lambda rate, steps: optax.constant_schedule(rate),
    "cosine": lambda rate, steps: optax.cosine_decay_schedule(rate, steps),
    "linear": lambda rate, steps: optax.linear_schedule(rate, 0.0, steps),
    "exponential": lambda rate, steps: optax.exponential_decay(rate, steps, 0.01),  # a hundredth of the rate at the end
}


def optimizer(config: TrainConfig, steps: int) -> Any:
    """Returns the optax transformation that `config` describes, for a run of `steps` steps."""
    decay = {} if config.weight_decay is None else {"weight_decay": config.weight_decay}
    rule = OPTIMIZERS[config.optimizer](schedule(config, steps), **decay)
    return rule if config.clip is None else optax.chain(clipping(config.clip), rule)


def schedule(config: TrainConfig, steps: int) -> Any:
    """Returns `step -> rate`: up from 0 over `config.warmup` steps, then along the schedule."""
    after = SCHEDULES[config.schedule](config.lr, max(1, steps - config.warmup))
    if not config.warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, config.lr, config.warmup), after], [config.warmup])


def clipping(kind_and_bound: str) -> Any:
    """Returns the clipping that a text describes.

    value:X every number to -X..X; norm:X the whole gradient to norm X; layer:X each layer's;
    adaptive:X each unit's to X times the norm of its weights (Brock et al. 2021).
    """
    kind, _, bound = kind_and_bound.partition(":")
    return CLIPS[kind](float(bound))


def clip_by_layer_norm(max_norm: float) -> Any:
    """Returns optax.clip_by_global_norm for each layer; all blocks of a `repeat` are one."""
    one = optax.clip_by_global_norm(max_norm)

    def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, Any]:
        found = paths(updates)
        clipped: dict[str, Any] = {}
        for of_layer in by_layer(found).values():
            clipped |= one.update(of_layer, optax.EmptyState())[0]
        treedef = jax.tree.structure(updates)
        return jax.tree.unflatten(treedef, [clipped[path] for path in found]), state

    return optax.GradientTransformation(one.init, update)


CLIPS: dict[str, Callable[[float], Any]] = {
    "value": optax.clip,
    "norm": optax.clip_by_global_norm,
    "layer": clip_by_layer_norm,
    "adaptive": optax.adaptive_grad_clip,
}
