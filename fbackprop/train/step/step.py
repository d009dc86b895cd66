"""make_step: one jitted training step; update: the optimizer's half of it, for people who write their own loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ...gradients import ValueAndGrad
from ...params import Tree, merge, split

Metrics = dict[str, jax.Array]
Step = Callable[[Tree, Any, Any], tuple[Tree, Any, Metrics]]


def apply_gradients(tx: Any, params: Tree, grads: Tree, opt_state: Any,
                    extra: dict[str, Any]) -> tuple[Tree, Any, Tree]:
    """Returns (params, opt_state, updates) after one optimizer step."""
    (trainable, _), (gradients, successors) = split(params), split(grads)
    tx = optax.with_extra_args_support(tx)
    updates, opt_state = tx.update(gradients, opt_state, trainable, **extra)
    return merge(optax.apply_updates(trainable, updates), successors), opt_state, updates


def update(tx: Any, params: Tree, grads: Tree, opt_state: Any, **extra: Any) -> tuple[Tree, Any]:
    """Returns `(params, opt_state)` after one optimizer step; State becomes its successor.

    `opt_state = tx.init(split(params)[0])`. `extra` is what a transformation asks for by name, as optax calls it:
    value, grad, value_fn. Transformations that want none of it get none.
    """
    params, opt_state, _ = apply_gradients(tx, params, grads, opt_state, extra)
    return params, opt_state


def make_step(value_and_grad: ValueAndGrad, tx: Any, value_fn: Callable[[Tree, Any], jax.Array] | None = None) -> Step:
    """Returns `step(params, opt_state, batch) -> (params, opt_state, metrics)`, jitted.

    value_and_grad: `value_and_grad(net, loss)` or `auto_value_and_grad(net, loss)`: the backward pass is this argument.
    tx: any optax transformation. value_fn: `(params, batch) -> value` for those with a line search, differentiable by jax:
    build it on `as_custom_vjp`.
    metrics: loss, grad_norm (before any clipping in tx), update_norm, param_norm (after the step).
    """

    def step(params: Tree, opt_state: Any, batch: Any) -> tuple[Tree, Any, Metrics]:
        value, grads = value_and_grad(params, batch)
        gradients, state = split(grads)[0], split(params)[1]
        extra: dict[str, Any] = {"value": value, "grad": gradients}
        if value_fn is not None:
            extra["value_fn"] = lambda trainable: value_fn(merge(trainable, state), batch)
        params, opt_state, updates = apply_gradients(tx, params, grads, opt_state, extra)
        norms = {"grad_norm": gradients, "update_norm": updates, "param_norm": split(params)[0]}
        return params, opt_state, {"loss": value, **{name: optax.tree.norm(tree) for name, tree in norms.items()}}

    jitted = jax.jit(step, donate_argnums=(0, 1))

    @wraps(jitted)
    def run(params: Tree, opt_state: Any, batch: Any) -> tuple[Tree, Any, Metrics]:
        return jitted(*without_aliases((params, opt_state)), batch)

    return run


def without_aliases(tree: Any) -> Any:
    """Copies an array that is two leaves, so that each can be donated.

    Several optimizers begin with one array in two places, and a buffer is donated only once.
    """
    leaves, treedef = jax.tree.flatten(tree)
    seen: set[int] = set()
    for i, leaf in enumerate(leaves):
        if id(leaf) in seen:
            leaves[i] = jnp.copy(leaf)
        seen.add(id(leaf))
    return jax.tree.unflatten(treedef, leaves)
