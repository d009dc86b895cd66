"""The optax transformation of a step: its first state, and what it does to params."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ...checks import expect, show
from ...dtypes import same_structure
from ...layer import Layer
from ...params import Tree, is_carried, merge, split

PER_EXAMPLE = ("A transformation that sums over examples, as optax.contrib.dpsgd, asks value_and_grad for (value, gradients of "
               "each example): jax.vmap(value_and_grad(net, loss), (None, 0)), with a mean of its values")


class Lookahead(NamedTuple):
    """The state of `optax.lookahead`: its own, and the slow params, which optax keeps beside the fast ones."""

    state: Any
    slow: Tree


def init_opt_state(tx: optax.GradientTransformation, params: Tree) -> Tree:
    """Returns the state in which `tx` begins to train `params`: that of their trainable leaves.

    Args:
        tx: an optax transformation, such as `optax.adam(1e-3)`.
        params: the params of a net, as `net.init(key, x)` returns them. State among them is left out.

    Returns:
        The first `opt_state` of `make_step`, `update` and `tx.update`.

    Raises:
        TypeError: `tx` is no transformation, or none for a net with State; `params` is a Layer.
        ValueError: `params` has no trainable leaf.
    """
    expect_transformation("init_opt_state tx", tx)
    expect(not isinstance(params, Layer), "init_opt_state params", "params, as net.init(key, x) returns them",
           repr(params), "Write init_opt_state(tx, net.init(key, x))", TypeError)
    trainable, state = split(params)
    expect(bool(jax.tree.leaves(trainable)), "init_opt_state params", "at least one trainable leaf", params,
           "A net without weights, or with all of them frozen, has nothing to train")
    if _is_lookahead(tx):
        return Lookahead(tx.init(optax.LookaheadParams.init_synced(trainable)), trainable)
    try:
        return tx.init(trainable)
    except (AttributeError, TypeError) as error:
        if not any(map(is_carried, jax.tree.leaves(state, is_leaf=is_carried))):
            raise
        raise TypeError("init_opt_state tx: expected a transformation that passes over None, which stands where params have "
                        f"State, got {error}. Write optax.masked(tx, lambda params: jax.tree.map(lambda p: p is not None, "
                        "params, is_leaf=lambda p: p is None))") from error


def expect_transformation(what: str, tx: Any) -> None:
    """Raises TypeError unless `tx` has an init and an update, as `optax.MultiSteps` has too."""
    name = getattr(tx, "__name__", "")
    ok = callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))
    got, hint = (f"the function {name}", f"Call it: optax.{name}(...)") if name else (tx, "Write optax.adam(1e-3)")
    expect(ok, what, "an optax.GradientTransformation", got, hint, TypeError)


def _is_lookahead(tx: Any) -> bool:
    return getattr(tx.init, "__module__", "") == optax.lookahead.__module__


def apply_gradients(tx: Any, params: Tree, grads: Tree, opt_state: Tree,
                    extra: dict[str, Any]) -> tuple[Tree, Tree, Tree]:
    """Returns (params, opt_state, updates) after one optimizer step."""
    (trainable, _), (gradients, successors) = split(params), split(grads)
    updates, opt_state = _updates(tx, gradients, opt_state, trainable, extra)
    _expect_updates(updates, trainable)
    return merge(optax.apply_updates(trainable, updates), successors), opt_state, updates


def _updates(tx: Any, gradients: Tree, opt_state: Tree, trainable: Tree, extra: dict[str, Any]) -> tuple[Tree, Tree]:
    """Returns (updates, opt_state). `tx` gets those of `extra` that it accepts."""
    if _is_lookahead(tx):
        ok = isinstance(opt_state, Lookahead)
        expect(ok, "opt_state", "init_opt_state(tx, params), which keeps the slow params of optax.lookahead", opt_state,
               error=TypeError)
        both = optax.LookaheadParams(trainable, opt_state.slow)
        updates, state = tx.update(gradients, opt_state.state, both)
        return updates.fast, Lookahead(state, optax.apply_updates(opt_state.slow, updates.slow))
    tx = optax.with_extra_args_support(tx)
    asked = inspect.signature(tx.update).parameters
    if all(each.kind is not each.VAR_KEYWORD for each in asked.values()):  # as in optax.contrib.sam
        extra = {name: value for name, value in extra.items() if name in asked}
    try:
        return tx.update(gradients, opt_state, trainable, **extra)
    except ValueError as error:
        if "batch dimension" not in str(error):
            raise
        raise ValueError(f"tx: expected gradients of each example, got those of the batch: {error} {PER_EXAMPLE}") from error


def _expect_updates(updates: Tree, trainable: Tree) -> None:
    """Raises ValueError unless every update has the shape of its weight."""
    shapes = lambda tree: [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
    ok = same_structure(updates, trainable) and shapes(updates) == shapes(trainable)
    expect(ok, "updates of tx", f"those of the params, {show(trainable)}", updates, PER_EXAMPLE)
