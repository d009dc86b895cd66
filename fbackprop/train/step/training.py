"""Training: everything a step changes, and the step that changes it only where the numbers are finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ...dtypes import is_floating
from ...gradients import ValueAndGrad
from ...params import Tree, by_layer, paths, split
from .scaling import LossScale, adjust, unscale
from .step import Metrics, without_aliases
from .transformation import apply_gradients, init_opt_state

NORMS = ("grad_norm", "update_norm", "param_norm")


class Guard(NamedTuple):
    """halted: a step was not finite and none may follow; skipped: steps left out in a row; scale: of the loss, in float16."""

    halted: Any
    skipped: Any
    scale: LossScale | None


class Training(NamedTuple):
    """A pytree of all that a run has learned: what a checkpoint holds."""

    params: Tree
    opt_state: Any
    guard: Guard


def begin(params: Tree, tx: optax.GradientTransformation, scaled: bool = False) -> Training:
    """Returns the Training before its first step. scaled: with a LossScale, for float16."""
    scale = jax.tree.map(jnp.asarray, LossScale()) if scaled else None
    return Training(params, init_opt_state(tx, params), Guard(jnp.bool_(False), jnp.int32(0), scale))


def make_training_step(value_and_grad: ValueAndGrad, tx: optax.GradientTransformation, skip: bool = False) -> Callable:
    """Returns `step(training, batch) -> (training, metrics)`, jitted; the old training is donated.

    A step whose loss or gradient is not finite changes nothing but the guard, and no step after it changes anything either
    unless `skip`. Where the loss is finite and only the scaled gradients are not, the scale was too high: it is halved, and the
    next step counts again.
    metrics: those of `make_step`; finite, overflow (of the scale), halted, lost (the step was taken, the weights overflowed);
    layers (3, L), the NORMS of each of `trained_layers`.
    """

    def step(training: Training, batch: Any) -> tuple[Training, Metrics]:
        params, opt_state, (halted, skipped, scale) = training
        value, grads = value_and_grad(params, batch, 1.0 if scale is None else scale.scale)
        grads = grads if scale is None else unscale(grads, scale)
        gradients = split(grads)[0]
        of_gradient = _layer_norms(gradients)
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(of_gradient))
        overflow = jnp.bool_(False) if scale is None else ~finite & jnp.isfinite(value) & (scale.scale > 1)
        halted |= ~finite & ~overflow & (not skip)

        def taken(params: Tree, opt_state: Any) -> tuple[Tree, Any, jax.Array]:
            extra = {"value": value, "grad": gradients}
            params, opt_state, updates = apply_gradients(tx, params, grads, opt_state, extra)
            return params, opt_state, jnp.stack([_layer_norms(updates), _layer_norms(split(params)[0])])

        def left_out(params: Tree, opt_state: Any) -> tuple[Tree, Any, jax.Array]:
            norms = _layer_norms(split(params)[0])
            return params, opt_state, jnp.stack([jnp.zeros_like(norms), norms])

        params, opt_state, after = lax.cond(finite & ~halted, taken, left_out, params, opt_state)
        # finite gradients may still overflow the weights, an infinite State hides from the loss: the last checkpoint is whole
        lost = ~jnp.all(jnp.isfinite(after))
        for leaf in filter(is_floating, jax.tree.leaves(split(params)[1])):
            lost |= ~jnp.all(jnp.isfinite(leaf))
        counted = (jnp.where(finite, 0, skipped + ~overflow), None if scale is None else _adjusted(scale, finite, overflow))
        # a halted run is taken up again from before the step, which then counts as if it had not been tried
        counted = jax.tree.map(lambda new, old: jnp.where(halted, old, new), counted, (skipped, scale))
        guard = Guard(halted | lost, *counted)
        layers = jnp.concatenate([of_gradient[None], after])
        flags = {"finite": finite & ~lost, "overflow": overflow, "lost": lost, "halted": halted | lost}
        totals = dict(zip(NORMS, jnp.linalg.norm(layers, axis=1)))
        return Training(params, opt_state, guard), {"loss": value, **totals, **flags, "layers": layers}

    jitted = jax.jit(step, donate_argnums=0)
    return lambda training, batch: jitted(without_aliases(training), batch)


def _adjusted(scale: LossScale, finite: jax.Array, overflow: jax.Array) -> LossScale:
    """Returns the scale of the next step: a loss that is not finite itself says nothing about the scale."""
    return jax.tree.map(lambda new, old: jnp.where(finite | overflow, new, old), adjust(scale, finite), scale)


def trained_layers(params: Tree) -> list[str]:
    """Returns the paths of the layers to train, in the order of `layers` in the metrics."""
    return list(_floats_by_layer(split(params)[0]))


def _floats_by_layer(tree: Tree) -> dict[str, dict[str, jax.Array]]:
    return by_layer({path: leaf for path, leaf in paths(tree).items() if is_floating(leaf)})


def _layer_norms(tree: Tree) -> jax.Array:
    """Returns the norm of each layer, (L,) float32."""
    norms = [optax.tree.norm(list(leaves.values())) for leaves in _floats_by_layer(tree).values()]
    return jnp.stack(norms).astype(jnp.float32) if norms else jnp.zeros(0)
