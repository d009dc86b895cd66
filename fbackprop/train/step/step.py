"""make_step: one jitted training step; update: the optimizer's half of it, for people who write their own loop."""

from __future__ import annotations

from functools import wraps
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import optax

from ...checks import expect
from ...layer import Layer
from ...params import Tree, expect_gradients, merge, split
from .transformation import apply_gradients, expect_transformation

Metrics: TypeAlias = dict[str, jax.Array]


class Gradients(Protocol):
    """A loss and its gradients, as `value_and_grad(net, loss)` is."""

    def __call__(self, params: Tree, batch: Tree, /) -> tuple[jax.Array, Tree]:
        """Returns (value, grads)."""


class ValueFn(Protocol):
    """A loss that jax can differentiate, as `as_custom_vjp` makes it."""

    def __call__(self, params: Tree, batch: Tree, /) -> jax.Array:
        """Returns the value."""


class Step(Protocol):
    """One training step."""

    def __call__(self, params: Tree, opt_state: Tree, batch: Tree, /) -> tuple[Tree, Tree, Metrics]:
        """Returns (params, opt_state, metrics) after the step."""


def update(tx: optax.GradientTransformation, params: Tree, grads: Tree, opt_state: Tree,
           **extra: Any) -> tuple[Tree, Tree]:
    """Returns `(params, opt_state)` after one optimizer step; State becomes its successor.

    `opt_state = init_opt_state(tx, params)`. `extra` is what a transformation asks for by name, as optax calls it:
    value, grad, value_fn. Transformations that want none of it get none.
    """
    expect_transformation("update tx", tx)
    expect_gradients(grads, params)
    params, opt_state, _ = apply_gradients(tx, params, grads, opt_state, extra)
    return params, opt_state


def make_step(value_and_grad: Gradients, tx: optax.GradientTransformation, *,
              value_fn: ValueFn | None = None) -> Step:
    """Returns `step(params, opt_state, batch) -> (params, opt_state, metrics)`, jitted.

    Args:
        value_and_grad: `value_and_grad(net, loss)` or `auto_value_and_grad(net, loss)`: the backward pass is this argument.
        tx: any optax transformation.
        value_fn: `(params, batch) -> value` for those that ask for the loss at other params (a line search, as in
            `optax.lbfgs`) or for second derivatives (`optax.contrib.sophia`). Differentiable by jax: build it on
            `as_custom_vjp`.

    Returns:
        The step. `opt_state` begins as `init_opt_state(tx, params)`. metrics: loss, grad_norm (before any clipping in tx),
        update_norm, param_norm (after the step).

    Raises:
        TypeError: `tx` is no transformation.
        ValueError: from the step, where `tx` asks for a value_fn and there is none, or returns updates of other shapes.
    """
    ok = callable(value_and_grad) and not isinstance(value_and_grad, Layer)
    expect(ok, "make_step value_and_grad", "a function (params, batch) -> (value, grads)", repr(value_and_grad),
           "Write make_step(value_and_grad(net, loss), tx)", TypeError)
    expect_transformation("make_step tx", tx)

    def step(params: Tree, opt_state: Tree, batch: Tree) -> tuple[Tree, Tree, Metrics]:
        value, grads = value_and_grad(params, batch)
        gradients, state = split(grads)[0], split(params)[1]

        def value_at(trainable: Tree, obj_fn: Any = None, grad_fn: Any = None) -> jax.Array:
            """Returns the loss. optax's line searches refuse extra arguments that this does not take."""
            return (value_fn or _no_value_fn)(merge(trainable, state), batch)

        def gradients_at(trainable: Tree, count: int) -> Tree:
            return split(value_and_grad(merge(trainable, state), batch)[1])[0]

        extra = {"value": value, "grad": gradients, "value_fn": value_at, "obj_fn": value_at, "grad_fn": gradients_at}
        params, opt_state, updates = apply_gradients(tx, params, grads, opt_state, extra)
        norms = {"grad_norm": gradients, "update_norm": updates, "param_norm": split(params)[0]}
        return params, opt_state, {"loss": value, **{name: optax.tree.norm(tree) for name, tree in norms.items()}}

    jitted = jax.jit(step, donate_argnums=(0, 1))

    @wraps(jitted)
    def run(params: Tree, opt_state: Tree, batch: Tree) -> tuple[Tree, Tree, Metrics]:
        return jitted(*without_aliases((params, opt_state)), batch)

    return run


def _no_value_fn(params: Tree, batch: Tree) -> jax.Array:
    raise ValueError("make_step value_fn: expected (params, batch) -> value, got None. tx asks for the loss at other params "
                     "or for second derivatives, which a gradient does not give. Write "
                     "f = as_custom_vjp(objective(net, loss)) and make_step(..., tx, value_fn=f)")


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
